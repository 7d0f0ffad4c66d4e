from __future__ import annotations

import numpy as np
import pytest

from cityscapes_maskrcnn.visualization.label_layout import place_labels


def place(boxes, sizes):
    """Labels of some sizes in a picture 100 high and 200 wide."""
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return place_labels(
        boxes, centres, np.array(sizes, dtype=np.float64).reshape(-1, 2), (100, 200)
    )


@pytest.mark.parametrize(
    ("boxes", "sizes", "places"),
    [
        # In the middle of a large object: centre (60, 50), corner at 60 - 10, 50 - 5.
        ([[20, 20, 100, 80]], [[20, 10]], [(50.0, 45.0)]),
        # Above a small one, whose middle is x = 55: 55 - 10; its top 40 less the height 10.
        ([[50, 40, 60, 55]], [[20, 10]], [(45.0, 30.0)]),
        # Below where the picture ends above.
        ([[50, 2, 60, 17]], [[20, 10]], [(45.0, 17.0)]),
        # Beside where the label is wider than the room at the border.
        ([[0, 40, 10, 55]], [[20, 10]], [(10.0, 42.5)]),
        # Quintuplets: above, below, right, left (the middle 47.5 less half of the height), none.
        (
            [[50, 40, 60, 55]] * 5,
            [[20, 10]] * 5,
            [(45.0, 30.0), (45.0, 55.0), (60.0, 42.5), (30.0, 42.5), None],
        ),
        # Above the first (x 40 to 70, y 30 to 40) lies a smaller one, so its label goes below.
        ([[45, 40, 65, 60], [50, 30, 58, 39]], [[30, 10], [10, 5]], [(40.0, 60.0), (49.0, 25.0)]),
        # All around the first are ten others: its label would hide one or two of them whole.
        (
            [
                [40, 40, 60, 60],
                *([x, y, x + 9, y + 9] for x in (31, 41, 51, 61) for y in (30, 61)),
                [30, 46, 39, 55],
                [61, 46, 70, 55],
            ],
            [[28, 10], *[[300, 10]] * 10],
            [None] * 11,
        ),
        ([], [], []),
    ],
)
def test_places(boxes, sizes, places):
    assert place(boxes, sizes) == places


def test_no_labels_overlap_in_a_crowd():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, (180, 80), (60, 2))
    boxes = np.hstack([corners, corners + rng.uniform(3, 40, (60, 2))])
    sizes = rng.uniform((10, 6), (30, 8), (60, 2))
    places = place(boxes, sizes)
    labels = [
        (*spot, spot[0] + width, spot[1] + height)
        for spot, (width, height) in zip(places, sizes, strict=True)
        if spot
    ]
    assert 5 < len(labels) < 60
    for index, (ax0, ay0, ax1, ay1) in enumerate(labels):
        assert ax0 >= 0 and ay0 >= 0 and ax1 <= 200 and ay1 <= 100
        for bx0, by0, bx1, by1 in labels[index + 1 :]:
            assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0
