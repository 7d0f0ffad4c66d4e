from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

from cityscapes_maskrcnn.visualization.style import MIN_FONT


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that has been saved, to be asked what stands where in it."""
    saved: list[Figure] = []
    save = Figure.savefig

    def save_and_keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        save(figure, *args, **kwargs)
        # Saved at other dots an inch than those at which it answers now.
        figure.draw_without_rendering()
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return saved


@pytest.fixture
def assert_readable() -> Callable[[Figure], None]:
    """Check a figure's texts: within it, large enough at half its size, none over another."""

    def check(figure: Figure) -> None:
        hidden = {text for axis in figure.findobj(Axis) for text in _outside(axis)}
        drawn = [
            text
            for text in figure.findobj(Text)
            if text.get_text().strip() and text.get_visible() and text not in hidden
        ]
        boxes = [text.get_window_extent() for text in drawn]
        assert boxes
        # The lines below a title stand where its text is empty.
        title = figure._suptitle
        for number, (text, box) in enumerate(zip(drawn, boxes, strict=True)):
            low, high = figure.bbox.min - 1, figure.bbox.max + 1
            assert (box.min > low).all() and (box.max < high).all(), text
            assert text.get_fontsize() >= MIN_FONT, text
            for other, other_box in zip(drawn[:number], boxes[:number], strict=True):
                if title not in (text, other):
                    assert not _overlap(box, other_box), (text, other)

    return check


def _overlap(one: Any, other: Any) -> bool:
    """Whether boxes share more than the pixel by which letters are rounded."""
    return bool(
        min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    )


def _outside(axis: Axis) -> list[Text]:
    """Labels of ticks that are not drawn: those outside the axis' range, or of hidden axes."""
    ticks: list[Tick] = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    is_off = not axis.get_visible() or not axis.axes.axison
    return [
        label
        for tick in ticks
        for label in (tick.label1, tick.label2)
        if is_off or not low - slack <= tick.get_loc() <= high + slack or not label.get_visible()
    ] + ([axis.label, axis.offsetText] if is_off else [])
