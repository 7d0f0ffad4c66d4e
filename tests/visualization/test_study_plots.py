from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.study_plots import (
    plot_history,
    plot_importances,
    plot_parallel_coordinates,
    plot_slices,
)

LONG = [f"a very long name of parameter number {number}" for number in range(6)]
CHOICES = ["AdamW with a cosine schedule", "SGD with momentum and steps", "Lion and LAMB"]


def trials(*states: TrialState) -> list[FrozenTrial]:
    made = []
    for number, state in enumerate(states):
        value = 10.0 + number if state == TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, intermediate_values={1: 5.0})
        trial.number = number
        made.append(trial)
    return made


def with_long_names() -> list[FrozenTrial]:
    return [
        create_trial(
            value=float(number),
            params={**dict.fromkeys(LONG, number / 3), "optimizer": CHOICES[number]},
            distributions={
                **dict.fromkeys(LONG, FloatDistribution(0, 1)),
                "optimizer": CategoricalDistribution(CHOICES),
            },
        )
        for number in range(3)
    ]


def assert_apart(figure: Figure, texts: list[Text]) -> None:
    """All inside the picture, none over another."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 2
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


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


def test_long_names_do_not_overlap_in_the_slices(tmp_path: Path, figures: list[Figure]) -> None:
    plot_slices(with_long_names(), "AP (%)", True, tmp_path / "s.png")
    (figure,) = figures
    panels = figure.axes[: len(LONG) + 1]
    assert_apart(figure, [axis._left_title for axis in panels])
    assert_apart(figure, panels[-1].get_xticklabels())
    # What the texts take is not taken from the panels.
    assert all(axis.get_window_extent().height > 2 * figure.dpi for axis in panels)


def test_long_names_do_not_overlap_in_the_parallel_coordinates(
    tmp_path: Path, figures: list[Figure]
) -> None:
    plot_parallel_coordinates(with_long_names(), "AP (%)", True, tmp_path / "p.png")
    (figure,) = figures
    assert_apart(figure, figure.axes[0].get_xticklabels())


def test_long_names_leave_room_for_the_title_of_the_importances(
    tmp_path: Path, figures: list[Figure]
) -> None:
    # Names that differ in what is left out keep a bar each.
    names = [f"{'long ' * 10}{number}{' name' * 10}" for number in range(3)]
    plot_importances(dict.fromkeys(names, 1 / 3), "", tmp_path / "i.png")
    (axis,) = figures[0].axes
    assert len(axis.patches) == len(axis.get_yticklabels()) == 3
    assert_apart(figures[0], [axis._left_title, *axis.get_yticklabels()])


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"i\.png: cannot be written"):
        plot_importances({"x": 1.0}, "", tmp_path / "file" / "i.png")
