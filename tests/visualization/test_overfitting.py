from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.overfitting import plot_overfitting
from cityscapes_maskrcnn.visualization.style import About

TRAINING = {0: 9.0, 20: 5.0, 40: 3.0, 60: 2.0, 80: 1.0, 95: 1.4}
VALIDATION = {49: 2.5, 99: 3.0}


def count(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == color).all(axis=2).sum())


def test_a_panel_a_run_with_both_losses(tmp_path: Path) -> None:
    run = {"total_loss": TRAINING, "validation/total_loss": VALIDATION, "lr": {0: 1.0}}
    one = plot_overfitting({"a": run}, tmp_path / "one.png")
    both = plot_overfitting({"a": run, "b": run, "none": {"lr": {0: 1}}}, tmp_path / "two.png")
    assert (list(one), list(both)) == (["a"], ["a", "b"])
    with Image.open(tmp_path / "one.png") as a, Image.open(tmp_path / "two.png") as b:
        # 3.4 inches at 120 dots; each width is rounded, how depends on Matplotlib
        assert b.width - a.width in (407, 408)
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


def test_the_label_of_a_low_gap_is_above_the_axis(tmp_path: Path, figures: list[Figure]) -> None:
    low = {"total_loss": {9: 0.1, 99: 0.1}, "validation/total_loss": {99: 0.11}}
    high = {"total_loss": {9: 9.0, 99: 8.0}}
    # Titles of several lines leave little height.
    plot_overfitting({"low\nof\nfour\nlines": low, "high": high}, tmp_path / "x.png")
    axis = figures[-1].axes[0]
    (label,) = [text for text in axis.texts if text.get_text().startswith("gap")]
    # Its paper, a few pixels larger, would hide the axis.
    assert axis.bbox.y0 + 3 < label.get_window_extent().y0


def test_panels_have_one_axis_from_zero_and_notes_on_paper(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None]
) -> None:
    """A gap of 9 % may not look like one of 90 % beside it."""
    small = {"total_loss": {9: 1.0, 99: 0.5}, "validation/total_loss": {49: 0.6, 99: 0.545}}
    large = {"total_loss": {9: 3.0, 99: 1.0}, "validation/total_loss": {99: 1.9}}
    about = About(model="stages in output/demo", generated=True)
    plot_overfitting({"a\n8 images": small, "b": large}, tmp_path / "x.png", about)
    (figure,) = figures
    assert_readable(figure)
    limits = [axis.get_ylim() for axis in figure.axes]
    assert limits[0] == limits[1]
    assert limits[0][0] == 0
    assert limits[0][1] > 3
    # When validation was lowest is said of several measurements.
    for axis, number in zip(figure.axes, (2, 1), strict=True):
        notes = [text for text in axis.texts if text.get_text()]
        assert len(notes) == number
        assert all(text.get_bbox_patch().get_facecolor() == (1, 1, 1, 1) for text in notes)


# Half of the losses are 1: up to 2 x 2.5 all is visible.
@pytest.mark.parametrize(("first", "notes"), [(4.9, []), (40.0, ["training up to 40, cut off"])])
def test_the_first_loss_is_visible_with_room_above_or_a_note_says_that_it_is_cut_off(
    tmp_path: Path, figures: list[Figure], first: float, notes: list[str]
) -> None:
    axis = draw(tmp_path, figures, first, 1.6)
    low, high = axis.get_ylim()
    assert (first < high - 0.1 * (high - low)) is not bool(notes)
    assert [text.get_text() for text in axis.texts if "cut off" in text.get_text()] == notes
    # Iterations are those of metrics.json.
    assert "validation lowest at iteration 99" in [text.get_text() for text in axis.texts]


def test_a_run_without_validation_is_drawn_without_a_gap(tmp_path: Path) -> None:
    assert plot_overfitting({"a": {"total_loss": {0: math.nan, 5: 1.0}}}, tmp_path / "x.png") == {}
    assert (tmp_path / "x.png").exists()


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no loss to draw"):
        plot_overfitting({"a": {}}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
