from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from sklearn.cluster import KMeans

from cityscapes_maskrcnn.modeling.anchors import (
    DETECTRON2_DEFAULT,
    Anchors,
    best_iou,
    fit_anchors,
    format_fit,
    measure_fit,
    read_boxes,
)
from cityscapes_maskrcnn.utils.errors import InputError


def planted(sizes, ratios, each, noise, seed=0):
    """Boxes around every combination of sizes and ratios; noise: as a factor, 0.1 is 10 %."""
    random = np.random.default_rng(seed)
    shapes = np.repeat(Anchors(tuple(sizes), tuple(ratios)).shapes(), each, axis=0)
    return random.permutation(shapes * np.exp(random.normal(0, noise, shapes.shape)))


def street(number, seed):
    """Boxes whose sizes spread over two orders of magnitude: tall people and wide cars."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(4.2, 0.95, number))
    tall = random.random(number) < 0.5
    ratios = np.exp(np.where(tall, 0.85, -0.15) + random.normal(0, 0.3, number))
    return np.stack([sizes / np.sqrt(ratios), sizes * np.sqrt(ratios)], axis=1)


def test_shapes_are_detectron2s():
    for sizes, ratios, anchors in (
        ([[31.0], [73.5]], [0.5, 1.2, 1.7], Anchors((31.0, 73.5), (0.5, 1.2, 1.7))),
        ([[32], [64], [128], [256], [512]], [0.5, 1, 2], DETECTRON2_DEFAULT),
    ):
        cells = DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[ratios], strides=[1] * len(sizes)
        ).cell_anchors
        corners = torch.cat([*cells]).numpy()
        assert anchors.shapes() == pytest.approx(corners[:, 2:] - corners[:, :2], rel=1e-5)


def test_best_iou_by_hand():
    anchors = Anchors((10.0, 40.0), (1.0, 4.0))
    # Anchors: 10x10, 5x20, 40x40, 20x80. 10x20 has 10x10 in common with the first: 100 / 200; with
    # the second 5x20: 100 / 200; with the last 200 / 1600. 30x60 with the third: 30x40 = 1200 of
    # 1800 + 1600 - 1200; with the last 20x60 = 1200 of 1800 + 1600 - 1200: the same.
    assert best_iou([[10, 20], [30, 60], [5, 20]], anchors) == pytest.approx([0.5, 1200 / 2200, 1])


def test_a_planted_structure_is_recovered():
    sizes, ratios = (12, 30, 75, 190, 480), (0.4, 1.0, 2.5)
    boxes = planted(sizes, ratios, each=60, noise=0.05)
    anchors = fit_anchors(boxes)
    assert anchors.sizes == pytest.approx(sizes, rel=0.02)
    assert anchors.ratios == pytest.approx(ratios, rel=0.02)
    # Two normal factors of 5 %: nearly every box has an IoU of more than 0.8 with its anchor.
    assert measure_fit(boxes, anchors)[0].mean_iou > 0.9


def test_small_boxes_are_not_drowned_by_large_ones():
    # As many boxes of each size; four of the five sizes are below 50 pixels.
    boxes = planted((8, 14, 25, 45, 500), (1.0,), each=100, noise=0.15)
    anchors = fit_anchors(boxes, 5, 1)
    assert anchors.sizes == pytest.approx((8, 14, 25, 45, 500), rel=0.1)
    # k-means over pixels spends most of its clusters on how the large ones differ.
    in_pixels = KMeans(5, n_init=10, random_state=0).fit(boxes).cluster_centers_
    by_pixels = Anchors(tuple(np.sort(np.sqrt(in_pixels.prod(axis=1)))), (1.0,))
    fitted = measure_fit(boxes, anchors)
    assert [row.group for row in fitted] == ["all", "small", "medium", "large"]
    assert fitted[1].mean_iou > measure_fit(boxes, by_pixels)[1].mean_iou + 0.25


def test_better_than_the_two_clusterings_and_detectron2s_default_on_unseen_boxes():
    boxes, unseen = street(2000, seed=3), street(2000, seed=4)

    def centres(values, number):
        k_means = KMeans(number, n_init=10, random_state=0).fit(values[:, None])
        return tuple(np.exp(k_means.cluster_centers_[:, 0]))

    sizes = centres(0.5 * np.log(boxes.prod(axis=1)), 5)
    ratios = centres(np.log(boxes[:, 1] / boxes[:, 0]), 3)
    anchors = fit_anchors(boxes)
    # What refinement is for: the two clusterings know nothing of each other.
    assert best_iou(boxes, anchors).mean() > best_iou(boxes, Anchors(sizes, ratios)).mean() + 0.01
    assert best_iou(unseen, anchors).mean() > best_iou(unseen, DETECTRON2_DEFAULT).mean() + 0.04


def test_deterministic_by_seed_and_ascending():
    boxes = street(500, seed=4)
    anchors = fit_anchors(boxes, 5, 3, seed=7)
    assert fit_anchors(boxes.tolist(), 5, 3, seed=7) == anchors
    assert list(anchors.sizes) == sorted(anchors.sizes)
    assert list(anchors.ratios) == sorted(anchors.ratios)
    # Three significant digits: what is written to a config is what was measured.
    assert all(float(f"{each:.3g}") == each for each in (*anchors.sizes, *anchors.ratios))


def test_the_fit_by_hand():
    # Against 32x32: 16x16 has 1/4, 31x31 has 961/1024; 32x32 has 1 and is medium: its area is not
    # below 32 x 32; 128x32 has 1/4 and an area of 4096, medium too.
    rows = measure_fit([[16, 16], [31, 31], [32, 32], [128, 32]], Anchors((32.0,), (1.0,)))
    assert [astuple(row) for row in rows] == [
        ("all", 4, pytest.approx((0.25 + 961 / 1024 + 1 + 0.25) / 4), 0.5, 0.5),
        ("small", 2, pytest.approx((0.25 + 961 / 1024) / 2), 0.5, 0.5),
        ("medium", 2, pytest.approx(0.625), 0.5, 0.5),
    ]
    lines = format_fit(rows, rows).splitlines()
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells == ["small", "2", "0.594 -> 0.594", "50.0 -> 50.0", "50.0 -> 50.0"]


@pytest.mark.parametrize(
    ("boxes", "sizes", "ratios", "message"),
    [
        ([], 5, 3, "no boxes"),
        ([[10, 20]] * 50, 2, 1, "50 boxes have 1 different sizes, too few for 2"),
        ([[10, 10], [20, 20], [30, 30]], 3, 2, "1 different height/width ratios, too few for 2"),
        ([[3, 7], [6, 14], [9, 21]], 2, 2, "1 different height/width ratios"),
        # Different, but not by enough to be written down as different.
        ([[10, 10], [10.001, 10.001]], 2, 1, "1 different sizes, too few for 2"),
        ([[10, 20], [0, 5]], 1, 1, "1 of 2 boxes have no area, first 0x5"),
        ([[10, float("nan")]], 1, 1, "no area"),
        ([[1, 2, 3]], 1, 1, r"shape \(N, 2\)"),
        ([[10, 20]], 0, 1, "at least 1 of each"),
    ],
)
def test_bad_boxes(boxes, sizes, ratios, message):
    with pytest.raises(InputError, match=message):
        fit_anchors(boxes, sizes, ratios)


def test_read_boxes(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("\ufeffwidth,height\n10,20.5\n\n3e1, 7\n", encoding="utf-8")
    assert read_boxes(path).tolist() == [[10, 20.5], [30, 7]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "no boxes in it"),
        (b"width,height\n", "no boxes in it"),
        (b"10,20\n10;20\n", "line 2: expected width,height.*found '10;20'"),
        (b"1,2,3\n", "line 1"),
        (b"10,20\n10,-1\n", "line 2"),
        (b"10,nan\n", "line 1"),
        (b"10,inf\n", "line 1"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not a text file"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "boxes.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_boxes(path)
    assert str(path) in str(caught.value)


def test_seeds_that_k_means_does_not_take():
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"seed {seed}; give --seed, or the config's SEED"):
            fit_anchors([[8, 8], [9, 18]], 2, 2, seed)
    fit_anchors([[8, 8], [9, 18]], 2, 2, 2**32 - 1)
