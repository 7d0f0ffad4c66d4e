"""Crops and run-lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cityscapes_maskrcnn.evaluation.masks import (
    CroppedMask,
    coco_rle,
    crop_mask,
    run_lengths,
    tight_box,
)


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
    assert run_lengths(crop, 6, 8).tolist() == [48]


def test_tight_box_of_a_loose_crop() -> None:
    bitmap = np.zeros((5, 5), dtype=bool)
    bitmap[1:3, 2] = True
    # Column 10 + 2, row 20 + 1, 1 wide, 2 high.
    assert tight_box(CroppedMask(10, 20, bitmap)) == (12.0, 21.0, 1.0, 2.0)


def test_run_lengths_go_down_the_columns() -> None:
    bitmap = np.array([[1, 1], [1, 0]], dtype=bool)
    # A frame 3 high, 4 wide; the box at column 1, row 1. Column-major: column 0 (3 zeros), a zero,
    # two ones, a zero, a one, a zero, column 3 (3 zeros).
    assert run_lengths(CroppedMask(1, 1, bitmap), 3, 4).tolist() == [4, 2, 1, 1, 4]


def test_runs_join_over_the_border_between_columns() -> None:
    bitmap = np.array([[1, 1], [1, 1], [0, 1]], dtype=bool)
    # 3 high: columns 1 1 0 | 1 1 1 in a frame of width 3, from column 1.
    assert run_lengths(CroppedMask(1, 0, bitmap), 3, 3).tolist() == [3, 2, 1, 3]
    assert run_lengths(CroppedMask(0, 0, np.ones((3, 3), dtype=bool)), 3, 3).tolist() == [0, 9]


def test_rle_equals_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(1500):
        height, width = random.integers(1, 14, size=2).tolist()
        full = random.random((height, width)) < random.choice([0.0, 0.05, 0.5, 0.95, 1.0])
        if random.random() < 0.5:
            full[:, : random.integers(0, width + 1)] = True  # full height
        expected = coco_mask.encode(np.asfortranarray(full.astype(np.uint8)))
        assert coco_rle(crop_mask(full), height, width) == expected
        # A box wider than the mask, the whole frame even, gives the same.
        assert coco_rle(CroppedMask(0, 0, full), height, width) == expected
