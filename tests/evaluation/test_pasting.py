"""Pasted masks against Detectron2's paste_masks_in_image, pixel for pixel."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image

from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.evaluation.pasting import grid_sample, paste_masks
from cityscapes_maskrcnn.utils.errors import InputError

Float32 = np.ndarray
# 0.5 and its neighbours in float32: which side a pixel falls on depends on the last bits.
NEAR_HALF = np.float32(0.5) + np.arange(-2, 3, dtype=np.float32) * np.float32(2.0**-24)


def random_masks(random: np.random.Generator, kind: str, number: int) -> Float32:
    size = int(random.choice([1, 2, 14, 28, 28, 56, 224]))
    shape = (number, size, size)
    if kind == "smooth":  # like a network's
        coarse = torch.from_numpy(random.normal(0, 3, size=(number, 1, 7, 7)).astype(np.float32))
        fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
        return fine[:, 0].sigmoid().numpy()
    values = {
        "noise": random.random(shape),
        "binary": random.integers(0, 2, shape),
        "all": np.ones(shape),
        "half": np.full(shape, 0.5),
        "near half": random.choice(NEAR_HALF, shape),
        "few values": random.choice([0, 0.25, 0.5, 0.75, 1], shape),
        "no probabilities": random.normal(0, 50, shape),
    }
    return values[kind].astype(np.float32)


def random_boxes(random: np.random.Generator, number: int, height: int, width: int) -> Float32:
    """Tiny to huge, inside and partly outside, some exactly on pixels or without area."""
    centres = random.uniform(-0.2, 1.2, size=(number, 2)) * [width, height]
    sizes = np.exp(random.uniform(np.log(0.02), np.log(600), size=(number, 2)))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    grid = random.choice([0, 0, 1, 2])
    boxes = np.round(boxes * grid) / grid if grid else boxes
    if random.random() < 0.5:  # as detector_postprocess does
        boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes = boxes.astype(np.float32)
    # Detectron2 fails where no pixel lies near a box.
    low, high = np.floor(boxes[:, :2]) - 1, np.ceil(boxes[:, 2:]) + 1
    return boxes[((low <= [width, height]) & (high >= 0)).all(axis=1)]


def assert_same_pixels(
    probabilities: Float32, boxes: Float32, height: int, width: int
) -> list[RunMask]:
    full = paste_masks_in_image(
        torch.from_numpy(probabilities), torch.from_numpy(boxes), (height, width)
    )
    masks = paste_masks(probabilities, boxes, height, width)
    for mask, expected, box in zip(masks, full.numpy(), boxes, strict=True):
        runs = mask_from_bitmap(expected)
        np.testing.assert_array_equal(mask.starts, runs.starts, str(box))
        np.testing.assert_array_equal(mask.ends, runs.ends, str(box))
    return masks


@pytest.mark.parametrize(
    "kind",
    ["smooth", "noise", "binary", "all", "half", "near half", "few values", "no probabilities"],
)
def test_same_pixels_as_detectron2(kind: str) -> None:
    torch.set_num_threads(1)
    random = np.random.default_rng(len(kind))
    compared = inside = 0
    for _ in range(60):
        height, width = random.integers(1, 130, size=2).tolist()
        boxes = random_boxes(random, 8, height, width)
        if not len(boxes):
            continue
        probabilities = random_masks(random, kind, len(boxes))
        masks = assert_same_pixels(probabilities, boxes, height, width)
        compared += len(masks)
        inside += sum(mask.area() > 0 for mask in masks)
    assert compared > 250
    assert inside > 60 or kind == "near half"


def test_same_pixels_in_a_full_size_image() -> None:
    random = np.random.default_rng(0)
    probabilities = random_masks(random, "smooth", 6)
    boxes = np.array(
        [
            [0, 0, 2048, 1024],
            [0.3, 0.6, 2047.7, 1023.2],
            [2040.5, 1000.25, 2048, 1024],
            [100.1, 200.2, 900.3, 700.4],
            [17.5, 33.5, 18.25, 900],
            [1e-3, 1e-3, 2e-3, 2e-3],
        ],
        dtype=np.float32,
    )
    assert_same_pixels(probabilities, boxes, 1024, 2048)


def test_an_untrained_mask_head_takes_no_more_memory_than_its_masks() -> None:
    """It gives 0.5 nearly everywhere, so that nearly every pixel is decided by interpolation."""
    random = np.random.default_rng(1)
    probabilities = (0.5 + random.normal(0, 1e-4, (3, 28, 28))).astype(np.float32)
    boxes = np.array([[10, 10, 290, 290]] * 3, dtype=np.float32)
    paste_masks(probabilities[:1], boxes[:1], 300, 300)  # what is allocated only once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    paste_masks(probabilities, boxes, 300, 300)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # 240,000 pixels; with 3 KB each they took 740 MB.
    assert grown < 200 * 1024, f"{grown} KB"
    assert_same_pixels(probabilities, boxes, 300, 300)


def test_a_whole_box_by_hand() -> None:
    # One cell of 1 over rows 2 to 6 (exclusive): the value falls off linearly to 0 at half a cell,
    # 2 pixels, outside; it is above 0.5 inside the box. The same for columns.
    (mask,) = paste_masks(
        np.ones((1, 1, 1), dtype=np.float32), np.array([[1, 2, 5, 6]], dtype=np.float32), 9, 9
    )
    # At the corners 0.875 * 0.875 is left of it, between 1 and 5 wide: rows 2 to 5, columns 1 to 4.
    assert mask.box() == (1, 2, 5, 6)
    # The pixel at a corner is 1.5 from the centre, of 4: (1 - 1.5 / 4) ** 2 = 0.39, so outside.
    assert mask.frame()[2:6, 1:5].tolist() == [
        [0, 1, 1, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
        [0, 1, 1, 0],
    ]


def test_degenerate_boxes_are_empty() -> None:
    boxes = np.array(
        [[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [-50, 0, -40, 9], [0, 500, 9, 510]],
        dtype=np.float32,
    )
    masks = paste_masks(np.ones((5, 28, 28), dtype=np.float32), boxes, 20, 20)
    assert [mask.area() for mask in masks] == [0] * 5
    none = np.zeros((0, 4), dtype=np.float32)
    assert paste_masks(np.zeros((0, 28, 28), dtype=np.float32), none, 20, 20) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(0, 3), (1, 2)], ids=["mask", "box"])
def test_what_is_not_finite(where: tuple[int, int], bad: float) -> None:
    arrays = [np.ones((1, 28, 28), np.float32), np.array([[0, 0, 9, 9]], np.float32)]
    arrays[where[0]][0, where[1]] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        paste_masks(*arrays, height=20, width=20)


def test_samples_as_torch_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    for size in (1, 7, 28):
        maps = random.random((3, size, size), dtype=np.float32)
        index = np.repeat(np.arange(3), 20_000)
        grid = random.uniform(-1.2, 1.2, (2, len(index))).astype(np.float32)
        # Beside the outermost centres, on a centre, and infinitely far away.
        grid[:, :4] = [[-1, 1, 0, np.inf], [1, -1, 0, 0]]
        expected = torch.nn.functional.grid_sample(
            torch.from_numpy(maps)[:, None],
            torch.from_numpy(np.stack(grid, axis=1)).reshape(3, 1, -1, 2),
            align_corners=False,
        )
        found = grid_sample(maps, index, grid[0], grid[1])
        np.testing.assert_array_equal(found, expected.numpy().ravel())
