"""Which images are chosen from hand-made ones, where the right choices are known."""

from __future__ import annotations

import numpy as np
import pytest

from cityscapes_maskrcnn.evaluation.instance_ap import (
    Prediction,
    average_precision,
    averages,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.evaluation.telling_examples import (
    OUTCOMES,
    REASONS,
    ExaminedImage,
    choose_examples,
    examine_image,
)
from cityscapes_maskrcnn.utils.error_summary import CAUSES

HEIGHT, WIDTH = 80, 240
PERSON, CAR, BUS = 0, 2, 4
PERSON_ID, CAR_ID, BUS_ID = 24, 26, 28
Box = tuple[int, int, int, int]  # x, y, width, height
# Apart from each other; a side of 32 is no longer small.
LARGE = [(40 * column, 40 * row, 32, 32) for row in range(2) for column in range(6)]
SMALL = [(40 * column, 40 * row, 20, 20) for row in range(2) for column in range(6)]


def mask(box: Box) -> RunMask:
    x, y, width, height = box
    return mask_from_bitmap(np.ones((height, width)), x0=x, y0=y, height=HEIGHT, width=WIDTH)


def examine(
    objects: list[tuple[int, Box]], predictions: list[tuple[int, float, Box]], **options: object
) -> ExaminedImage:
    """Objects by label id, predictions by contiguous class id and score."""
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    for number, (label, (x, y, width, height)) in enumerate(objects):
        ids[y : y + height, x : x + width] = 1000 * label + number
    found = [Prediction(mask(box), category, score) for category, score, box in predictions]
    return examine_image(ground_truth(ids), found, 0.5, **options)


def cars(boxes: list[Box]) -> list[tuple[int, Box]]:
    return [(CAR_ID, box) for box in boxes]


def car_detections(boxes: list[Box], score: float = 0.9) -> list[tuple[int, float, Box]]:
    return [(CAR, score, box) for box in boxes]


IMAGES = {
    # AP 1: one object of one.
    "one": examine(cars(LARGE[:1]), car_detections(LARGE[:1])),
    # AP 1, too, of two objects.
    "two": examine(cars(LARGE[:2]), car_detections(LARGE[:2])),
    "empty": examine([], car_detections(LARGE[:1])),
    # Half of the objects, without false positives: AP 0.5.
    "half": examine(cars(LARGE[:8]), car_detections(LARGE[:4])),
    # Most small ones, one of them found; AP 1/3.
    "small": examine(cars(SMALL[:3]), car_detections(SMALL[:1])),
    # Nothing is found: AP 0; 5 missed.
    "missed": examine(cars(LARGE[:5]), []),
    # Nothing is found, and six are wrong: AP 0, of one object.
    "wrong": examine(cars(LARGE[:1]), car_detections(LARGE[6:])),
    "people": examine(
        [(PERSON_ID, LARGE[0]), (PERSON_ID, LARGE[1]), (BUS_ID, LARGE[2])],
        [(PERSON, 0.9, LARGE[0]), (CAR, 0.9, LARGE[2])],
    ),
}


def test_causes_have_plurals() -> None:
    # Masks of a tenth to a half of the cars are poor ones.
    halves = [(x, y, width, height // 2) for x, y, width, height in LARGE[:2]]
    assert examine(cars(LARGE[:2]), car_detections(halves)).summary() == (
        "0 of 2 objects found, 2 false positives (2 poor masks)"
    )
    people = [(PERSON, 0.9, box) for box in LARGE[:2]]
    assert examine(cars(LARGE[:2]), people).summary().endswith("(2 wrong classes)")


def test_choices() -> None:
    names = list(IMAGES)
    examples = choose_examples(list(IMAGES.values()))
    chosen = {example.reason: names[example.index] for example in examples}
    # By AP: missed 0, wrong 0, people 0.25 ((0.5 + 0) / 2), small 0.33, half 0.5, two 1, one 1.
    # "half" misses 4. Of the cars, those of images that were not chosen before: one has 1.
    assert chosen == {
        "best": "two",
        "median": "small",
        "worst": "missed",
        "false_positives": "wrong",
        "misses": "missed",
        "small": "small",
        "class:person": "people",
        "class:car": "half",
        "class:bus": "people",
    }
    assert [example.reason for example in examples] == [each for each in REASONS if each in chosen]
    captions = {example.reason: example.caption for example in examples}
    assert captions["best"] == (
        "Best image AP of 7 images: 100 %, as in 1 other; 2 of 2 objects found, no false positives"
    )
    assert captions["worst"] == (
        "Worst image AP of 7 images: 0 %, as in 1 other; 0 of 5 objects found, nothing detected"
    )
    assert captions["false_positives"] == (
        "Most false positives: 6; 0 of 1 object found, 6 false positives (6 background)"
    )
    assert captions["small"] == (
        "Most small objects (below 32 x 32 px): 3, 1 of them found; "
        "1 of 3 objects found, no false positives"
    )
    assert captions["class:bus"] == (
        "Bus: 0 of 1 found; in all 1 of 3 objects found, 1 false positive (1 wrong class)"
    )


def test_one_image() -> None:
    examples = choose_examples([IMAGES["two"]])
    assert [(example.reason, example.index) for example in examples] == [
        ("best", 0),
        ("median", 0),
        ("worst", 0),
        ("class:car", 0),
    ]
    assert examples[0].caption.startswith("Best image AP of 1 image: 100 %; 2 of 2 objects")


def test_no_objects() -> None:
    (median, wrong) = choose_examples([examine([], []), IMAGES["empty"]])
    assert (median.reason, median.index, median.caption) == (
        "median",
        0,
        "No object in 2 images, so no AP; this is the first: no object to find, nothing detected",
    )
    assert (wrong.reason, wrong.index) == ("false_positives", 1)
    assert wrong.caption == (
        "Most false positives: 1; no object to find, 1 false positive (1 background)"
    )


def test_outcomes_are_those_of_the_detections() -> None:
    x, y, _, _ = LARGE[0]
    image = examine(
        [(CAR_ID, LARGE[0]), (CAR_ID, LARGE[1]), (PERSON_ID, LARGE[2])],
        [
            (CAR, 0.6, (x, y, 32, 30)),  # a duplicate of the next
            (CAR, 0.9, LARGE[0]),
            (CAR, 0.4, LARGE[1]),  # below the threshold
            (BUS, 0.8, LARGE[2]),
            (CAR, 0.7, (*LARGE[1][:2], 32, 12)),
            (CAR, 0.5, LARGE[7]),
            (CAR, 0.9, (0, 0, 0, 0)),  # no mask
        ],
    )
    assert [OUTCOMES[outcome] for outcome in image.outcomes] == [
        "duplicate",
        "found",
        "wrong class",
        "poor mask",
        "background",
    ]
    assert [each.confidence for each in image.detections] == [0.6, 0.9, 0.8, 0.7, 0.5]
    # Ids ascend: the person comes first.
    assert image.found.tolist() == [False, True, False]
    assert image.counts() == {
        "objects": 3,
        "found": 1,
        "missed": 2,
        "small": 0,
        "small_found": 0,
        "detections": 5,
        "false_positives": 4,
        **dict.fromkeys(CAUSES, 1),
    }


def test_some_classes() -> None:
    objects = [(CAR_ID, LARGE[0]), (PERSON_ID, LARGE[1])]
    predictions = [(CAR, 0.9, LARGE[0]), (PERSON, 0.9, LARGE[5])]
    image = examine(objects, predictions, categories=[CAR])
    assert (image.ap, len(image.objects), len(image.detections)) == (1.0, 1, 1)
    assert [example.reason for example in choose_examples([image])][3:] == ["class:car"]


@pytest.mark.parametrize("name", ["half", "people", "wrong"])
def test_ap_is_the_official_one_of_the_image(name: str) -> None:
    image = IMAGES[name]
    # All predictions of these are detections.
    matches = match_image(image.gt, image.detections)
    assert image.ap == averages(average_precision([matches]))["allAp"]
