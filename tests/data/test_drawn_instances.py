from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage

from cityscapes_maskrcnn.data.annotations import read_instances
from cityscapes_maskrcnn.data.drawn_instances import differing_instances


def box(label: str, x0: int, y0: int, x1: int, y1: int) -> dict:
    return {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}


OBJECTS = [
    box("road", 0, 20, 63, 31),
    box("car", 2, 2, 20, 28),
    box("car", 18, 5, 40, 28),
    box("bicyclegroup", 45, 2, 60, 10),
    box("bicyclegroup", 45, 15, 60, 18),
    box("person", 50, 20, 51, 30),  # too thin to be compared
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x_gtFine_polygons.json"


def draw(file: Path, objects: list[dict]) -> np.ndarray:
    """Write a polygons file and draw it with the official painter."""
    file.write_text(json.dumps({"imgHeight": 32, "imgWidth": 64, "objects": objects}))
    annotation = Annotation()
    annotation.fromJsonFile(str(file))
    return np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)


@pytest.mark.parametrize(
    "change",
    [
        lambda drawn: drawn,
        lambda drawn: np.roll(drawn, 1, axis=1),  # a pixel off
        lambda drawn: np.where(drawn == 26000, 26077, drawn),  # another number
        lambda drawn: np.where(drawn == 7, 11, drawn),  # a wall where the polygons have a road
        lambda drawn: np.where(drawn == 24000, 7, drawn),
    ],
)
def test_what_is_the_same(file: Path, change) -> None:
    assert differing_instances_of(file, OBJECTS, change(draw(file, OBJECTS))) == []


def differing_instances_of(file: Path, objects: list[dict], drawn: np.ndarray) -> list[str]:
    draw(file, objects)
    return differing_instances(read_instances(str(file)), drawn)


NOT_DRAWN = "is not drawn as such in instanceIds.png"
SECOND_CAR = f"the car in x 18 to 41, y 5 to 29 {NOT_DRAWN}"


@pytest.mark.parametrize(
    ("drawn_objects", "expected"),
    [
        (OBJECTS[:1] + OBJECTS[2:], [f"the car in x 2 to 21, y 2 to 29 {NOT_DRAWN}"]),
        (
            [*OBJECTS, box("bus", 42, 12, 62, 28)],
            ["instanceIds.png has 28000 (bus), the polygons have not"],
        ),
        (
            [{**each, "label": "truck"} if each is OBJECTS[2] else each for each in OBJECTS],
            ["instanceIds.png has 27000 (truck), the polygons have not", SECOND_CAR],
        ),
        (
            [{**each, "label": "cargroup"} if each is OBJECTS[2] else each for each in OBJECTS],
            ["instanceIds.png (26) and the polygons differ in cargroup", SECOND_CAR],
        ),
        (OBJECTS[:3], ["instanceIds.png (33) and the polygons differ in bicyclegroup"]),
    ],
    ids=["missing", "more", "other class", "group", "no group"],
)
def test_what_is_not(file: Path, drawn_objects: list[dict], expected: list[str]) -> None:
    assert differing_instances_of(file, OBJECTS, draw(file, drawn_objects)) == expected


def test_two_objects_drawn_as_one_and_one_as_two(file: Path) -> None:
    drawn = draw(file, OBJECTS)
    as_one = np.where(drawn == 26000, 26001, drawn)
    assert differing_instances_of(file, OBJECTS, as_one) == [
        "the car in x 2 to 21, y 2 to 29 is not drawn as such in instanceIds.png"
    ]
    as_two = drawn.copy()
    as_two[:12][as_two[:12] == 26001] = 26002
    assert differing_instances_of(file, OBJECTS, as_two) == [
        "instanceIds.png has 26002 (car), the polygons have not"
    ]


def test_the_thousand_and_first_car_is_drawn_as_a_truck(file: Path) -> None:
    cars = [*[box("car", 0, 0, 3, 3)] * 1000, box("car", 10, 10, 30, 30)]
    drawn = draw(file, cars)
    assert drawn[20, 20] == 27000
    # Only what is visible counts: the last of the small ones and the large one.
    found = differing_instances_of(file, cars, drawn)
    assert f"the car in x 10 to 31, y 10 to 31 {NOT_DRAWN}" in found
    assert "instanceIds.png has 27000 (truck), the polygons have not" in found


def test_an_image_of_8_bits(file: Path) -> None:
    """Which holds no single object: somebody saved label ids, say."""
    drawn = draw(file, OBJECTS)
    label_ids = np.where(drawn < 1000, drawn, drawn // 1000).astype(np.uint8)
    assert differing_instances_of(file, OBJECTS, label_ids) == [
        "instanceIds.png (26) and the polygons differ in cargroup",
        SECOND_CAR,
        f"the car in x 2 to 21, y 2 to 29 {NOT_DRAWN}",
    ]


def test_nothing(file: Path) -> None:
    assert differing_instances_of(file, [], np.zeros((32, 64), np.uint16)) == []
