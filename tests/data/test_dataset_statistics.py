from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest

from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.data.dataset_statistics import (
    DatasetStatistics,
    class_rows,
    classes_to_csv,
    differences,
    measure_dataset,
    objects_to_csv,
    to_markdown,
)
from cityscapes_maskrcnn.evaluation.ground_truth_cache import read_ground_truth

CLASSES = ("person", "car")
PERSON, CAR = 0, 1


def rectangle(category: int, x0: float, y0: float, x1: float, y1: float, **more: Any) -> Any:
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1, x0, y0]
    return {
        "category_id": category,
        "bbox": (x0, y0, x1, y1),
        "segmentation": [polygon],
        "iscrowd": False,
        **more,
    }


def image(*annotations: Any) -> dict[str, Any]:
    return {"file_name": "a.png", "height": 512, "width": 1024, "annotations": annotations}


@pytest.fixture
def stats() -> DatasetStatistics:
    """A car behind a person and a group; a car of 9 pixels; an image without objects."""
    car = rectangle(CAR, 100, 100, 300, 200)
    # In front: it ends lower. It takes 50 x 50 of the car's box of 200 x 100: an eighth.
    person = rectangle(PERSON, 250, 150, 310, 350)
    # 100 x 100 of the box, half of it.
    group = rectangle(PERSON, 100, 100, 200, 220, iscrowd=True)
    small = rectangle(CAR, 1000, 10, 1003, 13)
    return measure_dataset([image(car, person, group), image(small), image()], CLASSES)


def test_counts(stats: DatasetStatistics) -> None:
    assert stats.num_images == 3
    assert stats.objects_per_image.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert stats.groups.tolist() == [1, 0]
    assert stats.images.tolist() == [0, 0, 1]
    assert stats.categories.tolist() == [CAR, PERSON, CAR]
    assert stats.areas.tolist() == [20000, 12000, 9]
    assert stats.aspect_ratios == pytest.approx([0.5, 200 / 60, 1])
    # Small, medium, large; 96 x 96 = 9216 is the limit.
    assert stats.by_size().tolist() == [[0, 0, 1], [1, 0, 1]]


def test_what_ends_lower_hides_what_is_behind_it(stats: DatasetStatistics) -> None:
    assert stats.visible == pytest.approx([1 - 1 / 8 - 1 / 2, 1, 1])
    # From 35 % on an occlusion is heavy.
    assert stats.by_occlusion().tolist() == [[1, 0, 0], [1, 0, 1]]


def test_positions_are_relative_to_the_image(stats: DatasetStatistics) -> None:
    """Cells are 8 x 8 pixels here: the small car lies in row 1 and column 125."""
    person, car, any_class = stats.coverage
    assert car[1, 125] == 1
    assert car.sum() - 1 == (200 // 8 - 100 // 8 + 1) * (300 // 8 - 100 // 8 + 1)
    assert any_class[20, 35] == person[20, 35] == car[20, 35] == 1
    assert (any_class <= person + car).all()


def test_every_class_and_all_of_them_have_a_row(stats: DatasetStatistics) -> None:
    rows = class_rows({"some": stats})
    assert [row["class"] for row in rows] == ["all classes", "person", "car"]
    every, person, car = rows
    assert (every["objects"], every["images"], every["of images"]) == (3, 2, 3)
    assert (person["objects"], person["groups"], person["images"]) == (1, 1, 1)
    assert (car["small"], car["medium"], car["large"], car["below 100 px"]) == (1, 0, 1, 1)
    # Of sqrt(20000) = 141.4 and 3.
    assert car["median root area"] == pytest.approx((20000**0.5 + 3) / 2)
    (header, *lines) = list(csv.reader(classes_to_csv({"some": stats}).splitlines()))
    assert lines[2][header.index("objects")] == "2"


def test_a_line_an_object(stats: DatasetStatistics) -> None:
    first = next(csv.DictReader(objects_to_csv({"some": stats}).splitlines()))
    assert first == {
        "dataset": "some",
        "image": "a.png",
        "class": "car",
        "x0": "100.0",
        "y0": "100.0",
        "x1": "300.0",
        "y1": "200.0",
        "area": "20000.0",
        "visible_share": "0.3750",
    }


def test_equal_datasets_do_not_differ_and_others_do(stats: DatasetStatistics) -> None:
    # Two persons in one image: of the classes 2/3 change, since a third are persons in the other.
    people = [rectangle(PERSON, x, 100, x + 10, 120) for x in (10, 30)]
    other = measure_dataset([image(*people)], CLASSES)
    (same,) = differences({"a": stats, "b": stats})
    assert [same[f"{name} (%)"] for name in ("classes", "sizes", "occlusion")] == [0, 0, 0]
    (row,) = differences({"a": stats, "b": other})
    assert row["classes (%)"] == pytest.approx(100 * 2 / 3)
    assert row["sizes (%)"] == pytest.approx(100 * 2 / 3)  # from 1 small and 2 large to all small
    # From 0, 1 and 2 objects in an image, a third each, to 2 in all.
    assert row["objects in an image (%)"] == pytest.approx(100 * 2 / 3)
    assert row["largest change of a class"] == "person +66.7 points"


def test_no_objects() -> None:
    empty = measure_dataset([image()], CLASSES)
    assert empty.by_size().tolist() == [[0, 0, 0]] * 2
    text = to_markdown({"none": empty, "too": empty}, ["none"], ["classes.png"])
    assert "**none: generated scenes, not Cityscapes.**" in text
    assert "nan" not in text
    assert "nan" not in classes_to_csv({"none": empty})


def test_it_agrees_with_the_pixels_that_are_scored(small_root: Any) -> None:
    """Of generated scenes: polygons and instance images are two ways to write one annotation."""
    folder = small_root / "cityscapes"
    images = load_instances(f"{folder}/leftImg8bit/train", f"{folder}/gtFine/train")
    stats = measure_dataset(images, [str(each) for each in range(8)])
    files = sorted((folder / "gtFine" / "train").rglob("*_instanceIds.png"))
    truths = read_ground_truth(f"{folder}/gtFine/train", files)
    is_single = [gt.ids >= 1000 for gt in truths]
    areas = np.concatenate([gt.areas[single] for gt, single in zip(truths, is_single, strict=True)])
    assert len(stats.areas) == len(areas) > 20
    assert stats.areas.sum() == pytest.approx(areas.sum(), rel=0.05)
