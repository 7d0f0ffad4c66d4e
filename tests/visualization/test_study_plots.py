from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState, create_trial

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.study_plots import plot_history, plot_importances


def trials(*states: TrialState) -> list[FrozenTrial]:
    made = []
    for number, state in enumerate(states):
        value = 10.0 + number if state == TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, intermediate_values={1: 5.0})
        trial.number = number
        made.append(trial)
    return made


@pytest.mark.parametrize(
    ("states", "others"),
    [
        ([], []),
        ([TrialState.PRUNED], ["pruned, at its last score"]),
        ([TrialState.FAIL], ["failed"]),
        ([TrialState.PRUNED, TrialState.FAIL], ["failed", "pruned, at its last score"]),
    ],
)
def test_the_legend_of_the_history_lists_what_is_drawn(
    tmp_path: Path, figures: list[Figure], states: list[TrialState], others: list[str]
) -> None:
    given = trials(TrialState.COMPLETE, TrialState.COMPLETE, *states)
    plot_history(given, "AP (%)", True, tmp_path / "history.png")
    legend = figures[0].axes[0].get_legend()
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(
        ["complete", "best so far", "best", *others]
    )


def test_the_remark_on_importances_is_in_the_picture(tmp_path: Path, figures: list[Figure]) -> None:
    remark = "Measured on 2 complete trials, few for 12 parameters: an indication, not a result."
    plot_importances({"fg_iou_thresh": 0.75, "base_lr": 0.25}, remark, tmp_path / "new" / "i.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["i.png"]
    (figure,) = figures
    (line,) = [text for text in figure.texts if text.get_text() == remark]
    box, panel = line.get_window_extent(), figure.axes[0].get_window_extent()
    # Whole, and below the bars.
    assert 0 < box.x0 < box.x1 < figure.bbox.x1
    assert 0 < box.y0 < box.y1 < panel.y0


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"i\.png: cannot be written"):
        plot_importances({"x": 1.0}, "", tmp_path / "file" / "i.png")
