"""Mask targets from polygons as tensors, against Detectron2's of the same polygons."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.data.prefetch import map_tensors
from cityscapes_maskrcnn.modeling import polygon_masks
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons

Polygons = list[list[np.ndarray]]

SQUARE = np.array([11.0, 21.0, 13.0, 21.0, 13.0, 23.0, 11.0, 23.0])
LOWER_RIGHT = np.array([12.0, 22.0, 14.0, 22.0, 14.0, 24.0, 12.0, 24.0])
BOX = torch.tensor([[10.0, 20.0, 14.0, 24.0]])


def random_polygon(rng: np.random.Generator) -> np.ndarray:
    """Draw a polygon of one of the kinds that are hard to rasterize."""
    vertices = int(rng.choice([3, 4, 5, 8, 20, 60, 400], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.08, 0.02]))
    # From a hundredth of a pixel to a good part of an image.
    points = rng.standard_normal((vertices, 2)) * 10 ** rng.uniform(-2, 2.7)
    points += rng.uniform(-50, 600, 2)
    kind = rng.integers(6)
    if kind == 1:
        points = points.round()
    elif kind == 2:  # half-integers, some vertices repeated
        points = (2 * points).round()[rng.integers(0, vertices, vertices)] / 2
    elif kind == 3:  # vertical and horizontal edges
        for index in range(1, vertices):
            points[index, index % 2] = points[index - 1, index % 2]
    elif kind == 4:  # a point
        points[:] = points[0]
    elif kind == 5:  # round
        angles = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = points[0] + circle * 10 ** rng.uniform(-1, 2.5)
    return points.reshape(-1)


def random_box(rng: np.random.Generator, polygons: list[np.ndarray]) -> np.ndarray:
    points = np.concatenate(polygons).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    tight = np.concatenate([low, high])
    kind = rng.integers(5)
    if kind == 0:  # tenths, halves, ... of a pixel of the image in a pixel of the mask
        return np.concatenate([low, low + 28 * rng.choice([0.1, 0.25, 0.5, 1, 2, 10])])
    # Detectron2 walks along every edge, seconds where an image fills a tenth of a pixel.
    if kind == 1 and (high - low).max() < 20:  # without an area, or nearly
        return np.concatenate([low, low + rng.choice([0, 0.1, 0.05, -1, 0.1000001, 1e-3], 2)])
    if kind == 2:
        return tight.round()
    if kind == 3:  # perhaps elsewhere
        return np.sort(rng.uniform(-100, 700, (2, 2)), axis=0).reshape(-1)
    return tight + rng.normal(0, 0.2, 4) * np.tile(high - low, 2)


def random_instances(seed: int, number: int) -> tuple[Polygons, Tensor]:
    rng = np.random.default_rng(seed)
    parts = rng.choice([1, 1, 1, 2, 3, 6], number)
    instances = [[random_polygon(rng) for _ in range(one)] for one in parts]
    boxes = np.stack([random_box(rng, polygons) for polygons in instances])
    return instances, torch.from_numpy(boxes).to(torch.float32)


def test_literal() -> None:
    # Four pixels of the image, four of the mask: the square is rows and columns 1 and 2. The second
    # instance has two polygons that share pixel (2, 2), which is inside nevertheless.
    masks = FlatPolygons.from_polygons([[SQUARE], [SQUARE, LOWER_RIGHT], []])
    assert masks.crop_and_resize(BOX.repeat(3, 1), 4).int().tolist() == [
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]


@pytest.mark.parametrize("mask_size", [14, 28])
def test_equal_to_detectron2(mask_size: int) -> None:
    instances, boxes = random_instances(seed=mask_size, number=200)
    expected = PolygonMasks(instances).crop_and_resize(boxes, mask_size)
    assert 0.02 < expected.float().mean() < 0.5
    masks = FlatPolygons.from_polygons(instances)
    rasterized = [
        masks[start : start + 20]._rasterize(boxes[start : start + 20], mask_size)
        for start in range(0, len(masks), 20)
    ]
    wrong = (torch.cat(rasterized) != expected).flatten(1).any(dim=1)
    assert wrong.nonzero().flatten().tolist() == []


def test_boxes_of_other_precision_equal_to_detectron2() -> None:
    instances, boxes = random_instances(seed=1, number=100)
    for dtype in (torch.float16, torch.float64):
        expected = PolygonMasks(instances).crop_and_resize(boxes.to(dtype), 28)
        masks = FlatPolygons.from_polygons(instances)
        assert torch.equal(masks.crop_and_resize(boxes.to(dtype), 28), expected), dtype


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    instances, boxes = random_instances(seed=2, number=50)
    masks = FlatPolygons.from_polygons(instances)
    whole = masks.crop_and_resize(boxes, 28)
    monkeypatch.setattr(polygon_masks, "_CHUNK", 100_000)  # 100,000 / (28 * (... + 6 * 28)): 2-16
    assert torch.equal(masks.crop_and_resize(boxes, 28), whole)
    monkeypatch.setattr(polygon_masks, "_CHUNK", 1)  # one instance at a time
    assert torch.equal(masks.crop_and_resize(boxes, 28), whole)


def test_batch_of_images_without_waiting() -> None:
    # Four images, 64 regions each, whose instances the device has chosen.
    images = [random_instances(seed=seed, number=9) for seed in range(4)]
    flat = [FlatPolygons.from_polygons(instances) for instances, _ in images]
    chosen = torch.from_numpy(np.random.default_rng(0).integers(0, 36, 256))
    boxes = torch.cat([boxes for _, boxes in images])[chosen]
    with OperationCounter() as counter:
        masks = FlatPolygons.cat(flat)[chosen]
        targets = masks._rasterize(boxes, 28)
    assert not counter.waiting
    everything = PolygonMasks([polygons for instances, _ in images for polygons in instances])
    assert torch.equal(targets, everything[chosen].crop_and_resize(boxes, 28))


@pytest.mark.parametrize(
    "item",
    [
        2,
        -1,
        slice(1, 4),
        slice(None, None, 3),
        [4, 0, 0],
        [],
        torch.tensor([3, 3, 1]),
        torch.tensor([True, False, True, False, False, True]),
    ],
    ids=str,
)
def test_indexing_equal_to_detectron2(item: int | slice | list[int] | Tensor) -> None:
    instances, boxes = random_instances(seed=3, number=6)
    expected = PolygonMasks(instances)[item]
    masks = FlatPolygons.from_polygons(instances)[item]
    assert len(masks) == len(expected)
    boxes = boxes[:1].expand(len(masks), 4)
    assert torch.equal(masks.crop_and_resize(boxes, 28), expected.crop_and_resize(boxes, 28))


def test_field_of_instances() -> None:
    # Detectron2 selects, moves and joins fields; a loader's worker pickles them, tensors as files.
    polygons, boxes = random_instances(seed=4, number=8)
    image = Instances((600, 600), gt_boxes=Boxes(boxes))
    image.gt_masks = FlatPolygons.from_polygons(polygons)
    assert b"torch" not in bytes(ForkingPickler.dumps(image.gt_masks))
    image = pickle.loads(pickle.dumps(image))
    assert map_tensors(image, lambda tensor: tensor.to("meta")).gt_masks.device.type == "meta"
    both = Instances.cat([image[:5], image[torch.tensor([5, 6, 7])]]).to("cpu")
    assert repr(both.gt_masks) == "FlatPolygons(num_instances=8)"
    targets = both.gt_masks.crop_and_resize(both.gt_boxes.tensor, 28)
    assert torch.equal(targets, PolygonMasks(polygons).crop_and_resize(boxes, 28))


def test_a_device_without_float64() -> None:
    assert FlatPolygons.from_polygons([[SQUARE]]).to("mps").device.type == "cpu"


def test_no_instances() -> None:
    masks = FlatPolygons.from_polygons([])
    assert masks.crop_and_resize(torch.empty(0, 4), 28).shape == (0, 28, 28)
    both = FlatPolygons.cat([masks, FlatPolygons.from_polygons([[SQUARE]]), masks])
    assert both.crop_and_resize(BOX, 4).sum() == 4
    assert FlatPolygons.from_polygons([[SQUARE]])[[]].crop_and_resize(BOX[:0], 4).shape == (0, 4, 4)
