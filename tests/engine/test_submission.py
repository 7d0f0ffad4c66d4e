from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine.submission import (
    expected_images,
    prediction_settings,
    weights_digest,
)
from cityscapes_maskrcnn.evaluation.submission_check import ExpectedImage
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_digest_sees_every_value_and_name(dtype: torch.dtype) -> None:
    model = nn.BatchNorm2d(3).to(dtype)  # its counter of batches is a number without dimensions
    before = weights_digest(model)
    assert weights_digest(nn.BatchNorm2d(3).to(dtype)) == before
    assert weights_digest(nn.Sequential(nn.BatchNorm2d(3).to(dtype))) != before
    with torch.no_grad():
        model.weight[1] += 0.5
    assert weights_digest(model) != before


def test_images_without_a_size_are_looked_at(tmp_path: Path) -> None:
    """Detectron2's dicts need not have height and width."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.0.jpg")
    try:
        DatasetCatalog.register("unsized", lambda: [{"file_name": str(tmp_path / "a.0.jpg")}])
        with pytest.raises(InputError, match=r"a.0.jpg: its name does not end in _leftImg8bit.png"):
            expected_images("unsized")
        MetadataCatalog.get("unsized").image_suffix = ".jpg"
        assert expected_images("unsized") == [ExpectedImage("a.0", 40, 60)]
    finally:
        DatasetCatalog.pop("unsized")
        MetadataCatalog.pop("unsized")


def settings(*opts: Any) -> dict[str, Any]:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.merge_from_list(list(opts))
    return prediction_settings(cfg)


@pytest.mark.parametrize(
    "opts",
    [
        ("TEST.NUM_WORKERS", 7, "TEST.EVAL_PERIOD", 50, "TEST.ANALYSIS_CONFIDENCE", 0.1),
        ("TEST.AUG.FLIP", False, "TEST.UNPASTED_MASKS", False),  # TEST.AUG.ENABLED is False
        ("INPUT.MIN_SIZE_TRAIN", (320,), "INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", True),
        ("MODEL.DEVICE", "cuda:1", "MODEL.WEIGHTS", "moved.pth", "MODEL.CHANNELS_LAST", True),
        ("MODEL.FOLD_FROZEN_NORM", False, "MODEL.COMPILE", "on", "TEST.BATCH_SIZE", 4),
        ("MODEL.ACTIVATION_CHECKPOINTING", ("res5",), "INPUT.CACHE", "disk"),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.2, 0.8], "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
        ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.5, "MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"),
    ],
)
def test_what_predictions_do_not_depend_on(opts: tuple[Any, ...]) -> None:
    assert settings(*opts) == settings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 50),
        ("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[8]]),
        ("INPUT.FORMAT", "RGB"),
        ("INPUT.MIN_SIZE_TEST", 512),
        ("TEST.DETECTIONS_PER_IMAGE", 5),
        ("TEST.PRECISION", "bfloat16"),
        ("TEST.AUG.ENABLED", True),
    ],
)
def test_what_predictions_depend_on(key: str, value: Any) -> None:
    assert settings(key, value)[key] == value != settings().get(key)
    assert settings("TEST.AUG.ENABLED", True, "TEST.AUG.FLIP", False)["TEST.AUG.FLIP"] is False
