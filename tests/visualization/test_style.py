"""What all charts share: one look, and files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.style import new_figure, save_figure, style_axes


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
