from __future__ import annotations

import numpy as np

from cityscapes_maskrcnn.visualization.label_layout import place_labels

PICTURE = (100, 200)  # height, width


def place(boxes, sizes, picture=PICTURE):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return place_labels(boxes, centres, np.array(sizes, dtype=np.float64).reshape(-1, 2), picture)


def test_a_large_object_carries_its_label_in_its_middle():
    # centre (60, 50), label 20 x 10: corner at 60 - 10, 50 - 5
    assert place([[20, 20, 100, 80]], [[20, 10]]) == [(50.0, 45.0)]


def test_a_small_object_has_its_label_above():
    # middle of the box is x = 55, label 20 wide: 55 - 10; its top 40 less the height 10
    assert place([[50, 40, 60, 55]], [[20, 10]]) == [(45.0, 30.0)]


def test_below_where_the_picture_ends_above():
    assert place([[50, 2, 60, 17]], [[20, 10]]) == [(45.0, 17.0)]


def test_dropped_where_nothing_is_left():
    # Quintuplets: above, below, right, left (the middle 47.5 less half of the height), none.
    expected = [(45.0, 30.0), (45.0, 55.0), (60.0, 42.5), (30.0, 42.5), None]
    assert place([[50, 40, 60, 55]] * 5, [[20, 10]] * 5) == expected


def test_a_label_wider_than_the_room_at_the_border_goes_beside():
    assert place([[0, 40, 10, 55]], [[20, 10]]) == [(10.0, 42.5)]


def test_a_label_does_not_hide_a_smaller_object():
    # Above the first (x 40 to 70, y 30 to 40) lies a smaller one, so its label goes below.
    boxes = [[45, 40, 65, 60], [50, 30, 58, 39]]
    assert place(boxes, [[30, 10], [10, 5]])[0] == (40.0, 60.0)


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


def test_no_objects():
    assert place([], []) == []
