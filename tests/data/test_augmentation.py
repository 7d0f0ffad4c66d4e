"""Large-scale jitter and colours, against Detectron2's own with the same random numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from PIL import Image

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.augmentation import ColorJitter
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.utils.errors import InputError

HEIGHT, WIDTH = 60, 120


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.LSJ.SIZE = [48, 80]
    return cfg


def an_object(rng: np.random.Generator) -> dict[str, Any]:
    center = rng.uniform(0, [WIDTH, HEIGHT])
    parts = [
        (center + rng.uniform(-15, 15, size=(rng.integers(3, 9), 2)))
        .clip(0, [WIDTH, HEIGHT])
        .ravel()
        for _ in range(rng.integers(1, 3))
    ]
    points = np.concatenate(parts).reshape(-1, 2)
    return {
        "bbox": (*points.min(axis=0), *points.max(axis=0)),
        "bbox_mode": 0,
        "category_id": int(rng.integers(8)),
        "iscrowd": int(rng.random() < 0.1),
        "segmentation": [part.tolist() for part in parts],
    }


def write_record(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    pixels = rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return {
        "file_name": str(folder / "image.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [an_object(rng) for _ in range(rng.integers(1, 7))],
    }


def seeded(mapper: DatasetMapper, record: dict[str, Any], seed: int) -> dict[str, Any]:
    np.random.seed(seed)
    return mapper(record)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_large_scale_jitter_equals_detectron2s(
    cfg: CfgNode, tmp_path: Path, mask_format: str
) -> None:
    """80 examples, smaller and larger than their crop."""
    rng = np.random.default_rng(0)
    cfg.INPUT.LSJ.ENABLED = True
    cfg.INPUT.MASK_FORMAT = mask_format
    mapper = CityscapesMapper(cfg, True)
    lsj = [T.ResizeScale(0.1, 2.0, 48, 80), T.FixedSizeCrop((48, 80)), T.RandomFlip()]
    padded = gone = 0
    for seed in range(80):
        record = write_record(tmp_path, rng)
        if all(each["iscrowd"] for each in record["annotations"]):
            continue
        before = copy.deepcopy(record)
        stock = DatasetMapper(cfg, True, augmentations=lsj, recompute_boxes=True)
        theirs = seeded(stock, record, seed)
        cfg.INPUT.RESIZE = ("exact", "fast")[seed % 2]
        mapper = CityscapesMapper(cfg, True)
        ours = seeded(mapper, record, seed)
        assert record == before
        assert ours["image"].shape == (3, 48, 80)
        assert (ours["image"].int() - theirs["image"].int()).abs().max() <= 2 * (seed % 2)
        padded += bool((ours["image"][:, -1, -1] == 128).all())
        ours, theirs = ours["instances"], theirs["instances"]
        gone += len(ours) < sum(not each["iscrowd"] for each in record["annotations"])
        assert ours.image_size == (48, 80)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        boxes = ours.gt_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([80, 48])).all()
        masks = [each.gt_masks.crop_and_resize(boxes, 14) for each in (ours, theirs)]
        assert torch.equal(*masks)
    # Otherwise these cases were not seen.
    assert padded > 20
    assert gone > 10


def test_outlines_end_where_the_image_does(cfg: CfgNode, tmp_path: Path) -> None:
    """Half as large, a box from 80 to 140, 20 to 70 beyond a corner ends at 60, 30."""
    record = write_record(tmp_path, np.random.default_rng(1))
    box = (80.0, 20.0, 140.0, 70.0)
    polygon = [80.0, 20.0, 140.0, 20.0, 140.0, 70.0, 80.0, 70.0]
    car = {"bbox": box, "bbox_mode": 0, "category_id": 2, "segmentation": [polygon]}
    record["annotations"] = [car]
    cfg.INPUT.LSJ.ENABLED, cfg.INPUT.RANDOM_FLIP = True, "none"
    # 60 x 120 fits into 80 x 60 as 30 x 60.
    cfg.INPUT.LSJ.SIZE = [80, 60]
    cfg.INPUT.LSJ.MIN_SCALE = cfg.INPUT.LSJ.MAX_SCALE = 1.0
    instances = CityscapesMapper(cfg, True)(record)["instances"]
    assert instances.image_size == (80, 60)
    assert instances.gt_boxes.tensor.tolist() == [[40.0, 10.0, 60.0, 30.0]]
    assert instances.gt_masks.area().tolist() == [20 * 20]


def test_padding_stays_grey_beside_jittered_colours(cfg: CfgNode, tmp_path: Path) -> None:
    """At half the scale, 60 x 120 fits into 24 x 40 as 20 x 40, in the upper left corner."""
    record = write_record(tmp_path, np.random.default_rng(1))
    cfg.INPUT.LSJ.ENABLED, cfg.INPUT.RANDOM_FLIP = True, "none"
    cfg.INPUT.LSJ.MIN_SCALE = cfg.INPUT.LSJ.MAX_SCALE = 0.5
    plain = CityscapesMapper(cfg, True)(record)["image"]
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = cfg.INPUT.COLOR_JITTER.SATURATION = 0.9
    jittered = seeded(CityscapesMapper(cfg, True), record, 3)["image"]
    inside = (slice(None), slice(20), slice(40))
    assert not torch.equal(jittered[inside], plain[inside])
    for image in (plain, jittered):
        image[inside] = 128
        assert (image == 128).all()


def test_padding_has_no_semantic_label(cfg: CfgNode, tmp_path: Path) -> None:
    record = write_record(tmp_path, np.random.default_rng(1))
    Image.fromarray(np.full((HEIGHT, WIDTH), 26, np.uint8)).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    cfg.INPUT.LSJ.ENABLED = True
    cfg.INPUT.LSJ.MIN_SCALE = cfg.INPUT.LSJ.MAX_SCALE = 0.5
    labels = CityscapesMapper(cfg, True)(record)["sem_seg"]
    # 60 x 120 fits into 24 x 40 as 20 x 40; a car's train id is 13.
    expected = torch.full((48, 80), 255)
    expected[:20, :40] = 13
    assert torch.equal(labels, expected) or torch.equal(labels, expected.flip(1))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (T.RandomBrightness, "brightness"),
        (T.RandomContrast, "contrast"),
        (T.RandomSaturation, "saturation"),
    ],
)
def test_each_change_of_colours_is_detectron2s(kind: type[T.Augmentation], keys: str) -> None:
    rng = np.random.default_rng(0)
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    ours, theirs = ColorJitter(**{**none, keys: 0.6}), kind(0.4, 1.6)
    reversed_channels = ColorJitter(**{**none, keys: 0.6}, bgr=True)
    changed = 0
    for seed in range(20):
        image = rng.integers(256, size=(40, 50, 3), dtype=np.uint8)
        found = []
        for augmentation, pixels in (
            (theirs, image),
            (ours, image),
            (reversed_channels, np.ascontiguousarray(image[..., ::-1])),
        ):
            np.random.seed(seed)
            given = T.AugInput(pixels.copy())
            augmentation(given)
            assert given.image.dtype == np.uint8
            found.append(given.image.astype(int))
        expected, rgb, bgr = found
        assert abs(rgb - expected).max() <= 1
        np.testing.assert_array_equal(bgr[..., ::-1], rgb)
        changed += abs(rgb - image).max() > 20
    assert changed > 10


def test_changes_of_colours_together() -> None:
    """(R, G, B) = (200, 100, 50) beside black, with factors 0.5, 2 and 0.25."""
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 0] = 200, 100, 50
    jitter = ColorJitter(brightness=0.5, contrast=1.0, saturation=0.75)
    draws = {(0.5, 1.5): 0.5, (0.0, 2.0): 2.0, (0.25, 1.75): 0.25}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "uniform", lambda *bounds: draws[bounds])
        changed = jitter.get_transform(image).apply_image(image)
    # Halved: 100, 50, 25, their mean over both pixels 175 / 6 = 29.17; twice less that: 170.8,
    # 70.8, 20.8, black -29.2; grey 0.299 x 170.8 + 0.587 x 70.8 + 0.114 x 20.8 = 95.0;
    # 0.75 x 95.0 + 0.25 x 170.8 = 114.0, and so on.
    np.testing.assert_allclose(changed.astype(int), [[[114, 89, 76], [0, 0, 0]]], atol=1)


def test_colours_are_left_alone_by_default_and_outlines_always(
    cfg: CfgNode, tmp_path: Path
) -> None:
    record = write_record(tmp_path, np.random.default_rng(2))
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (47,), "none"
    plain = CityscapesMapper(cfg, True)(record)
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.9
    jittered = CityscapesMapper(cfg, True)(record)
    assert torch.equal(plain["image"], DatasetMapper(cfg, True)(record)["image"])
    assert not torch.equal(plain["image"], jittered["image"])
    one, other = plain["instances"], jittered["instances"]
    assert torch.equal(one.gt_boxes.tensor, other.gt_boxes.tensor)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["INPUT.LSJ.MIN_SCALE", 0.0], r"^INPUT\.LSJ\.MIN_SCALE 0\.0 and MAX_SCALE 2\.0: they "),
        (["INPUT.LSJ.MAX_SCALE", 0.05], r"MAX_SCALE 0\.05: they must be above 0"),
        (
            ["INPUT.LSJ.SIZE", [30, 80]],
            r"^INPUT\.LSJ\.MIN_SCALE 0\.1 of SIZE \(30, 80\): nothing is seen on",
        ),
        (["INPUT.LSJ.SIZE", [512]], r"^INPUT\.LSJ\.SIZE \(512,\): it must be height and width"),
        (["INPUT.CROP.ENABLED", True], r"^INPUT\.LSJ\.ENABLED crops by itself: set INPUT\.CROP"),
        (["INPUT.COLOR_JITTER.CONTRAST", 1.5], r"^INPUT\.COLOR_JITTER\.CONTRAST 1\.5: it must be"),
        (
            ["INPUT.COLOR_JITTER.CONTRAST", 0.5, "INPUT.FORMAT", "YUV-BT.601"],
            r"^INPUT\.COLOR_JITTER: not for images of INPUT\.FORMAT YUV-BT\.601",
        ),
    ],
)
def test_values_that_make_no_sense(cfg: CfgNode, keys: list[Any], message: str) -> None:
    cfg.INPUT.LSJ.ENABLED = True
    cfg.merge_from_list(keys)
    with pytest.raises(InputError, match=message):
        CityscapesMapper(cfg, True)
    # Nothing is augmented there.
    CityscapesMapper(cfg, False)
