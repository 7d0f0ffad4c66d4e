from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from cityscapes_maskrcnn.synthetic.label_images import (
    coarsen,
    colors_of_labels,
    draw_instance_ids,
    labels_of_instances,
    visible_areas,
    withheld,
)
from cityscapes_maskrcnn.synthetic.scene import render_scene
from cityscapes_maskrcnn.utils.errors import InputError


def label_ids(annotation: dict[str, Any]) -> npt.NDArray[np.uint8]:
    return labels_of_instances(draw_instance_ids(annotation))


def _rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def _annotation(*objects: tuple[str, list[list[int]]]) -> dict[str, Any]:
    found = [{"label": label, "polygon": polygon} for label, polygon in objects]
    return {"imgHeight": 8, "imgWidth": 12, "objects": found}


def test_ids_of_a_drawing_made_by_hand() -> None:
    annotation = _annotation(
        ("road", _rectangle(0, 4, 11, 7)),
        ("car", _rectangle(0, 0, 3, 3)),
        ("cargroup", _rectangle(5, 0, 6, 1)),
        ("person", _rectangle(8, 0, 9, 1)),
        ("car", _rectangle(2, 2, 4, 5)),
        ("license plate", _rectangle(0, 0, 1, 0)),
        ("bus", _rectangle(11, 0, 11, 7)),
    )
    annotation["objects"][-1]["deleted"] = 1
    ids = draw_instance_ids(annotation)
    assert ids.dtype == np.uint16
    assert ids[0, 0] == 26000  # the license plate (id -1) is not drawn
    assert ids[2, 2] == 26001  # the second car hides part of the first
    assert ids[1, 6] == 26  # a group has no number
    assert ids[0, 8] == 24000
    assert ids[7, 0] == 7
    assert ids[0, 11] == 0  # the deleted bus is not drawn
    labels = label_ids(annotation)
    assert labels.dtype == np.uint8
    assert [labels[0, 0], labels[1, 6], labels[0, 8], labels[7, 0]] == [26, 26, 24, 7]
    assert colors_of_labels(label_ids(annotation))[7, 0].tolist() == [128, 64, 128, 255]
    # Second car: 3 columns, 4 rows. First: 4 x 4, of which it hides 2 x 2. Road: 12 x 4, of which
    # the second car hides 3 x 2.
    assert visible_areas(annotation).tolist() == [48 - 6, 16 - 4, 4, 4, 12, 0, 0]


def test_empty_annotation() -> None:
    annotation = _annotation()
    assert not draw_instance_ids(annotation).any()
    assert np.all(colors_of_labels(label_ids(annotation)) == (0, 0, 0, 255))
    assert coarsen(annotation)["objects"] == []
    assert visible_areas(annotation).tolist() == []


def test_unknown_label_is_named() -> None:
    with pytest.raises(InputError, match="'zeppelin'"):
        draw_instance_ids(_annotation(("zeppelin", _rectangle(0, 0, 3, 3))))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_drawings_equal_the_official_ones(seed: int, coarse: bool, tmp_path: Path) -> None:
    annotation = render_scene(np.random.default_rng(seed), 256, 512).annotation
    if coarse:
        annotation = coarsen(annotation)
    path = tmp_path / "polygons.json"
    path.write_text(json.dumps(annotation))
    official = Annotation()
    official.fromJsonFile(str(path))
    expected = np.asarray(createInstanceImage(official, "ids"))
    assert np.array_equal(draw_instance_ids(annotation), expected)
    assert np.array_equal(label_ids(annotation), createLabelImage(official, "ids"))
    colors = colors_of_labels(label_ids(annotation))
    assert np.array_equal(colors, createLabelImage(official, "color"))


def test_coarse_annotation_is_coarser_and_agrees_where_it_speaks() -> None:
    vertices = [0, 0]
    agree = labelled = total = 0
    for seed in range(2):
        fine = render_scene(np.random.default_rng(seed), 256, 512).annotation
        coarse = coarsen(fine)
        for index, annotation in enumerate((fine, coarse)):
            vertices[index] += sum(len(item["polygon"]) for item in annotation["objects"])
        fine_ids, coarse_ids = label_ids(fine), label_ids(coarse)
        spoken = coarse_ids > 0
        agree += int((fine_ids == coarse_ids)[spoken].sum())
        labelled += int(spoken.sum())
        total += fine_ids.size
    assert vertices[1] < 0.5 * vertices[0]
    assert 0.6 < labelled / total < 0.97  # gaps are left, but most of the image is labelled
    assert agree / labelled > 0.9


def test_withheld_annotation_shows_nothing_but_ignored_regions() -> None:
    fine = render_scene(np.random.default_rng(1), 128, 256).annotation
    assert set(np.unique(label_ids(fine))) >= {7, 11}
    # ego vehicle 1, rectification border 2, out of roi 3
    assert set(np.unique(draw_instance_ids(withheld(fine)))) == {1, 2, 3}
