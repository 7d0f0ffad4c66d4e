from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cityscapes_maskrcnn.data.dataset_statistics import DatasetStatistics, measure_dataset
from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.visualization.dataset_charts import plot_dataset
from cityscapes_maskrcnn.visualization.style import About


def make(num_objects: int, seed: int = 0) -> DatasetStatistics:
    """Images with boxes of all classes but the train, each box an object."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(12):
        annotations: list[dict[str, Any]] = []
        for _ in range(num_objects):
            x0, y0 = random.uniform(0, 1900), random.uniform(0, 900)
            x1, y1 = x0 + random.uniform(4, 400), y0 + random.uniform(4, 300)
            annotations.append(
                {
                    "category_id": int(random.choice([0, 1, 2, 3, 4, 6, 7])),
                    "bbox": (x0, y0, x1, y1),
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "iscrowd": False,
                }
            )
        size = {"height": 1024, "width": 2048}
        images.append({"file_name": "x.png", **size, "annotations": annotations})
    return measure_dataset(images, THING_CLASSES)


def test_names_of_sizes_are_within_their_panel(tmp_path: Path, figures: list[Figure]) -> None:
    """Even if no object is large."""
    box = {"bbox": (0, 0, 20, 20), "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}
    size = {"height": 64, "width": 128}
    annotations = [{**box, "category_id": 2, "iscrowd": False}]
    small = measure_dataset(
        [{"file_name": "x.png", **size, "annotations": annotations}], THING_CLASSES
    )
    plot_dataset({"some": small}, THING_COLORS, About(), tmp_path)
    panel = figures[1].axes[0]
    figures[1].draw_without_rendering()
    names = {text.get_text(): text.get_window_extent() for text in panel.texts}
    assert list(names) == ["small", "medium", "large"]
    for place in names.values():
        assert panel.bbox.x0 <= place.x0 < place.x1 <= panel.bbox.x1


def test_positions_of_datasets_have_one_scale(tmp_path: Path, figures: list[Figure]) -> None:
    """The same blue is the same share in both."""
    datasets = {name: make(9, seed) for seed, name in enumerate("ab")}
    for coverage, most in zip((each.coverage for each in datasets.values()), (2, 6), strict=True):
        coverage[-1] = most
    plot_dataset(datasets, THING_COLORS, About(), tmp_path)
    panels = [axis for axis in figures[-1].axes if axis.images]
    assert [axis.images[0].get_clim() for axis in panels] == [(0, 6 / 12)] * 2
    assert "darkest: 50 %)" in figures[-1]._supxlabel.get_text()


@pytest.mark.parametrize("counts", [[9], [6, 0]])
def test_every_picture_is_readable(
    tmp_path: Path,
    figures: list[Figure],
    assert_readable: Callable[[Figure], None],
    counts: list[int],
) -> None:
    datasets = {
        f"cityscapes_instance_number_{seed}": make(n, seed) for seed, n in enumerate(counts)
    }
    about = About(dataset=", ".join(datasets), generated=True)
    files = plot_dataset(datasets, THING_COLORS, about, tmp_path)
    assert len(files) == len(figures) == 6
    for figure in figures:
        assert_readable(figure)
        assert any("GENERATED SCENES" in text.get_text() for text in figure.texts)
    # Official colours for classes, others where they tell datasets apart.
    colors = [to_hex(bar.get_facecolor()) for bar in figures[0].axes[0].patches]
    if len(counts) == 1:
        assert colors[:3] == ["#dc143c", "#ff0000", "#00008e"]
    else:
        assert len(set(colors)) == 2
