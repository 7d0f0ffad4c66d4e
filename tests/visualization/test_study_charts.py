from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cityscapes_maskrcnn.visualization.study_charts import ScoredTrial, plot_study
from cityscapes_maskrcnn.visualization.style import About

LONG = [f"a very long name of parameter number {number}" for number in range(6)]
CHOICES = ["AdamW with a cosine schedule", "SGD with momentum and steps", "$Lion$ and \\frac"]


def draw(
    folder: Path, figures: list[Figure], trials: list[ScoredTrial], **options: Any
) -> dict[str, Figure]:
    defaults = {"label": "segm/AP (%)", "maximize": True, "importances": {}, "remark": ""}
    about = About(dataset="some_val", model="study s in sqlite:///output/search.db")
    names = plot_study(trials, folder, **{**defaults, **options}, about=about)
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    return dict(zip(names, figures[-len(names) :], strict=True))


def trial(number: int, score: float, **params: Any) -> ScoredTrial:
    return ScoredTrial(number=number, score=score, params=params)


@pytest.mark.parametrize("num_trials", [1, 2, 12])
def test_every_picture_is_readable(
    tmp_path: Path,
    figures: list[Figure],
    assert_readable: Callable[[Figure], None],
    num_trials: int,
) -> None:
    trials = [
        trial(n, float(n), **dict.fromkeys(LONG, n / 12), optimizer=CHOICES[n % 3], rate=10.0**-n)
        for n in range(num_trials)
    ]
    importances = dict.fromkeys([*LONG, "optimizer", "rate"], 0.125) if num_trials > 9 else {}
    pictures = draw(
        tmp_path, figures, trials, importances=importances, remark="Measured on 12 trials."
    )
    assert len(pictures) == (4 if importances else 3)
    for figure in pictures.values():
        assert_readable(figure)
        assert any("some_val · study s in" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("maximize", [False, True])
def test_darker_lines_are_better(tmp_path: Path, figures: list[Figure], maximize: bool) -> None:
    """A loss of 1 is better than one of 9: dark is what is good, not what is high."""
    trials = [trial(n, float(n), rate=n / 10) for n in range(10)]
    figure = draw(tmp_path, figures, trials, maximize=maximize)["parallel_coordinates.png"]
    assert "darker lines: better scores" in figure._supxlabel.get_text()
    lines = [line for line in figure.axes[0].lines if line.get_linewidth() == 1.4]
    # The best is drawn last.
    brightness = [sum(line.get_color()[:3]) for line in lines]
    assert brightness == sorted(brightness, reverse=True)


def test_numbers_of_parallel_axes_are_not_crossed(tmp_path: Path, figures: list[Figure]) -> None:
    trials = [trial(n, 20 + n, fg=0.3 + n / 100, flow=bool(n % 2)) for n in range(9)]
    axis = draw(tmp_path, figures, trials)["parallel_coordinates.png"].axes[0]
    texts = {text.get_text(): text for text in axis.texts}
    # The ends and the middle of scores and of the parameter, and both choices.
    assert list(texts) == ["20", "24", "28", "0.3", "0.34", "0.38", "False", "True"]
    lines = max(line.get_zorder() for line in axis.lines if len(line.get_xdata()) == 3)
    for text in texts.values():
        assert isinstance(text, Text)
        assert text.get_zorder() > lines
        assert text.get_bbox_patch().get_facecolor() == (1, 1, 1, 1)
    # The best trial is on top: score and parameter at their highest, no choice of the other kind.
    best = axis.lines[9]
    assert np.asarray(best.get_ydata()).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("maximize", "best", "steps"), [(True, 1, [2, 5, 5]), (False, 2, [2, 2, 1])]
)
def test_history_marks_the_best(
    tmp_path: Path, figures: list[Figure], maximize: bool, best: int, steps: list[float]
) -> None:
    trials = [trial(0, 2.0), trial(1, 5.0), trial(2, 1.0)]
    # Without parameters there is nothing else to draw.
    pictures = draw(tmp_path, figures, trials, maximize=maximize)
    assert list(pictures) == ["history.png"]
    so_far, every, ring = pictures["history.png"].axes[0].lines
    assert list(so_far.get_ydata()) == steps
    assert list(every.get_ydata()) == [2, 5, 1]
    assert list(ring.get_xdata()) == [best]
