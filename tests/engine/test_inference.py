"""Evaluators of the datasets, unpasted masks, and test-time augmentation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import nn

from cityscapes_maskrcnn.engine.inference import (
    build_evaluator,
    fit_to_evaluators,
    with_test_time_augmentation,
)
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.instances import UnpastedInference
from cityscapes_maskrcnn.utils.errors import InputError

INSTANCE, SEMANTIC = "cityscapes_instance_val", "cityscapes_fine_semantic_val"

Config = Callable[..., CfgNode]


@pytest.mark.parametrize(
    ("stage", "dataset", "message"),
    [
        ("stage_0_backbone", INSTANCE, "its instances are not what .* SemanticSegmentor predicts"),
        ("stage_1_heads", SEMANTIC, "its semantic labels are not what .* GeneralizedRCNN predicts"),
        ("stage_1_heads", "cityscapes_instance_test", "no labels to score against"),
    ],
)
def test_a_model_that_predicts_something_else(
    config: Config, tmp_path: Path, stage: str, dataset: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_evaluator(config(stage=stage), dataset, tmp_path)


def test_missing_ground_truth(
    config: Config, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = config()
    missing = max((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing}: no such file, which .*_leftImg8bit.png is"):
        build_evaluator(cfg, INSTANCE, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("MIN_SIZES", "()"), ("MIN_SIZES", "(0, 64)"), ("MAX_SIZE", 32)]
)
def test_augmentation_sizes_that_make_no_sense(
    config: Config, build: Callable[..., nn.Module], key: str, value: object
) -> None:
    with pytest.raises(InputError, match=r"TEST\.AUG\.MIN_SIZES"):
        with_test_time_augmentation(config(f"TEST.AUG.{key}", value), build("stage_1_heads"))


def test_other_networks_cannot_be_augmented(config: Config) -> None:
    with pytest.raises(InputError, match="a Linear cannot be augmented"):
        with_test_time_augmentation(config(), nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("scored", "unpasted_masks", "unpasted"),
    [
        (["ours"], True, True),
        (["ours", ["ours"]], True, True),
        (["ours"], False, False),
        # Another evaluator, also of this project's datasets, gets what Detectron2 gives it.
        (["ours", "theirs"], True, False),
        ([["ours", "theirs"]], True, False),
    ],
)
def test_masks_stay_unpasted_if_all_evaluators_accept_it(
    config: Config,
    build: Callable[..., nn.Module],
    scored: list[object],
    unpasted_masks: bool,
    unpasted: bool,
) -> None:
    cfg = config("TEST.UNPASTED_MASKS", unpasted_masks)
    known = {"ours": CityscapesInstanceEvaluator(INSTANCE), "theirs": DatasetEvaluator()}

    def evaluators(names: list[object]) -> list[object]:
        return [
            DatasetEvaluators(evaluators(each)) if isinstance(each, list) else known[str(each)]
            for each in names
        ]

    fitted = fit_to_evaluators(cfg, build("stage_1_heads"), evaluators(scored))
    assert isinstance(fitted, UnpastedInference) == unpasted


def counted(folder: Path) -> tuple[list[str], list[float]]:
    """Classes and confidences of the predictions in the official precision-recall curves."""
    with (folder / "analysis" / "precision_recall.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] != "inf"]
    return [row["class"] for row in rows], [float(row["confidence"]) for row in rows]


def test_augmented_scores_are_written_beside_plain_ones(
    config: Config, build: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """The image as it is, alone, is no augmentation: the scores are the plain ones."""
    model = build("stage_1_heads")
    with torch.no_grad():
        # Random heads predict nearly the same everywhere.
        model.roi_heads.box_predictor.cls_score.weight.mul_(8)
    weights = tmp_path / "random.pth"
    torch.save({"model": model.state_dict()}, weights)
    options = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('{INSTANCE}',)"]
    options += ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", False]
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20]
    Trainer.evaluate_checkpoint(config(*options, "MODEL.RPN.POST_NMS_TOPK_TEST", 50))
    scores = json.loads((tmp_path / "scores.json").read_text())
    results = scores["datasets"][INSTANCE]["results"]
    plain = {name: results[name] for name in ("segm", "coco_segm", "coco_bbox")}
    assert results.keys() == {*plain, *(f"{name}_TTA" for name in plain)}
    for name in plain:
        assert results[f"{name}_TTA"] == pytest.approx(plain[name], abs=0.01)
    # Those may be zeros. The confidences show which predictions were counted.
    classes, confidences = counted(tmp_path / "inference")
    assert len(classes) > 10
    augmented = counted(tmp_path / "inference_TTA")
    assert augmented == (classes, pytest.approx(confidences, rel=1e-4))
