from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.mapper import CityscapesMapper


def config(**crop: Any) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 128)  # the image's own 64, and twice that
    cfg.INPUT.MAX_SIZE_TRAIN = 256
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [32, 48]
    for key, value in crop.items():
        cfg.INPUT.CROP[key] = value
    return cfg


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A 64 x 128 image whose red channel shows its label ids: 7 (road) left, 26 (car) right."""
    label_ids = np.full((64, 128), 7, np.uint8)
    label_ids[:, 64:] = 26
    Image.fromarray(label_ids).save(tmp_path / "labels.png")
    rgb = np.stack([label_ids * 9, np.zeros_like(label_ids), np.zeros_like(label_ids)], axis=2)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "height": 64,
        "width": 128,
    }


def test_cropping_after_resizing_gives_one_size_at_two_scales(record: dict[str, Any]) -> None:
    mapper = CityscapesMapper(config(AFTER_RESIZE=True), True)
    edges = set()
    for _ in range(40):
        example = mapper(record)
        assert example["image"].shape == (3, 32, 48)
        assert example["sem_seg"].shape == (32, 48)
        # Train ids 0 and 13; red is 7 x 9 = 63 and 26 x 9 = 234, mixed for at most a pixel or two
        # beside the border when enlarged.
        red = example["image"][0]
        differ = ((red > 148) != (example["sem_seg"] == 13)).any(dim=0)
        assert differ.sum() <= 1
        edges |= {int(value) for value in red.unique()} - {63, 234}
    # Enlarging mixes colours at the border, keeping the size does not: mixed ones were seen.
    assert edges


def test_detectron2s_order_is_the_default(record: dict[str, Any]) -> None:
    shapes = {tuple(CityscapesMapper(config(), True)(record)["image"].shape) for _ in range(40)}
    # A window of 32 x 48 is resized to a shorter side of 64 or 128.
    assert shapes == {(3, 64, 96), (3, 128, 192)}


def test_a_window_larger_than_the_image_takes_all_of_it(record: dict[str, Any]) -> None:
    mapper = CityscapesMapper(config(AFTER_RESIZE=True, SIZE=[100, 100]), True)
    shapes = {tuple(mapper(record)["image"].shape) for _ in range(40)}
    assert shapes == {(3, 64, 100), (3, 100, 100)}


def test_nothing_is_cropped_in_evaluation(record: dict[str, Any]) -> None:
    cfg = config(AFTER_RESIZE=True)
    cfg.INPUT.MIN_SIZE_TEST = 64
    assert CityscapesMapper(cfg, False)(record)["image"].shape == (3, 64, 128)
