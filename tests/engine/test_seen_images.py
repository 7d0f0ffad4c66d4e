"""The data that a model has seen, and what a run writes about itself: with a tiny network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from cityscapes_maskrcnn.data.provenance import read_history
from cityscapes_maskrcnn.engine.seen_images import data_of_run, refuse_seen_images
from cityscapes_maskrcnn.engine.summary import RunSummary
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

Train = Callable[..., Trainer]
Config = Callable[..., CfgNode]
TRAIN, OTHER = "cityscapes_instance_train_part1of8", "cityscapes_instance_train_part2of8"
VAL, VAL_1, VAL_3 = (f"cityscapes_instance_val{part}" for part in ("", "_part1of4", "_part3of4"))


def data(train: str = "", test: str = "", tuned_on: str = "") -> list[str]:
    names = {"TRAIN": train, "TEST": test, "TUNED_ON": tuned_on}
    return [
        word
        for key, name in names.items()
        for word in (f"DATASETS.{key}", f"('{name}',)" if name else "()")
    ]


# Trained on one image, tuned on two: 8 images of train in 8 parts, 6 of val in 4 (2 2 1 1).
PARENT = data(TRAIN, test=VAL_3, tuned_on=VAL_1)


def history(checkpoint: Path) -> list[tuple[str, str, int]]:
    content = torch.load(checkpoint, weights_only=True)
    return [
        (used.dataset, used.role, len(used.digests)) for used in read_history(content, "checkpoint")
    ]


def test_scoring_a_checkpoint_on_what_it_used(train: Train, config: Config, tmp_path: Path) -> None:
    train(*PARENT)
    weights = tmp_path / "model_final.pth"
    # Watching part 3 is no use of it.
    assert history(weights) == [(TRAIN, "trained", 1), (VAL_1, "tuned", 2)]

    def score(dataset: str, *options: object) -> dict[str, Any]:
        output = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "scores"]
        Trainer.evaluate_checkpoint(config(*data(test=dataset), *output, *options))
        return json.loads((tmp_path / "scores" / "scores.json").read_text())

    with pytest.raises(InputError, match=f"2 of the 6 images of {VAL} were tuned on, as {VAL_1}"):
        score(VAL)
    assert not (tmp_path / "scores" / "scores.json").exists()
    (seen,) = score(VAL, "TEST.ALLOW_SEEN_IMAGES", True)["seen"]
    assert f"2 of the 6 images of {VAL} were tuned on" in seen
    content = score(VAL_3)
    assert content["seen"] == []
    assert content["weights"] == str(weights)
    assert content["datasets"][VAL_3]["images"] == 1


def test_children_inherit_it_and_a_resume_adds_nothing(
    train: Train, config: Config, tmp_path: Path
) -> None:
    train(*PARENT)
    child, weights = tmp_path / "child", tmp_path / "child" / "model_final.pth"
    options = ["MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", child]
    options += data(OTHER, test=VAL_3)
    expected = [(TRAIN, "trained", 1), (VAL_1, "tuned", 2), (OTHER, "trained", 1)]
    train(*options, "SOLVER.MAX_ITER", 1)
    assert history(weights) == expected
    train(*options, "SOLVER.MAX_ITER", 2, resume=True)
    assert history(weights) == expected

    summary = json.loads((child / "summary.json").read_text())
    assert (summary["train"], summary["images"], summary["iterations"]) == ([OTHER], 1, 2)
    assert summary["epochs"] == 2 * 2 / 1  # two iterations of two images, of which there is one
    assert 0 < summary["trainable_parameters"] == summary["parameters"]
    assert 0 < summary["seconds"] < 300
    assert summary["memory"] == "RAM"
    assert 2**27 < summary["peak_memory_bytes"] < 2**36

    # An ancestor's training image is refused as much as one of its own.
    with pytest.raises(InputError, match=rf"{TRAIN} were trained on, as {TRAIN} \(.*_leftImg8bit"):
        Trainer.evaluate_checkpoint(config(*data(test=TRAIN), "MODEL.WEIGHTS", weights))


def test_a_summary_adds_up_over_resumes(config: Config) -> None:
    summary = RunSummary(config(), images=1)
    summary.trainer = SimpleNamespace(model=torch.nn.Linear(1, 1))
    summary.load_state_dict({"seconds": 1000.0, "peak_memory_bytes": 2**50})
    state = summary.state_dict()
    assert 1000 < state["seconds"] < 1100
    assert state["peak_memory_bytes"] == 2**50


def test_training_on_images_of_the_test_set_is_refused_before_the_first_step(
    train: Train, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="1 of the 1 images"):
        train(*data(TRAIN, test=TRAIN))
    assert not list(tmp_path.glob("*.pth"))


def test_what_steers_a_run_is_tuned_on(config: Config) -> None:
    def uses(*options: object, tuned_on: str = "") -> list[tuple[str, str]]:
        cfg = config(*data(TRAIN, test=VAL_1, tuned_on=tuned_on), *options)
        return [(used.dataset, used.role) for used in data_of_run(cfg)]

    watched = [(TRAIN, "trained")]
    steered = [*watched, (VAL_1, "tuned")]
    early_stopping = ["SOLVER.EARLY_STOPPING.ENABLED", True]
    assert uses("TEST.VALIDATION_LOSS", True) == watched
    assert uses(*early_stopping) == steered
    assert uses("SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau") == steered
    assert uses(*early_stopping, tuned_on=VAL_1) == steered

    # In training it may be watched, of course.
    cfg = config(*data(TRAIN, test=VAL_1), *early_stopping)
    assert refuse_seen_images(cfg, data_of_run(cfg), ("trained",)) == []
    with pytest.raises(InputError, match="tuned on"):
        refuse_seen_images(cfg, data_of_run(cfg), ("trained", "tuned"))


def test_coarse_images_count_for_fine_ones(config: Config) -> None:
    """Stage 0 sees the images of Bremen, a city of fine train, with coarse annotations."""

    def refused(trained: str, scored: str) -> str:
        used = data_of_run(config(*data(trained)))
        with pytest.raises(InputError) as caught:
            refuse_seen_images(config(*data(test=scored)), used, ("trained",))
        return str(caught.value)

    fine = "cityscapes_instance_train"
    message = refused("cityscapes_coarse_semantic_train", fine)
    assert (
        f"8 of the 8 images of {fine} were trained on, as cityscapes_coarse_semantic_tr" in message
    )
    message = refused("cityscapes_coarse_semantic_pretrain", fine)
    assert (
        f"1 of the 8 images of {fine} were trained on, as cityscapes_coarse_semantic_pretrain "
        "(bremen_000000_000019_leftImg8bit.png)" in message
    )
    # All of val were trained on; a part is a part of it, whatever the annotations.
    message = refused("cityscapes_coarse_semantic_val", VAL_3)
    assert f"1 of the 1 images of {VAL_3} were trained on" in message


def counted(folder: Path) -> tuple[list[str], list[float]]:
    """Classes and confidences of the predictions in the official precision-recall curves."""
    with (folder / "analysis" / "precision_recall.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"] != "inf"]
    return [row["class"] for row in rows], [float(row["confidence"]) for row in rows]


def test_augmented_scores_are_written_beside_plain_ones(config: Config, tmp_path: Path) -> None:
    """The image as it is, alone, is no augmentation: the scores are the plain ones."""
    torch.manual_seed(2)
    model = Trainer.build_model(config())
    with torch.no_grad():
        # Random heads predict nearly the same everywhere.
        model.roi_heads.box_predictor.cls_score.weight.mul_(8)
    torch.save({"model": model.state_dict()}, tmp_path / "random.pth")

    def score_twice(folder: Path, flip: bool) -> Any:
        options = ["MODEL.WEIGHTS", tmp_path / "random.pth", "OUTPUT_DIR", folder]
        options += ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", flip]
        options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20]
        cfg = config(*data(test=VAL), *options, "MODEL.RPN.POST_NMS_TOPK_TEST", 50)
        Trainer.evaluate_checkpoint(cfg)
        return json.loads((folder / "scores.json").read_text())["datasets"][VAL]["results"]

    results = score_twice(tmp_path / "same", False)
    plain = {name: results[name] for name in ("segm", "coco_segm", "coco_bbox")}
    assert results.keys() == {*plain, *(f"{name}_TTA" for name in plain)}
    for name in plain:
        assert results[f"{name}_TTA"] == pytest.approx(plain[name], abs=0.01)
    # Those may be zeros. The confidences show which predictions were counted.
    classes, confidences = counted(tmp_path / "same" / "inference")
    assert len(classes) > 10
    augmented = counted(tmp_path / "same" / "inference_TTA")
    assert augmented == (classes, pytest.approx(confidences, rel=1e-4))

    score_twice(tmp_path / "mirrored", True)
    assert counted(tmp_path / "mirrored" / "inference") == (classes, confidences)
    augmented = counted(tmp_path / "mirrored" / "inference_TTA")
    assert augmented[1] != pytest.approx(confidences, rel=1e-2)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_training_ends_with_augmented_scores(train: Train, tmp_path: Path) -> None:
    options = ["TEST.EVAL_PERIOD", 1, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,64)"]
    train(*PARENT, *options)
    # Plain scores after the first iteration and when both are done, augmented ones only then.
    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines if "segm/AP" in line] == [0, 2]
    assert [line["iteration"] for line in lines if "segm_TTA/AP" in line] == [2]
    assert (tmp_path / "inference_TTA" / "cityscapes_results.json").exists()


def test_what_a_kill_after_the_last_step_lost_is_written_again(
    train: Train, tmp_path: Path
) -> None:
    """The weights are saved before the last losses and scores are written."""
    options = [*PARENT, "SOLVER.MAX_ITER", 1, "TEST.VALIDATION_LOSS", True]

    def last_numbers() -> dict[str, float]:
        merged: dict[str, float] = {}
        for line in metrics(tmp_path):
            merged |= line
        return {name: merged[name] for name in ("validation/total_loss", "segm/AP")}

    train(*options)
    before = last_numbers()
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "summary.json").unlink()
    train(*options, resume=True)
    assert last_numbers() == before
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == 1
