"""Every analysis picture names dataset, model, number of images and protocol."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cityscapes_maskrcnn.modeling.anchors import DETECTRON2_DEFAULT
from cityscapes_maskrcnn.modeling.drift import GroupDrift
from cityscapes_maskrcnn.visualization.anchor_plot import plot_anchors
from cityscapes_maskrcnn.visualization.drift_chart import plot_drift
from cityscapes_maskrcnn.visualization.overfitting import plot_overfitting
from cityscapes_maskrcnn.visualization.performance_chart import plot_performance
from cityscapes_maskrcnn.visualization.study_charts import ScoredTrial, plot_study
from cityscapes_maskrcnn.visualization.style import About, name_images
from cityscapes_maskrcnn.visualization.trade_chart import TradePoint, plot_trade
from cityscapes_maskrcnn.visualization.training_curves import Run, plot_runs

PACKAGE = Path(__file__).parents[2] / "cityscapes_maskrcnn"
FIELDS = {"dataset", "num_images", "model", "protocol"}
ABOUT = About(dataset="some_val", num_images=8, model="Mask R-CNN, output/a", protocol="as it is")
CURVES = {"total_loss": {9: 2.0}}
DRAWN: dict[str, Callable[[Path], Any]] = {
    "anchors": lambda folder: plot_anchors(
        np.array([[30.0, 40.0], [8.0, 9.0]]), DETECTRON2_DEFAULT, folder / "a.png", ABOUT
    ),
    "drift": lambda folder: plot_drift(
        [
            GroupDrift(
                group="stem",
                num_parameters=1,
                parameters=0.1,
                convolutions=0.1,
                norms=0.1,
                statistics=0.1,
            )
        ],
        folder / "a.png",
        ABOUT,
    ),
    "overfitting": lambda folder: plot_overfitting(
        {"1 heads": CURVES, "2 tuned": CURVES}, folder / "a.png", ABOUT
    ),
    "performance": lambda folder: plot_performance(
        folder / "a.png",
        headings=["stage"],
        cells=[["1 heads"]],
        official=[("1 heads", 12.0, True)],
        coco_style=[],
        by_size=[],
        caution="",
        remark="",
        about=ABOUT,
    ),
    "study": lambda folder: plot_study(
        [ScoredTrial(number=number, score=number, params={"rate": number}) for number in range(3)],
        folder,
        label="score",
        maximize=True,
        importances={"rate": 1.0},
        remark="",
        about=ABOUT,
    ),
    "trade": lambda folder: plot_trade(
        folder / "a.png", [TradePoint("float32", "a", 30, 9, 9, 9)], about=ABOUT
    ),
    "training": lambda folder: plot_runs(
        [Run(name="a", curves=CURVES, about=ABOUT)], folder / "a.png"
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_shows_all_of_them(tmp_path: Path, figures: list[Figure], name: str) -> None:
    DRAWN[name](tmp_path)
    assert figures
    for figure in figures:
        texts = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
        assert "some_val · 8 images · Mask R-CNN, output/a · as it is" in texts


def descriptions() -> dict[str, set[str]]:
    """File and line of every call of About outside this room -> the fields that it gives."""
    return {
        f"{path.relative_to(PACKAGE)}:{node.lineno}": {word.arg or "" for word in node.keywords}
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "visualization"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "About"
    }


@pytest.mark.parametrize(("place", "given"), descriptions().items())
def test_whoever_draws_gives_all_of_them(place: str, given: set[str]) -> None:
    # What data contain, and the anchors that fit them, is of no model.
    no_model = ("engine/dataset_report", "engine/run_anchors")
    assert given >= (FIELDS - {"model"} if place.startswith(no_model) else FIELDS)


def test_several_datasets_are_named_with_their_numbers() -> None:
    assert name_images([("a", 8), ("a", 8), ("", None)]) == ("a", 8)
    assert name_images([("a", 1), ("b", 2000), ("c", None)]) == (
        "a: 1 image; b: 2,000 images; c",
        None,
    )
    assert name_images([]) == ("", None)
