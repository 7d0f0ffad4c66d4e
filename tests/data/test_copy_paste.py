"""Pasted objects: pixels, outlines of what they hide, and which ones are drawn."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.copy_paste import Window, outline, paste_objects, rasterize
from cityscapes_maskrcnn.data.loaders import build_train_loader, build_training_stream
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.utils.errors import InputError

ALL = Window(0, 0, 20, 20)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([left, top, right, top, right, bottom, left, bottom], np.float64)


def pixels(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((20, 20), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def paste(
    objects: list[Any], others: list[Any], min_area: int = 1, blend: float = 0.0
) -> tuple[np.ndarray, list[Any], list[int]]:
    """Paste from an image of 200 into one of 100."""
    image, other = (np.full((3, 20, 20), value, np.uint8) for value in (100, 200))
    found = paste_objects(image, objects, other, others, min_area=min_area, blend=blend)
    assert (image == 100).all()
    return found


def test_outlines_have_exactly_the_pixels_of_their_mask() -> None:
    """Noise has holes, parts in holes, and parts that touch at corners: an IoU of 1 with each."""
    rng = np.random.default_rng(0)
    holes = 0
    for _ in range(500):
        height, width = (int(side) for side in rng.integers(1, 15, size=2))
        window = Window(3, 2, 3 + width, 2 + height)
        mask = rng.random((height, width)) < rng.choice([0.2, 0.5, 0.8, 0.95])
        expected = np.zeros((20, 20), np.bool_)
        expected[window.slices] = mask
        polygons = outline(mask, window)
        assert bool(polygons) == mask.any()
        if polygons:
            np.testing.assert_array_equal(rasterize(polygons, ALL), expected)
        # A seam passes through its vertices twice.
        corners = [each.reshape(-1, 2) for each in polygons]
        holes += any(len(np.unique(each, axis=0)) < len(each) - 1 for each in corners)
    assert holes > 50


def test_a_mask_that_fills_its_box_has_four_corners() -> None:
    (polygon,) = outline(np.ones((3, 5), np.bool_), Window(2, 7, 7, 10))
    assert sorted(map(tuple, polygon.reshape(-1, 2))) == [(2, 7), (2, 10), (7, 7), (7, 10)]


def test_what_is_pasted_hides_what_is_behind() -> None:
    """What is beside it, with nothing between, keeps its outline with vertices of any kind."""
    behind, beside = [rectangle(2, 2, 10, 10)], [rectangle(6.2, 10.1, 12.3, 16.0)]
    image, left, pasted = paste([behind, beside], [[rectangle(6, 2, 14, 10)]])
    expected = np.full((20, 20), 100)
    expected[2:10, 6:14] = 200
    np.testing.assert_array_equal(image, np.stack([expected] * 3))
    assert pasted == [0]
    np.testing.assert_array_equal(rasterize(left[0], ALL), pixels(2, 2, 6, 10))
    assert left[1] is beside


def test_a_hole_stays_one() -> None:
    _, left, _ = paste([[rectangle(2, 2, 12, 12)]], [[rectangle(5, 5, 9, 9)]])
    expected = pixels(2, 2, 12, 12) & ~pixels(5, 5, 9, 9)
    np.testing.assert_array_equal(rasterize(left[0], ALL), expected)
    assert len(left[0]) == 1


def test_small_results_are_dropped() -> None:
    """Of 8 x 8 pixels 2 x 8 = 16 are left; 3 x 5 = 15 are pasted; 2 x 2 = 4 stay, not hidden."""
    behind, small = [rectangle(2, 2, 10, 10)], [rectangle(17, 17, 19, 19)]
    others = [[rectangle(4, 2, 14, 10)], [rectangle(1, 12, 4, 17)]]
    for min_area, expected in ((15, [0, 1]), (16, [0])):
        _, left, pasted = paste([behind, small], others, min_area)
        assert pasted == expected
        assert rasterize(left[0], ALL).sum() == 16
        assert left[1] is small
    _, left, _ = paste([behind, small], others, 17)
    assert left == [None, small]
    image, left, pasted = paste([behind], others, 81)
    assert (image == 100).all()
    assert left == [behind]
    assert not pasted


def test_what_lies_beyond_the_image_is_cut_off() -> None:
    image, (other,) = np.zeros((3, 10, 12), np.uint8), [rectangle(8, 7, 20, 20)]
    larger = np.full((3, 20, 20), 9, np.uint8)
    for one, two in ((image, larger), (larger, image + 5)):
        found, _, pasted = paste_objects(one, [], two, [[other]], min_area=12, blend=0.0)
        # 8 to 12 times 7 to 10: 12 pixels.
        assert pasted == [0]
        changed = (found != one).all(axis=0)
        assert changed.sum() == 12
        assert changed[7:10, 8:12].all()
        assert not paste_objects(one, [], two, [[other]], min_area=13, blend=0.0)[2]


def test_a_seam_is_smooth() -> None:
    behind = [rectangle(0, 0, 20, 20)]
    image, left, _ = paste([behind], [[rectangle(-1, -1, 10, 21)]], blend=1.0)
    row = image[0, 10].astype(int)
    # Of a step at x = 10, the pixels whose middles are half a standard deviation to both sides of
    # it: 100 + 100 x 0.69 and 100 + 100 x 0.31. Far from it nothing is mixed.
    assert row[[9, 10]] == pytest.approx([169, 131], abs=2)
    assert (np.diff(row) <= 0).all()
    assert row[[0, 5, 14, 19]].tolist() == [200, 200, 100, 100]
    # The outline is that of the hard seam.
    np.testing.assert_array_equal(rasterize(left[0], ALL), pixels(10, 0, 20, 20))


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", True
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = ("some_images",)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH = 3, 2
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN = "RGB", (40, 60)
    cfg.INPUT.COPY_PASTE.PROB, cfg.INPUT.COPY_PASTE.MIN_AREA = 1.0, 20
    return cfg


@pytest.fixture
def images(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Four images: of noise, with two objects of class 0 or, in the last one, of class 1."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(256, size=(50, 100, 3), dtype=np.uint8)).save(path)
        corners = rng.integers([[0, 0], [55, 0]], [[15, 30], [70, 30]]).astype(float).tolist()
        boxes = [(x, y, x + 30, y + 20) for x, y in corners]
        objects = [
            {
                "bbox": box,
                "bbox_mode": 0,
                "category_id": number // 3,
                "segmentation": [rectangle(*box).tolist()],
            }
            for box in boxes
        ]
        size = {"height": 50, "width": 100, "image_id": number}
        images.append({"file_name": str(path), **size, "annotations": objects})
    DatasetCatalog.register("some_images", lambda: images)
    yield images
    DatasetCatalog.remove("some_images")
    MetadataCatalog.pop("some_images", None)


def filled(example: dict[str, Any]) -> np.ndarray:
    """The masks of an example, shape (N, H, W)."""
    height, width = example["image"].shape[1:]
    masks = example["instances"].gt_masks.polygons
    return np.array([rasterize(each, Window(0, 0, width, height)) for each in masks])


@pytest.mark.usefixtures("images")
def test_examples_with_pasted_objects(cfg: CfgNode) -> None:
    """What is pasted is in front; the rest is as without, pixels and outlines."""
    pasted_stream = iter(build_training_stream(cfg))
    cfg.INPUT.COPY_PASTE.PROB = 1e-9
    cut = 0
    plain_stream = iter(build_training_stream(cfg))
    for _ in range(40):
        mixed, plain = next(pasted_stream), next(plain_stream)
        assert mixed["file_name"] == plain["file_name"]
        masks, before = filled(mixed), filled(plain)
        front = (mixed["image"] != plain["image"]).any(dim=0).numpy()
        pasted = masks[[bool((mask & front).any()) for mask in masks]]
        union = pasted.any(axis=0)
        # Of noise, hardly a pixel stays what it was.
        assert not (front & ~union).any()
        assert (union & ~front).sum() <= 3
        behind = masks[[not (mask & front).any() for mask in masks]]
        expected = [mask & ~union for mask in before]
        expected = [
            left
            for left, mask in zip(expected, before, strict=True)
            if left.sum() >= 20 or (left == mask).all()
        ]
        assert len(behind) == len(expected)
        for one, other in zip(behind, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        cut += any((mask & union).any() and (mask & ~union).any() for mask in before)
        for mask, box in zip(masks, mixed["instances"].gt_boxes.tensor.tolist(), strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(box, tight, atol=0.6)
    assert cut > 5


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours["file_name"] == theirs["file_name"]
        assert torch.equal(ours["image"], theirs["image"])
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)
        assert torch.equal(ours.gt_masks.edges, theirs.gt_masks.edges)


@pytest.mark.usefixtures("images")
def test_resuming_is_exact_with_any_number_of_workers(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_HEADS.NAME = "BatchedROIHeads"
    cfg.INPUT.LSJ.ENABLED, cfg.INPUT.LSJ.SIZE = True, [48, 80]
    cfg.INPUT.COPY_PASTE.PROB, cfg.INPUT.COLOR_JITTER.CONTRAST = 0.7, 0.5
    whole = list(itertools.islice(build_training_stream(cfg), 24))
    assert all(isinstance(each["instances"].gt_masks, FlatPolygons) for each in whole)
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = build_train_loader(cfg)
    loader.dataset.start_batch = 4
    resumed = [each for batch in itertools.islice(loader, 8) for each in batch]
    assert_same(resumed, whole[8:])


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(("prefer_rare", "share"), [(False, 0.25), (True, 0.5)])
def test_rare_classes_are_preferred(cfg: CfgNode, prefer_rare: bool, share: float) -> None:
    """Class 0 has 6 objects, class 1 has 2: chances of 6 x 1/6 to 2 x 1/2, or 3 images to 1."""
    cfg.INPUT.COPY_PASTE.PREFER_RARE = prefer_rare
    cfg.INPUT.COPY_PASTE.MAX_OBJECTS = 1
    pasted_stream = iter(build_training_stream(cfg))
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    plain_stream = iter(build_training_stream(cfg))
    pasted: Counter[int] = Counter()
    for _ in range(400):
        mixed, plain = next(pasted_stream), next(plain_stream)
        if not torch.equal(mixed["image"], plain["image"]):
            pasted[int(mixed["instances"].gt_classes[-1])] += 1
    # A quarter or more came from the same image, from which nothing is pasted. Three standard
    # deviations: 3 x sqrt(0.5 x 0.5 / 280).
    assert 280 <= pasted.total() <= 320
    assert pasted[1] / pasted.total() == pytest.approx(share, abs=0.09)


def test_images_without_objects(cfg: CfgNode, images: list[dict[str, Any]]) -> None:
    for image in images[:3]:
        image["annotations"] = []
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    for example in itertools.islice(build_training_stream(cfg), 8):
        assert 1 in example["instances"].gt_classes
    images[3]["annotations"] = []
    with pytest.raises(InputError, match=r"COPY_PASTE\.PROB: no training image has an object"):
        build_training_stream(cfg)


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["INPUT.COPY_PASTE.PROB", 1.5], r"^INPUT\.COPY_PASTE\.PROB 1\.5: it must be 0 to 1$"),
        (["INPUT.COPY_PASTE.MAX_OBJECTS", 0], r"MAX_OBJECTS 0: it must be 1 to 1000$"),
        (["INPUT.COPY_PASTE.MIN_AREA", 0], r"MIN_AREA 0: it must be 1 to"),
        (["INPUT.COPY_PASTE.BLEND", -1.0], r"BLEND -1\.0: it must be 0 to 100$"),
        (["MODEL.MASK_ON", False], r"PROB: objects are cut out by their polygons"),
        (["INPUT.MASK_FORMAT", "bitmask"], r"PROB: objects are cut out by their polygons"),
    ],
)
def test_keys_that_make_no_sense(cfg: CfgNode, keys: list[Any], message: str) -> None:
    cfg.merge_from_list(keys)
    with pytest.raises(InputError, match=message):
        build_training_stream(cfg)


@pytest.mark.parametrize("kind", ["SemanticSegmentor", "PanopticFPN"])
def test_semantic_labels_are_refused(cfg: CfgNode, images: list[dict[str, Any]], kind: str) -> None:
    for image in images:
        image["sem_seg_file_name"] = "labels.png"
    cfg.MODEL.META_ARCHITECTURE = kind
    with pytest.raises(InputError, match=rf"COPY_PASTE\.PROB: a {kind} learns semantic labels"):
        build_training_stream(cfg)
