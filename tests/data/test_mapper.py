"""The mapper against Detectron2's own, with the same random numbers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.utils.errors import InputError

HEIGHT, WIDTH = 60, 120


def config(**keys: Any) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.MASK_ON = True
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return cfg


def polygon(rng: np.random.Generator, number: Callable[[float], float]) -> list[float]:
    corners = rng.uniform([-4, -4], [WIDTH + 4, HEIGHT + 4], size=(rng.integers(3, 12), 2))
    return [number(value) for value in corners.ravel()]


def annotation(rng: np.random.Generator) -> dict[str, Any]:
    """An object whose numbers and boxes are of one of the kinds that Detectron2 knows."""
    number = int if rng.random() < 0.1 else float
    x0, y0, x1, y1 = np.sort(rng.uniform(0, HEIGHT, size=(2, 2)), axis=0).ravel()
    box = [x0, y0, x1, y1]
    mode = BoxMode.XYXY_ABS
    if rng.random() < 0.05:
        box = [x0, y0, x1 - x0, y1 - y0]
        mode = BoxMode.XYWH_ABS
    return {
        "bbox": tuple(number(value) for value in box),
        "bbox_mode": mode,
        "category_id": int(rng.integers(8)),
        "iscrowd": int(rng.random() < 0.1),
        "segmentation": [polygon(rng, number) for _ in range(rng.integers(1, 4))],
    }


def write_image(path: Path, rng: np.random.Generator) -> None:
    """Write noise, in which every pixel counts, with the greatest steps that there are."""
    pixels = rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, ::3] = 255 * (pixels[:, ::3] // 128)
    Image.fromarray(pixels).save(path)


def seeded(mapper: DatasetMapper, record: dict[str, Any], seed: int) -> dict[str, Any]:
    random.seed(seed)
    np.random.seed(seed)
    return mapper(record)


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any], levels: int) -> None:
    assert ours.keys() == theirs.keys()
    image, expected = ours["image"], theirs["image"]
    assert image.shape == expected.shape
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert (image.int() - expected.int()).abs().max() <= levels
    ours, theirs = ours["instances"], theirs["instances"]
    assert ours.image_size == theirs.image_size
    assert ours.gt_boxes.tensor.dtype == theirs.gt_boxes.tensor.dtype
    assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
    assert torch.equal(ours.gt_classes, theirs.gt_classes)
    assert ours.has("gt_masks") == theirs.has("gt_masks")
    if theirs.has("gt_masks"):
        for one, other in zip(ours.gt_masks.polygons, theirs.gt_masks.polygons, strict=True):
            for points, expected_points in zip(one, other, strict=True):
                assert points.dtype == expected_points.dtype
                np.testing.assert_array_equal(points, expected_points, strict=True)


def test_random_examples_equal_detectron2s(tmp_path: Path) -> None:
    """400 examples of other sizes, flips, crops and objects, in both modes of resizing."""
    rng = np.random.default_rng(0)
    path = tmp_path / "image.png"
    flips = ("horizontal", "vertical", "none")
    largest = 0
    for seed in range(200):
        write_image(path, rng)
        sizes = tuple(int(size) for size in rng.integers(20, 130, size=3))
        cfg = config(MIN_SIZE_TRAIN=sizes, MAX_SIZE_TRAIN=240, RANDOM_FLIP=flips[seed % 3])
        cfg.INPUT.FORMAT = "BGR" if seed % 5 == 0 else "RGB"
        cfg.MODEL.MASK_ON = seed % 11 != 0
        record = {
            "file_name": str(path),
            "image_id": f"image {seed}",
            "height": HEIGHT,
            "width": WIDTH,
            "annotations": [annotation(rng) for _ in range(rng.integers(0, 9))],
        }
        # Detectron2 fails when it crops an image without objects.
        objects = any(not each["iscrowd"] for each in record["annotations"])
        cfg.INPUT.CROP.ENABLED = seed % 7 == 0 and objects
        before = copy.deepcopy(record)
        theirs = seeded(DatasetMapper(cfg, True), record, seed)
        for mode, levels in (("exact", 0), ("fast", 2)):
            cfg.INPUT.RESIZE = mode
            ours = seeded(CityscapesMapper(cfg, True), record, seed)
            assert_equal(ours, theirs, levels)
            largest = max(largest, int((ours["image"].int() - theirs["image"].int()).abs().max()))
        assert record == before
    # Otherwise the fast mode was not seen.
    assert largest > 0


def test_a_crop_of_an_image_without_objects(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", np.random.default_rng(1))
    crowd = {"bbox": (1, 1, 9, 9), "bbox_mode": 0, "category_id": 0, "iscrowd": 1}
    cfg = config(MIN_SIZE_TRAIN=(60,))
    cfg.INPUT.CROP.ENABLED = True
    for objects in ([], [crowd]):
        record = {"file_name": str(tmp_path / "image.png"), "annotations": objects}
        instances = CityscapesMapper(cfg, True)(record)["instances"]
        assert len(instances) == 0
        assert instances.gt_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_the_image_of_inference_is_exact(tmp_path: Path, mode: str) -> None:
    write_image(tmp_path / "image.png", np.random.default_rng(1))
    record = {"file_name": str(tmp_path / "image.png"), "annotations": []}
    cfg = config(RESIZE=mode, MIN_SIZE_TEST=47)
    ours, theirs = CityscapesMapper(cfg, False)(record), DatasetMapper(cfg, False)(record)
    assert torch.equal(ours["image"], theirs["image"])
    assert ours.keys() == theirs.keys() == {"file_name", "height", "width", "image"}


def test_labels_are_the_same_in_both_modes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    write_image(tmp_path / "image.png", rng)
    labels = rng.integers(34, size=(HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }
    for seed in range(10):
        exact, fast = (
            seeded(CityscapesMapper(config(RESIZE=mode, MIN_SIZE_TRAIN=(37,)), True), record, seed)
            for mode in ("exact", "fast")
        )
        assert torch.equal(exact["sem_seg"], fast["sem_seg"])
        assert exact["image"].shape[1:] == exact["sem_seg"].shape == (37, 74)


def test_other_augmentations_go_through_detectron2(tmp_path: Path) -> None:
    """Points that are rotated, and images that are no longer bytes."""
    rng = np.random.default_rng(2)
    write_image(tmp_path / "image.png", rng)
    record = {
        "file_name": str(tmp_path / "image.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [annotation(rng) for _ in range(5)],
    }
    changes = [
        T.RandomRotation([-20, 20]),
        T.RandomBrightness(0.5, 1.5),
        T.ResizeShortestEdge(40, 200),
        T.RandomFlip(),
    ]
    cfg = config(RESIZE="fast")
    for seed in range(20):
        theirs = seeded(DatasetMapper(cfg, True, augmentations=changes), record, seed)
        ours = seeded(CityscapesMapper(cfg, True, augmentations=changes), record, seed)
        assert_equal(ours, theirs, levels=2)


def test_masks_of_the_type_that_the_heads_ask_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write_image(tmp_path / "image.png", rng)
    objects = [annotation(rng) for _ in range(20)]
    cfg = config(MIN_SIZE_TRAIN=(47,))
    for objects_of_image in (objects, []):
        record = {"file_name": str(tmp_path / "image.png"), "annotations": objects_of_image}
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        theirs = seeded(CityscapesMapper(cfg, True), record, 0)["instances"]
        cfg.MODEL.ROI_HEADS.NAME = "BatchedROIHeads"
        ours = seeded(CityscapesMapper(cfg, True), record, 0)["instances"]
        assert len(ours) == len(theirs)
        assert ours.has("gt_masks") == theirs.has("gt_masks") == bool(objects_of_image)
        if objects_of_image:
            assert isinstance(ours.gt_masks, FlatPolygons)
            boxes = theirs.gt_boxes.tensor
            expected = theirs.gt_masks.crop_and_resize(boxes, 28)
            assert torch.equal(ours.gt_masks.crop_and_resize(boxes, 28), expected)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_an_image_of_which_resizing_leaves_nothing(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "line.png"
    Image.new("RGB", (4000, 1)).save(path)
    mapper = CityscapesMapper(config(RESIZE=mode), is_train=True)
    with pytest.raises(InputError, match=rf"^{path}: 4000x1 pixels cannot be resized: "):
        mapper({"file_name": str(path), "height": 1, "width": 4000, "annotations": []})


@pytest.mark.parametrize("key", ["RESIZE", "CACHE"])
def test_unknown_values_are_named(key: str) -> None:
    with pytest.raises(InputError, match=rf"^INPUT\.{key} 'some': it must be one of "):
        CityscapesMapper(config(**{key: "some"}), True)
