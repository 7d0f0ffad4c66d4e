from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.overfitting import find_gap, plot_overfitting

TRAINING = {0: 9.0, 20: 5.0, 40: 3.0, 60: 2.0, 80: 1.0, 95: 1.4}
VALIDATION = {49: 2.5, 99: 3.0}


def test_the_gap_is_between_the_ends_of_the_drawn_lines() -> None:
    gap = find_gap(TRAINING, VALIDATION)
    assert gap is not None
    # Six values are smoothed over 6 // 40 = 0 neighbours, so the last one is as it is.
    assert gap.training == 1.4
    assert (gap.validation, gap.lowest, gap.last) == (3.0, 49, 99)


def test_without_one_of_the_losses_there_is_no_gap() -> None:
    assert find_gap({}, VALIDATION) is None
    assert find_gap(TRAINING, {}) is None
    assert find_gap(TRAINING, {9: math.nan}) is None


def test_one_measurement_is_enough() -> None:
    gap = find_gap({0: 4.0, 9: 2.0}, {9: 2.5})
    assert gap is not None
    assert (gap.training, gap.lowest) == (2.0, 9)


def test_a_long_curve_is_smoothed() -> None:
    training = {at: float(at % 2) for at in range(80)}
    gap = find_gap(training, {79: 2.0})
    assert gap is not None
    # 80 // 40 = 2 neighbours on each side; at the end there are the two before: (1 + 0 + 1) / 3
    assert gap.training == pytest.approx(2 / 3)


def count(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == color).all(axis=2).sum())


def test_a_panel_a_run_with_both_losses(tmp_path: Path) -> None:
    run = {"total_loss": TRAINING, "validation/total_loss": VALIDATION, "lr": {0: 1.0}}
    one = plot_overfitting({"a": run}, tmp_path / "one.png")
    both = plot_overfitting({"a": run, "b": run, "none": {"lr": {0: 1}}}, tmp_path / "two.png")
    assert (list(one), list(both)) == (["a"], ["a", "b"])
    with Image.open(tmp_path / "one.png") as a, Image.open(tmp_path / "two.png") as b:
        # 3.4 inches at 120 dots, rounded down for each width
        assert b.width - a.width == 407
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert 0 < count(tmp_path / "one.png", color) < count(tmp_path / "two.png", color)


def draw(tmp_path: Path, figures: list[Figure], first: float, last: float) -> Axes:
    """The first of four panels: losses that begin at ``first``, a gap from 1 to ``last``."""
    training = {19: first, **dict.fromkeys(range(39, 200, 20), 1.0)}
    run = {"total_loss": training, "validation/total_loss": {99: 1.5, 199: last}}
    plot_overfitting(dict.fromkeys("abcd", run), tmp_path / "x.png")
    return figures[-1].axes[0]


@pytest.mark.parametrize("last", [1.02, 1.5, 12.5])
def test_the_label_of_the_gap_is_within_its_panel(
    tmp_path: Path, figures: list[Figure], last: float
) -> None:
    axis = draw(tmp_path, figures, 2.0, last)
    (label,) = [text for text in axis.texts if text.get_text().startswith("gap")]
    # (12.5 - 1) / 1: the widest that is likely.
    assert label.get_text().endswith(f"(+{100 * (last - 1):.0f} %)")
    box, panel = label.get_window_extent(), axis.bbox
    assert panel.x0 < box.x0 < box.x1 < panel.x1
    assert panel.y0 < box.y0 < box.y1 < panel.y1
    # Heads of an arrow that is shorter than they are would be drawn over each other.
    arrows = [text for text in axis.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == (0 if last == 1.02 else 1)


def test_the_lowest_loss_is_where_metrics_json_has_it(
    tmp_path: Path, figures: list[Figure]
) -> None:
    axis = draw(tmp_path, figures, 2.0, 1.6)
    assert "validation lowest at iteration 99" in [text.get_text() for text in axis.texts]


# Half of the losses are 1: up to 2 x 2.5 all is shown.
@pytest.mark.parametrize(("first", "shown"), [(2.6, True), (3.2, True), (4.9, True), (40.0, False)])
def test_the_first_loss_is_shown_with_room_above_or_said_to_be_cut_off(
    tmp_path: Path, figures: list[Figure], first: float, shown: bool
) -> None:
    axis = draw(tmp_path, figures, first, 1.6)
    low, high = axis.get_ylim()
    assert bool(first < high - 0.1 * (high - low)) is shown
    notes = [text.get_text() for text in axis.texts if "cut off" in text.get_text()]
    assert notes == ([] if shown else ["training up to 40, cut off"])


def test_a_run_without_validation_is_drawn_without_a_gap(tmp_path: Path) -> None:
    assert plot_overfitting({"a": {"total_loss": {0: math.nan, 5: 1.0}}}, tmp_path / "x.png") == {}
    assert (tmp_path / "x.png").exists()


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no loss to draw"):
        plot_overfitting({"a": {}}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
