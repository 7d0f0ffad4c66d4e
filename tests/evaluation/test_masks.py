"""Crops and run-lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cityscapes_maskrcnn.evaluation.masks import (
    CroppedMask,
    Mask,
    RunMask,
    coco_rles,
    crop_mask,
    tight_box,
    to_runs,
)
from cityscapes_maskrcnn.utils.errors import InputError


def runs(mask: Mask, height: int, width: int) -> list[tuple[int, int]]:
    listed = to_runs(mask, height, width)
    return list(zip(listed.starts.tolist(), listed.ends.tolist(), strict=True))


def test_crop_is_the_smallest_box() -> None:
    full = np.zeros((6, 8), dtype=bool)
    full[2, 3] = full[4, 6] = True
    crop = crop_mask(full)
    assert (crop.x0, crop.y0) == (3, 2)
    assert crop.bitmap.astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert crop.area() == 2
    assert tight_box(crop) == (3.0, 2.0, 4.0, 3.0)


def test_crop_does_not_hold_the_frame() -> None:
    full = np.ones((6, 8), dtype=bool)
    crop = crop_mask(full)
    full[:] = False
    assert crop.area() == 48


@pytest.mark.parametrize("shape", [(6, 8), (0, 8), (6, 0)])
def test_empty_mask(shape: tuple[int, int]) -> None:
    crop = crop_mask(np.zeros(shape, dtype=bool))
    assert crop.bitmap.shape == (0, 0)
    assert crop.area() == 0
    assert tight_box(crop) == (0.0, 0.0, 0.0, 0.0)
    assert runs(crop, 6, 8) == []
    empty = to_runs(crop, 6, 8)
    assert (empty.area(), empty.bitmap.shape) == (0, (0, 0))


def test_tight_box_of_a_loose_crop() -> None:
    bitmap = np.zeros((5, 5), dtype=bool)
    bitmap[1:3, 2] = True
    # Column 10 + 2, row 20 + 1, 1 wide, 2 high.
    assert tight_box(CroppedMask(10, 20, bitmap)) == (12.0, 21.0, 1.0, 2.0)


def test_runs_go_down_the_columns() -> None:
    bitmap = np.array([[1, 1], [1, 0]], dtype=bool)
    # A frame 3 high, 4 wide; the box at column 1, row 1: positions 1 * 3 + 1 and below, 2 * 3 + 1.
    assert runs(CroppedMask(1, 1, bitmap), 3, 4) == [(4, 6), (7, 8)]


def test_runs_join_over_the_border_between_columns() -> None:
    bitmap = np.array([[1, 1], [1, 1], [0, 1]], dtype=bool)
    # 3 high: columns 1 1 0 | 1 1 1 in a frame of width 3, from column 1.
    assert runs(CroppedMask(1, 0, bitmap), 3, 3) == [(3, 5), (6, 9)]
    assert runs(CroppedMask(0, 0, np.ones((3, 3), dtype=bool)), 3, 3) == [(0, 9)]


@pytest.mark.parametrize("mask", [(0, 1), (1, 0), (-1, 0), (0, -1)])
def test_mask_outside_of_its_frame(mask: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"a mask reaches out of .* 5 x 4"):
        to_runs(CroppedMask(*mask, np.ones((5, 4), dtype=bool)), 5, 4)
    positions = np.array([20, 21])
    with pytest.raises(InputError, match=r"a mask reaches out of .* 5 x 4"):
        to_runs(RunMask(positions[:1], positions[1:], 5), 5, 4)
    with pytest.raises(InputError, match=r"a mask reaches out of .* 5 x 4"):
        to_runs(RunMask(positions[:0], positions[:0], 6), 5, 4)


def test_rle_equals_pycocotools_and_runs_crop_back() -> None:
    random = np.random.default_rng(0)
    assert coco_rles([], 4, 4) == []
    for _ in range(1500):
        height, width = random.integers(1, 14, size=2).tolist()
        full = random.random((height, width)) < random.choice([0.0, 0.05, 0.5, 0.95, 1.0])
        if random.random() < 0.5:
            full[:, : random.integers(0, width + 1)] = True  # full height
        expected = coco_mask.encode(np.asfortranarray(full.astype(np.uint8)))
        # A box wider than the mask, the whole frame even, gives the same.
        masks = [crop_mask(full), CroppedMask(0, 0, full), to_runs(crop_mask(full), height, width)]
        assert coco_rles(masks, height, width) == [expected] * 3
        for mask in masks:
            assert mask.area() == full.sum()
            assert tight_box(mask) == tuple(coco_mask.toBbox(expected).tolist())
        assert (masks[2].x0, masks[2].y0) == (masks[0].x0, masks[0].y0)
        np.testing.assert_array_equal(masks[2].bitmap, masks[0].bitmap)
