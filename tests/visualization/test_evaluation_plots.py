"""The pictures of an evaluation: which there are, from what, and that numbers end up in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.evaluation_plots import plot_errors

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


def test_the_gaps_between_cells_reach_to_their_edges(tmp_path: Path) -> None:
    """Cells are drawn up to a whole pixel and lines up to the edge of the axes, which is none."""
    folder = write_tables(tmp_path / "tables", 10)
    for name, numbers in (("confusion", ",5" * 9), ("misses", ",4,2")):
        header, *rows = (folder / f"{name}.csv").read_text().splitlines()
        kept = len(header.split(",")) - numbers.count(",")
        filled = [",".join(row.split(",")[:kept]) + numbers for row in rows]
        (folder / f"{name}.csv").write_text("\n".join([header, *filled]) + "\n")
    plot_errors(folder)
    for name in ("confusion", "misses"):
        with Image.open(folder / f"{name}.png") as image:
            white = (np.asarray(image.convert("RGB")) == 255).all(axis=2)
        height, width = white.shape
        # From the first to the last row of cells, and at their heart, without labels beside them.
        cells = slice(height // 7, height * 9 // 10)
        gaps = white[cells][white[cells, width // 6 : width * 9 // 20].all(axis=1)]
        assert 7 <= len(gaps) <= 9, name  # 5 points are 8.3 pixels
        assert gaps.all(), name


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
