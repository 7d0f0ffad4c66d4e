"""Runs of masks and COCO's run-lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cityscapes_maskrcnn.evaluation.masks import RunMask, coco_rles, mask_from_bitmap
from cityscapes_maskrcnn.utils.errors import InputError


def runs(mask: RunMask) -> list[tuple[int, int]]:
    return list(zip(mask.starts.tolist(), mask.ends.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(6, 8), (0, 8), (6, 0)])
def test_empty_mask(shape: tuple[int, int]) -> None:
    mask = mask_from_bitmap(np.zeros(shape), height=6, width=8)
    assert (runs(mask), mask.area(), mask.box()) == ([], 0, (0, 0, 0, 0))
    assert mask.frame().tolist() == [[0] * 8] * 6


def test_runs_go_down_the_columns() -> None:
    bitmap = np.array([[1, 7], [1, 0]])
    # A frame 3 high, 4 wide; the box at column 1, row 1: positions 1 * 3 + 1 and below, 2 * 3 + 1.
    mask = mask_from_bitmap(bitmap, x0=1, y0=1, height=3, width=4)
    assert (runs(mask), mask.area(), mask.box()) == ([(4, 6), (7, 8)], 3, (1, 1, 3, 3))
    assert mask.frame().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]]


def test_runs_join_over_the_border_between_columns() -> None:
    bitmap = np.array([[1, 1], [1, 1], [0, 1]])
    # 3 high: columns 1 1 0 | 1 1 1 in a frame of width 3, from column 1.
    assert runs(mask_from_bitmap(bitmap, x0=1)) == [(3, 5), (6, 9)]
    assert runs(mask_from_bitmap(np.ones((3, 3)))) == [(0, 9)]


@pytest.mark.parametrize(("x0", "y0"), [(0, 1), (1, 0), (-1, 0), (0, -1)])
def test_mask_outside_of_its_frame(x0: int, y0: int) -> None:
    with pytest.raises(InputError, match=r"a mask reaches out of .* 5 x 4"):
        mask_from_bitmap(np.ones((5, 4)), x0=x0, y0=y0, height=5, width=4)


def test_equals_pycocotools() -> None:
    random = np.random.default_rng(0)
    assert coco_rles([]) == []
    for _ in range(1000):
        height, width = random.integers(1, 14, size=2).tolist()
        full = random.random((height, width)) < random.choice([0.0, 0.05, 0.5, 0.95, 1.0])
        if random.random() < 0.5:
            full[:, : random.integers(0, width + 1)] = True  # full height
        expected = coco_mask.encode(np.asfortranarray(full.astype(np.uint8)))
        mask = mask_from_bitmap(full)
        assert coco_rles([mask, mask]) == [expected] * 2
        x0, y0, x1, y1 = mask.box()
        assert [x0, y0, x1 - x0, y1 - y0] == coco_mask.toBbox(expected).tolist()
        assert mask.area() == full.sum()
        np.testing.assert_array_equal(mask.frame(), full)
