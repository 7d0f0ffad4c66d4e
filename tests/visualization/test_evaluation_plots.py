"""The pictures of an evaluation: which there are, from what, and that numbers end up in them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.evaluation_plots import plot_errors
from cityscapes_maskrcnn.visualization.style import About

CAUSES = ("duplicate", "wrong class", "poor mask", "background")
PICTURES = ["precision_recall.png", "confusion.png", "false_positives.png", "misses.png"]


def write_tables(folder: Path, cars: int) -> Path:
    """Tables in which there are cars only; half of them are found."""
    folder.mkdir()
    found = cars // 2
    per_class, confusion, false, misses = [], [], [], []
    for name in THING_CLASSES:
        n = cars if name == "car" else 0
        ap = "50.0" if n else ""
        per_class.append(f"{name},{ap},{ap},0.5,{n},{n // 2},{n - n // 2},{n},,")
        answers = [found if name == each == "car" else 0 for each in THING_CLASSES]
        confusion.append([name, *answers, n - n // 2])
        false.append([name, n, 0, 0, 0])
        misses += [f"{name},size,{group},{n},{n // 2}" for group in ("small", "medium", "large")]
        misses += [f"{name},occlusion,{group},{n},{n // 2}" for group in ("none", "heavy")]
    confusion.append(["unmatched", *[0] * 9])
    for file, header, rows in [
        (
            "per_class",
            "class,AP,AP50,confidence_threshold,objects,found,missed,false_positives,"
            "precision,recall",
            per_class,
        ),
        (
            "precision_recall",
            "class,confidence,recall,precision",
            ["car,0.5,0.5,0.5", "car,inf,0.0,1.0"] if cars else [],
        ),
        ("confusion", ",".join(["truth", *THING_CLASSES, "unmatched"]), confusion),
        ("false_positives", f"class,{','.join(CAUSES)}", false),
        ("misses", "class,by,group,objects,missed", misses),
    ]:
        lines = [row if isinstance(row, str) else ",".join(map(str, row)) for row in rows]
        (folder / f"{file}.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with pictures: of 10 cars, and of nothing at all."""
    folders = {cars: tmp_path_factory.mktemp("tables") / str(cars) for cars in (10, 0)}
    for cars, folder in folders.items():
        written = plot_errors(write_tables(folder, cars))
        assert [path.name for path in written] == PICTURES
    return folders


@pytest.mark.parametrize("name", PICTURES)
def test_numbers_change_the_picture(drawn: dict[int, Path], name: str) -> None:
    some, nothing = (np.asarray(Image.open(drawn[cars] / name).convert("L")) for cars in (10, 0))
    assert min(some.shape) > 400
    assert some.shape != nothing.shape or (some != nothing).mean() > 0.001
    for picture in (some, nothing):
        assert picture.std() > 5  # not an empty page


ABOUT = About(dataset="some_val", num_images=7, model="Mask R-CNN ResNet-50, run", generated=True)


def drawn_by_name(folder: Path, cars: int, figures: list[Figure]) -> dict[str, Figure]:
    written = plot_errors(write_tables(folder / "tables", cars), ABOUT)
    return dict(zip([path.stem for path in written], figures, strict=True))


@pytest.mark.parametrize("cars", [10, 0])
def test_every_picture_is_readable_and_says_what_it_is_of(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None], cars: int
) -> None:
    for figure in drawn_by_name(tmp_path, cars, figures).values():
        assert_readable(figure)
        texts = [text.get_text().replace("\n", " ") for text in figure.texts]
        assert (
            "GENERATED SCENES, not Cityscapes · some_val · 7 images · Mask R-CNN ResNet-50, run"
        ) in texts


def test_cells_are_separate_and_those_without_objects_grey(
    tmp_path: Path, figures: list[Figure]
) -> None:
    pictures = drawn_by_name(tmp_path, 10, figures)
    for name, axis, num_columns in [
        ("confusion", pictures["confusion"].axes[0], 9),
        ("misses", pictures["misses"].axes[0], 3),
    ]:
        cells = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        boxes = [cell.get_window_extent() for cell in cells]
        assert len(cells) == 9 * num_columns
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
    tmp_path: Path, figures: list[Figure]
) -> None:
    """The best detection is false: a line from (0, 0) to the next point would be no data."""
    folder = write_tables(tmp_path / "tables", 10)
    curves = ["car,0.4,0.5,0.5", "car,0.6,0.0,0.0", "car,inf,0.0,1.0"]
    # Nothing that was predicted as a bus is one.
    curves += ["bus,0.7,0.0,0.0", "bus,inf,0.0,1.0"]
    header = "class,confidence,recall,precision"
    (folder / "precision_recall.csv").write_text("\n".join([header, *curves]) + "\n")
    table = (folder / "per_class.csv").read_text()
    table = table.replace("bus,,,0.5,0,0,0,0,,", "bus,0.0,0.0,0.5,3,0,3,1,,")
    (folder / "per_class.csv").write_text(table)
    plot_errors(folder)
    panels = {axis.get_title("left"): axis for axis in figures[0].axes}
    assert list(panels) == list(THING_CLASSES)
    curve, dot = panels["car"].lines
    assert curve.get_drawstyle() == "steps-mid"
    assert to_hex(curve.get_color()) == "#00008e"
    # Not from precision 1, which the official code adds at recall 0 and which has no area here.
    assert curve.get_xydata().tolist() == [[0, 0], [0.5, 0.5]]
    assert panels["car"].get_title("right") == "AP50 50.0, n = 10"
    assert dot.get_xydata().tolist() == [[0.0, 0.0]]  # at 0.6, the first point from 0.5 upwards
    (text,) = panels["bus"].texts
    assert text.get_text() == "none of 3 objects\nfound at any score"
    (text,) = panels["person"].texts
    assert text.get_text() == "no objects"
    assert not panels["person"].lines


def test_misses_leave_out_a_size_without_objects(tmp_path: Path, figures: list[Figure]) -> None:
    folder = write_tables(tmp_path / "tables", 10)
    table = (folder / "misses.csv").read_text()
    (folder / "misses.csv").write_text(table.replace("car,size,large,10,5", "car,size,large,0,0"))
    plot_errors(folder)
    sizes, occlusions = figures[-1].axes
    labels = [label.get_text() for label in sizes.get_xticklabels()]
    assert labels == ["small\n< 32² px", "medium\n32² to 96² px"]
    assert sizes.get_title("left").endswith("(no objects: large)")
    labels = [label.get_text() for label in occlusions.get_xticklabels()]
    assert labels == ["not occluded\n< 1 %", "heavily occluded\n≥ 35 %"]
    assert "no objects" not in occlusions.get_title("left")


@pytest.mark.parametrize("name", ["per_class", "misses"])
def test_missing_or_damaged_table(tmp_path: Path, name: str) -> None:
    folder = write_tables(tmp_path / "tables", 10)
    table = folder / f"{name}.csv"
    table.write_text("nonsense\n1\n")
    with pytest.raises(InputError, match="not the tables of an evaluation"):
        plot_errors(folder)
    table.unlink()
    with pytest.raises(InputError, match=f"{name}.csv: cannot be read"):
        plot_errors(folder)
    assert not list(folder.glob("*.png"))
