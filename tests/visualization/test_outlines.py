from __future__ import annotations

import numpy as np
from matplotlib.path import Path as Outline

from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap
from cityscapes_maskrcnn.visualization.outlines import frame_contours, mask_contours


def test_contours_enclose_exactly_the_pixels_of_the_mask():
    mask = np.zeros((50, 60), dtype=bool)
    mask[10:30, 5:45] = True
    (contour,) = mask_contours(mask)
    np.testing.assert_array_equal(contour.min(axis=0), (5, 10))
    np.testing.assert_array_equal(contour.max(axis=0), (45, 30))

    mask = np.random.default_rng(1).random((40, 70)) > 0.45
    rows, columns = np.mgrid[:40, :70]
    centres = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5])
    inside = np.zeros(len(centres), dtype=int)
    for contour in mask_contours(mask):
        inside += Outline(contour).contains_points(centres)
    # Within an odd number of nested borders.
    np.testing.assert_array_equal((inside % 2 == 1).reshape(40, 70), mask)


def test_a_mask_that_knows_its_part_of_the_frame_has_the_contours_of_the_whole():
    mask = np.zeros((50, 60), dtype=bool)
    assert frame_contours(mask_from_bitmap(mask)) == []
    mask[10:30, 5:45] = True
    mask[15:20, 10:20] = False
    expected = mask_contours(mask)
    assert len(expected) == 2
    for contour, whole in zip(frame_contours(mask_from_bitmap(mask)), expected, strict=True):
        np.testing.assert_array_equal(contour, whole)
