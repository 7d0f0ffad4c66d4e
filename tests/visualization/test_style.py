"""What all charts share: one look, and files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.style import (
    About,
    new_figure,
    save_figure,
    style_axes,
)


def test_a_chart_does_not_touch_pyplot(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = new_figure(3, 2, "title")
    axis = figure.subplots()
    axis.plot([0, 1], [1, 2])
    style_axes(axis, "panel")
    save_figure(figure, tmp_path / "new" / "chart.png")
    assert (tmp_path / "new" / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_a_chart_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"chart\.png: cannot be written"):
        save_figure(new_figure(3, 2), tmp_path / "file" / "chart.png")


def test_what_a_picture_is_of_stands_below_its_title(
    tmp_path: Path, figures: list[Figure], assert_readable: Callable[[Figure], None]
) -> None:
    about = About(
        dataset="cityscapes_instance_val_part3and4of4",
        num_images=1234,
        generated=True,
        model="Mask R-CNN ResNet-50, output/with/a/very/long/name/of/a/folder/of/a/run",
        protocol="official protocol",
    )
    assert str(about) == (
        "GENERATED SCENES, not Cityscapes · cityscapes_instance_val_part3and4of4 · 1,234 images · "
        "Mask R-CNN ResNet-50, output/with/a/very/long/name/of/a/folder/of/a/run · official "
        "protocol"
    )
    assert str(About(num_images=1)) == "1 image"
    for width in (5, 14):
        figure = new_figure(width, 3, "A title", about)
        style_axes(figure.subplots(), "a panel")
        save_figure(figure, tmp_path / "a.png")
        assert_readable(figures[-1])
        (line,) = [text for text in figure.texts if "GENERATED" in text.get_text()]
        assert line.get_text().count("\n") == {5: 4, 14: 1}[width]
        panel = figure.axes[0].get_tightbbox()
        title = figure._suptitle.get_window_extent()
        assert panel.y1 < line.get_window_extent().y0 < line.get_window_extent().y1 < title.y1
        # The first line of the title is as high as its letters.
        assert line.get_window_extent().y1 < title.y1 - 14
