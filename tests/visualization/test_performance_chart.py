from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.performance_chart import plot_performance
from cityscapes_maskrcnn.visualization.style import About

HEADINGS = ("stage", "official AP")
STAGES = ("1 heads", "2 tuned", "3 refined")
CAUTION = "nobody may overlook this"


def draw(path: Path, caution: str = "") -> npt.NDArray[np.uint8]:
    """The picture of a run on the 250 images of val that the recipe scores on."""
    ours = [(f"{stage}, val parts 3-4 of 4 (250 images)", 30.0, True) for stage in STAGES]
    sizes = [(f"{size}: {stage}", 20.0, True) for size in ("small", "large") for stage in STAGES]
    others = [("Mask R-CNN R50-FPN, COCO (Detectron2), val", 36.5, False)]
    study = [(f"{stage}, reference study, val parts 3-4", 29.8, False) for stage in STAGES]
    cells = [(stage, "30.0") for stage in STAGES]
    bars = {"official": [*ours, *others], "coco_style": [*ours, *study], "by_size": sizes}
    plot_performance(path, headings=HEADINGS, cells=cells, **bars, caution=caution, remark="")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def plot_without_scores(path: Path, **changes: object) -> None:
    empty = {"official": [], "coco_style": [], "by_size": [], "caution": "", "remark": ""}
    plot_performance(path, headings=HEADINGS, cells=[("1 heads", "-")], **{**empty, **changes})


def test_nothing_is_cut_off_at_the_edges(tmp_path: Path) -> None:
    picture = draw(tmp_path / "new" / "a.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 255).all()


def test_a_caution_stands_above_the_table(tmp_path: Path) -> None:
    without, with_it = (draw(tmp_path / "a.png", caution) for caution in ("", CAUTION))
    red = (0xD5, 0x5E, 0x00)
    assert not (without == red).all(axis=2).any()
    rows = np.flatnonzero((with_it == red).all(axis=2).any(axis=1))
    # In the uppermost tenth, and the picture is higher by as much as it takes.
    assert rows.max() < len(with_it) / 10
    assert with_it.shape[0] - without.shape[0] == 36  # 0.3 inches at 120 dots


def test_long_remarks_are_whole(tmp_path: Path, figures: list[Figure]) -> None:
    names = ", ".join(f"frankfurt_{number:06d}_000019_leftImg8bit.png" for number in range(8))
    remark = f"1 heads: not honest: {names}\n2 tuned: not honest: {'MY_DATA_SET_' * 20}"
    for text in ("", remark):
        plot_without_scores(tmp_path / "a.png", remark=text)
    without, figure = figures
    (line,) = [text for text in figure.texts if names[:20] in text.get_text()]
    assert "".join(line.get_text().split()).endswith("".join(remark.split()))
    box = line.get_window_extent()
    assert 0 < box.x0 < box.x1 < figure.bbox.x1
    assert box.y0 > 0
    # The charts keep their height.
    assert figure.bbox.height > without.bbox.height + 3 * 0.16 * figure.dpi


@pytest.mark.parametrize(("score", "low", "high"), [(0.04, 0.0, 0.02), (30.0, 0.85, 0.95)])
def test_a_bar_of_nearly_nothing_does_not_look_full(
    tmp_path: Path, figures: list[Figure], score: float, low: float, high: float
) -> None:
    sizes = [("small: 1 heads", score, True)]
    plot_without_scores(tmp_path / "a.png", by_size=sizes)
    (bar,) = [
        patch
        for part in figures[0].subfigs[1].subfigs
        for axis in part.axes
        for patch in axis.patches
        if isinstance(patch, Rectangle)
    ]
    share = bar.get_window_extent().width / bar.axes.get_window_extent().width
    assert low < share < high


def charts(figure: Figure) -> list[list[Axes]]:
    """The panels of every column."""
    return [column.axes for column in figure.subfigs[1].subfigs]


def test_others_have_panels_of_their_own_on_the_same_scale(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None]
) -> None:
    draw(tmp_path / "a.png", CAUTION)
    assert_readable(figures[0])
    titles = [[axis.get_title("left") for axis in column] for column in charts(figures[0])]
    both = ["This run", "Others, for reference"]
    assert titles == [both, both, ["This run"]]
    for column in charts(figures[0]):
        assert len({axis.get_xlim() for axis in column}) == 1


def test_sizes_without_objects_say_so(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None]
) -> None:
    sizes = [("small: 1 heads", None, True), ("large: 1 heads", 30.0, True)]
    about = About(dataset="val parts 3-4 of 4", num_images=16, generated=True)
    ours = [("1 heads", 12.0, True)]
    plot_without_scores(tmp_path / "a.png", official=ours, by_size=sizes, about=about)
    assert_readable(figures[0])
    official, coco, by_size = charts(figures[0])
    # This run alone.
    assert len(official) == len(coco) == len(by_size) == 1
    # Nothing to tell it from.
    assert {part[0].get_title("left") for part in (official, coco, by_size)} == {""}
    assert [text.get_text() for text in by_size[0].texts] == ["no such objects", "30.0"]
    assert [text.get_text() for text in coco[0].texts] == ["no scores"]
    assert not [text for text in figures[0].texts if "Published" in text.get_text()]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.png: cannot be written"):
        draw(tmp_path / "file" / "a.png")
