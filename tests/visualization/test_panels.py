from __future__ import annotations

import numpy as np

from cityscapes_maskrcnn.visualization.panels import side_by_side


def picture(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_pictures_stand_below_their_captions():
    row = side_by_side([("one", picture(40, 200, 10)), ("two", picture(30, 100, 90))])
    # Letters of at least 14 pixels; the bar is 1.8 times as high, 25; the gap half, 7.
    assert row.shape == (25 + 40, 200 + 7 + 100, 3)
    assert row.dtype == np.uint8
    assert (row[25:, :200] == 10).all()
    assert (row[25:55, 207:] == 90).all()
    assert (row[55:, 207:] == 255).all()
    assert (row[:, 200:207] == 255).all()
    for start, end in [(0, 200), (207, 307)]:
        assert row[:25, start:end].min() < 60  # ink
        assert (row[:2, start:end] == 255).all()


def test_letters_grow_with_the_pictures():
    # 2048 / 45 = 45.5, 46 high; 1.8 * 46 = 82.8
    assert side_by_side([("one", picture(10, 2048, 0))]).shape == (83 + 10, 2048, 3)
