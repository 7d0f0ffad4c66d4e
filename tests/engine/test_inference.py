"""What cannot be scored is told before anything is predicted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cityscapes_maskrcnn.engine.inference import build_evaluator

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.semantic_evaluator import CityscapesSemanticEvaluator
from cityscapes_maskrcnn.utils.errors import InputError

INSTANCE, SEMANTIC = "cityscapes_instance_val", "cityscapes_fine_semantic_val"


@pytest.fixture
def root(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    return small_root


@pytest.mark.parametrize(
    ("stage", "dataset", "evaluator"),
    [
        ("stage_0_backbone", SEMANTIC, CityscapesSemanticEvaluator),
        ("stage_1_heads", INSTANCE, CityscapesInstanceEvaluator),
    ],
)
@pytest.mark.usefixtures("root")
def test_every_dataset_has_its_evaluator(
    tmp_path: Path, stage: str, dataset: str, evaluator: type
) -> None:
    cfg = build_config(f"configs/{stage}.yaml", [])
    assert type(build_evaluator(cfg, dataset, tmp_path)) is evaluator


@pytest.mark.parametrize(
    ("stage", "dataset", "message"),
    [
        ("stage_0_backbone", INSTANCE, "its instances are not what .* SemanticSegmentor predicts"),
        ("stage_1_heads", SEMANTIC, "its semantic labels are not what .* GeneralizedRCNN predicts"),
        ("stage_1_heads", "cityscapes_instance_test", "no labels to score against"),
    ],
)
@pytest.mark.usefixtures("root")
def test_a_model_that_predicts_something_else(
    tmp_path: Path, stage: str, dataset: str, message: str
) -> None:
    cfg = build_config(f"configs/{stage}.yaml", [])
    with pytest.raises(InputError, match=message):
        build_evaluator(cfg, dataset, tmp_path)


def test_missing_ground_truth(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = build_config("configs/stage_1_heads.yaml", [])
    missing = max((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing}: no such file, which .*_leftImg8bit.png is"):
        build_evaluator(cfg, INSTANCE, tmp_path)
