from __future__ import annotations

import pytest

from cityscapes_maskrcnn.report.line_chart import FRAME, line_chart


def test_the_best_of_many_poor_scores_is_drawn_where_it_is() -> None:
    """Nine trials at 0 and one at 12.5: the best is what the chart is for."""
    scores = {**dict.fromkeys(range(9), 0.0), 9: 12.5}
    chart = line_chart("AP", {"trial": scores}, kinds=("dots",))
    assert chart is not None
    assert chart.note == ""
    # The axis goes up to it: 12.5 of at most 16.
    top = chart.lines[0].marks[-1][1]
    assert FRAME.top < top < FRAME.top + 0.25 * (FRAME.bottom - FRAME.top)
    assert float(chart.y_ticks[-1][1]) >= 12.5


@pytest.mark.parametrize(("clip", "note"), [(False, ""), (True, "values up to 400 are cut off")])
def test_losses_that_explode_are_cut_off_if_asked(clip: bool, note: str) -> None:
    losses = {0: 400.0, **dict.fromkeys(range(1, 100), 1.0)}
    chart = line_chart("Total loss", {"training": losses}, clip=clip)
    assert chart is not None
    assert chart.note == note


def test_no_curve_is_left_out_silently() -> None:
    with pytest.raises(ValueError, match="zip"):
        line_chart("AP", {name: {0: 1.0} for name in "abc"})
