from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.modeling.drift import GroupDrift
from cityscapes_maskrcnn.visualization.drift_chart import plot_drift
from cityscapes_maskrcnn.visualization.style import About

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
GROUPS = ("stem", "res2", "res3", "res4", "res5", "backbone")


def make_drift(weights, statistics):
    return [
        GroupDrift(group, 1, weight, 9.0, 9.0, statistic)
        for group, weight, statistic in zip(GROUPS, weights, statistics, strict=True)
    ]


def bar_heights(file, color):
    """Height in pixels of every bar of a colour, from left to right."""
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.size == (1080, 456)  # 9 x 3.8 inches at 120 dots
        inside = (np.asarray(image.convert("RGB")) == color).all(axis=2)
    columns = inside.sum(axis=0)
    starts = np.flatnonzero((columns[1:] > 0) & (columns[:-1] == 0))
    # A few columns in: the first one is mixed with white.
    return [int(columns[start + 5]) for start in starts]


def test_bars_have_the_proportions_of_the_numbers(tmp_path):
    weights = (0.001, 0.002, 0.003, 0.004, 0.01, 0.5)
    statistics = (0.8, 0.6, 0.4, 0.2, 0.0, 0.5)
    plot_drift(make_drift(weights, statistics), tmp_path / "new" / "drift.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["drift.png"]
    blue = bar_heights(tmp_path / "new" / "drift.png", BLUE)
    orange = bar_heights(tmp_path / "new" / "drift.png", ORANGE)
    # The whole backbone has no bar: it would be the sixth. A bar of nothing is not seen.
    assert len(blue) == 5
    assert len(orange) == 4
    # Each half of the picture has a scale of its own.
    assert blue == pytest.approx([blue[-1] * w / 0.01 for w in weights[:5]], abs=2)
    assert orange == pytest.approx([orange[0] * s / 0.8 for s in statistics[:4]], abs=2)
    assert blue[-1] == pytest.approx(orange[0], abs=2)
    assert blue[-1] > 200


def test_nothing_moved_and_moved_from_zero(tmp_path):
    plot_drift(make_drift([0.0] * 6, [0.1, math.inf, *[0.1] * 4]), tmp_path / "drift.png")
    assert bar_heights(tmp_path / "drift.png", BLUE) == []
    assert len(bar_heights(tmp_path / "drift.png", ORANGE)) == 4


def test_a_backbone_without_statistics_has_one_half(tmp_path):
    plot_drift(make_drift([0.1] * 6, [math.nan] * 6), tmp_path / "drift.png")
    with Image.open(tmp_path / "drift.png") as image:
        assert image.size == (600, 456)  # 5 x 3.8 inches at 120 dots
        columns = (np.asarray(image.convert("RGB")) == BLUE).all(axis=2).any(axis=0)
    # Five bars; the last ends near the right border.
    assert (columns[1:] > columns[:-1]).sum() == 5
    assert columns[540:].any()


def test_the_picture_is_readable(tmp_path, figures, assert_readable):
    about = About(dataset="some_train", num_images=5, model="ResNet-50, output/run")
    for number, statistics in enumerate((123.4, math.nan)):
        plot_drift(make_drift([0.1] * 6, [statistics] * 6), tmp_path / "drift.png", about)
        assert_readable(figures[number])
    assert figures[0].texts[-1].get_text() == "some_train · 5 images · ResNet-50, output/run"
