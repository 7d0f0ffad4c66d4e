"""The pictures of an evaluation: which there are, from what, and that numbers end up in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.utils.error_summary import ErrorSummary, PrecisionRecall
from cityscapes_maskrcnn.visualization import evaluation_plots
from cityscapes_maskrcnn.visualization.evaluation_plots import plot_errors
from cityscapes_maskrcnn.visualization.style import About

PICTURES = ["precision_recall.png", "confusion.png", "false_positives.png", "misses.png"]
CAR, BUS = THING_CLASSES.index("car"), THING_CLASSES.index("bus")
ALL = range(len(THING_CLASSES))
# Half of the objects are found, half of the detections false.
HALF = PrecisionRecall(
    confidences=np.array([0.5, np.inf]),
    recall=np.array([0.5, 0.0]),
    precision=np.array([0.5, 1.0]),
)


def errors_of(cars: int) -> ErrorSummary:
    """There are cars only, of every size, half of them occluded; half of them are found."""
    found, missed = cars // 2, cars - cars // 2
    confusion = np.zeros((9, 9), dtype=np.int64)
    confusion[CAR, [CAR, -1]] = found, missed
    false_positives = np.zeros((8, 4), dtype=np.int64)
    false_positives[CAR, 0] = cars
    by_size, by_occlusion = np.zeros((2, 8, 3, 2), dtype=np.int64)
    by_size[CAR] = by_occlusion[CAR] = cars, found
    by_occlusion[CAR, 1] = 0
    return ErrorSummary(
        score_thresh=0.5,
        curves=tuple(HALF if cars and each == CAR else None for each in ALL),
        confusion=confusion,
        false_positives=false_positives,
        by_size=by_size,
        by_occlusion=by_occlusion,
    )


def ap_of(**classes: float) -> np.ndarray:
    """The same at every IoU, NaN for all other classes."""
    ap = np.full((8, 10), np.nan)
    for name, value in classes.items():
        ap[THING_CLASSES.index(name)] = value
    return ap


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with pictures: of 10 cars, and of nothing at all."""
    folders = {cars: tmp_path_factory.mktemp("pictures") / str(cars) for cars in (10, 0)}
    for cars, folder in folders.items():
        ap = ap_of(car=0.5) if cars else ap_of()
        written = plot_errors(folder, errors_of(cars), ap, ALL)
        assert written == [folder / name for name in PICTURES]
    return folders


@pytest.mark.parametrize("name", PICTURES)
def test_numbers_change_the_picture(drawn: dict[int, Path], name: str) -> None:
    some, nothing = (np.asarray(Image.open(drawn[cars] / name).convert("L")) for cars in (10, 0))
    assert min(some.shape) > 400
    assert some.shape != nothing.shape or (some != nothing).mean() > 0.001
    for picture in (some, nothing):
        assert picture.std() > 5  # not an empty page


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """What would be saved, by name: most tests look at few of the pictures, or at no pixels."""
    kept: dict[str, Figure] = {}

    def keep(figure: Figure, output: Path) -> None:
        kept[output.stem] = figure

    monkeypatch.setattr(evaluation_plots, "save_figure", keep)
    return kept


ABOUT = About(dataset="some_val", num_images=7, model="Mask R-CNN ResNet-50, run", generated=True)


@pytest.mark.parametrize(
    ("cars", "ap"), [(10, ap_of(car=0.5)), (0, ap_of())], ids=["cars", "nothing"]
)
def test_every_picture_is_readable_and_says_what_it_is_of(
    pictures: dict[str, Figure],
    assert_readable: Callable[[Figure], None],
    cars: int,
    ap: np.ndarray,
) -> None:
    plot_errors("unused", errors_of(cars), ap, ALL, ABOUT)
    assert len(pictures) == len(PICTURES)
    for figure in pictures.values():
        figure.draw_without_rendering()
        assert_readable(figure)
        texts = [text.get_text().replace("\n", " ") for text in figure.texts]
        assert (
            "GENERATED SCENES, not Cityscapes · some_val · 7 images · Mask R-CNN ResNet-50, run"
        ) in texts


def test_cells_are_separate_and_those_without_objects_grey(pictures: dict[str, Figure]) -> None:
    plot_errors("unused", errors_of(10), ap_of(car=0.5), ALL)
    for name, num_columns in [("confusion", 9), ("misses", 3)]:
        pictures[name].draw_without_rendering()
        patches = pictures[name].axes[0].patches
        boxes = [each.get_window_extent() for each in patches if isinstance(each, Rectangle)]
        assert len(boxes) == 9 * num_columns
        for left, right in pairwise(boxes):
            if left.y0 == right.y0:
                assert 1 < right.x0 - left.x1 < 20, name
        for upper, lower in zip(boxes, boxes[num_columns:], strict=False):
            assert 1 < upper.y0 - lower.y1 < 20, name
    # Of the 9 rows of misses all classes and the cars have objects.
    texts = [text.get_text() for text in pictures["misses"].axes[0].texts]
    assert texts.count("no objects") == 7 * 3
    assert texts.count("50 %\n5 of 10") == 2 * 3
    labels = [label.get_text() for label in pictures["misses"].axes[0].get_xticklabels()]
    assert labels == ["small\n< 32² px", "medium\n32² to 96² px", "large\n≥ 96² px"]


def test_a_curve_is_drawn_in_steps_and_a_class_without_one_says_why(
    pictures: dict[str, Figure],
) -> None:
    """The best detection is false: a line from (0, 0) to the next point would be no data."""
    errors = errors_of(10)
    errors.by_size[CAR] = [[10, 5], [0, 0], [0, 0]]
    errors.by_size[BUS] = [[1, 1], [0, 0], [2, 2]]
    curves = list(errors.curves)
    curves[CAR] = PrecisionRecall(
        confidences=np.array([0.4, 0.6, np.inf]),
        recall=np.array([0.5, 0.0, 0.0]),
        precision=np.array([0.5, 0.0, 1.0]),
    )
    # Nothing that was predicted as a bus is one.
    curves[BUS] = PrecisionRecall(
        confidences=np.array([0.7, np.inf]),
        recall=np.array([0.0, 0.0]),
        precision=np.array([0.0, 1.0]),
    )
    plot_errors("unused", replace(errors, curves=tuple(curves)), ap_of(car=0.5, bus=0.0), ALL)
    panels = {axis.get_title("left"): axis for axis in pictures["precision_recall"].axes}
    assert list(panels) == list(THING_CLASSES)
    curve, dot = panels["car"].lines
    assert curve.get_drawstyle() == "steps-mid"
    assert to_hex(curve.get_color()) == "#00008e"
    # Not from precision 1, which the official code adds at recall 0 and which has no area here.
    assert curve.get_xydata().tolist() == [[0, 0], [0.5, 0.5]]
    assert panels["car"].get_title("right") == "AP50 50.0, n = 10"
    assert dot.get_xydata().tolist() == [[0.0, 0.0]]  # at 0.6, the first point from 0.5 upwards
    assert panels["bus"].get_title("right") == "AP50 0.0, n = 3"
    (text,) = panels["bus"].texts
    assert text.get_text() == "none of 3 objects\nfound at any score"
    (text,) = panels["person"].texts
    assert text.get_text() == "no objects"
    assert not panels["person"].lines


def test_misses_leave_out_a_size_without_objects(pictures: dict[str, Figure]) -> None:
    errors = errors_of(10)
    errors.by_size[CAR, 2] = 0
    plot_errors("unused", errors, ap_of(car=0.5), ALL)
    sizes, occlusions = pictures["misses"].axes
    labels = [label.get_text() for label in sizes.get_xticklabels()]
    assert labels == ["small\n< 32² px", "medium\n32² to 96² px"]
    assert sizes.get_title("left").endswith("(no objects: large)")
    labels = [label.get_text() for label in occlusions.get_xticklabels()]
    assert labels == ["not occluded\n< 1 %", "heavily occluded\n≥ 35 %"]
    assert occlusions.get_title("left").endswith("(no objects: partly occluded)")


def test_some_of_the_classes(pictures: dict[str, Figure]) -> None:
    errors = errors_of(10)
    errors.confusion[CAR, [BUS, -1]] = 2, 3
    errors.confusion[-1] = [*range(20, 28), 0]
    errors.false_positives[BUS, 1] = 7
    plot_errors("unused", errors, ap_of(car=0.25), [CAR, BUS])
    assert [axis.get_title("left") for axis in pictures["precision_recall"].axes] == ["car", "bus"]
    confusion = pictures["confusion"].axes[0]
    rows = [label.get_text() for label in confusion.get_yticklabels()]
    # 22 cars and 24 buses.
    assert rows == ["car\nn = 10", "bus\nn = 0", "matches no object\nn = 46"]
    assert [label.get_text() for label in confusion.get_xticklabels()] == ["car", "bus", "no match"]
    assert [text.get_text() for text in confusion.texts] == [
        *("50", "20", "30"),  # cars
        *("", "", ""),  # buses
        *("48", "52", ""),  # 22 and 24 of 46
    ]
    labels = [label.get_text() for label in pictures["false_positives"].axes[0].get_yticklabels()]
    assert labels == ["all classes", "car", "bus"]
    texts = [text.get_text() for text in pictures["false_positives"].axes[0].texts]
    assert {"17", "10", "7"} <= {*texts}
    for axis in pictures["misses"].axes:
        assert len(axis.get_yticks()) == 3
