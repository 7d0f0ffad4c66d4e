from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cityscapes_maskrcnn.modeling.anchors import Anchors
from cityscapes_maskrcnn.visualization.anchor_plot import plot_anchors
from cityscapes_maskrcnn.visualization.style import About

FITTED = (0xD5, 0x5E, 0x00)


def marks(file, color):
    """Centres (x, y) of the largest spots of a colour in the left half, from left to right."""
    with Image.open(file) as image:
        assert image.size == (1440, 720)  # 12 x 6 inches at 120 dots
        pixels = np.asarray(image.convert("RGB"))[:, :720]
    spots, count = ndimage.label((pixels == color).all(axis=2))
    numbers = np.arange(1, count + 1)
    areas = ndimage.sum_labels(np.ones_like(spots), spots, numbers)
    # A mark is larger than the letters beside it.
    centres = ndimage.center_of_mass(np.ones_like(spots), spots, numbers[areas > 60])
    return sorted((x, y) for y, x in centres)


def test_anchors_stand_where_their_width_and_height_are(tmp_path):
    boxes = np.exp(np.random.default_rng(0).normal(4, 0.6, (300, 2)))
    plot_anchors(boxes, Anchors((16.0, 64.0, 256.0), (1.0,)), tmp_path / "new" / "anchors.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["anchors.png"]
    # The legend's mark is at the top left; the squares lie on a diagonal, a factor of 4 apart.
    legend, *found = marks(tmp_path / "new" / "anchors.png", FITTED)
    assert legend[1] < 150
    steps = np.diff(np.array(found), axis=0)
    assert len(found) == 3
    assert steps[0] == pytest.approx(steps[1], abs=1.5)
    assert steps[:, 0] == pytest.approx(-steps[:, 1], abs=1.5)
    assert steps[0][0] > 50


@pytest.mark.parametrize("size", [8, 40])
def test_the_legend_hides_no_mean_and_explains_the_lines(tmp_path, figures, size):
    """With the mean of the default anchors at the left and at the right."""
    plot_anchors([[size, size]] * 3, Anchors((32.0,), (1.0,)), tmp_path / "a.png")
    axis = figures[0].axes[1]
    legend = axis.get_legend()
    assert [text.get_text() for text in legend.get_texts()][-1] == "mean of each"
    assert legend.get_frame().get_alpha() == 1
    box = legend.get_window_extent()
    lines = [line for line in axis.lines if len(line.get_xdata())]
    drawn = [*lines, *axis.patches]
    assert len(drawn) >= 4  # two means and two histograms
    assert not [one for one in drawn if one.get_window_extent().overlaps(box)]


@pytest.mark.parametrize(
    ("most", "written"),
    [(1, ["1"]), (30, ["1", "2", "5", "10", "20"]), (4, ["3", "4"])],
)
def test_the_colour_bar_has_plain_numbers(tmp_path, figures, most, written):
    """Not 6x10^0, which a logarithmic scale of a few boxes would have."""
    boxes = [[20, 30]] * most + [[100, 50]] * int(written[0])
    plot_anchors(boxes, Anchors((32.0,), (1.0,)), tmp_path / "a.png")
    (bar,) = [axis for axis in figures[0].axes if axis.get_ylabel() == "boxes in a cell"]
    labels = [*bar.get_yticklabels(), *bar.get_yticklabels(minor=True)]
    low, high = bar.get_ylim()
    texts = [label.get_text() for label in labels if low <= label.get_position()[1] <= high]
    assert list(dict.fromkeys(filter(None, texts))) == written


def test_labels_have_units_and_do_not_overlap(tmp_path, figures, assert_readable):
    boxes = np.exp(np.random.default_rng(0).normal(4, 0.9, (300, 2)))
    about = About(dataset="some_train", num_images=12, generated=True, protocol="k-means")
    anchors = Anchors((19.87, 36.7, 61.1, 105, 190), (0.5, 1.0, 2.0))
    plot_anchors(boxes, anchors, tmp_path / "a.png", about)
    assert_readable(figures[0])
    labels = [text.get_text() for text in figures[0].axes[0].texts]
    assert labels == ["19.9 px", "36.7 px", "61.1 px", "105 px", "190 px"]
    assert figures[0].texts[-1].get_text() == (
        "GENERATED SCENES, not Cityscapes · some_train · 12 images · k-means"
    )


def test_odd_boxes(tmp_path):
    plot_anchors([[1e-3, 1e6], [20, 30]] * 3, Anchors((20.0,), (1.0,)), tmp_path / "odd.png")
    assert (tmp_path / "odd.png").stat().st_size > 1000
