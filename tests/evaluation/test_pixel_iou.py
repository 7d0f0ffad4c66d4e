"""The score against the real official function, on the same files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813
from cityscapesscripts.helpers.labels import labels
from PIL import Image

from cityscapes_maskrcnn.evaluation.pixel_iou import (
    count_image,
    format_pixel_scores,
    pixel_scores,
)
from cityscapes_maskrcnn.utils.errors import InputError

Ids = npt.NDArray[Any]
Triple = tuple[Ids, Ids, Ids]
ALL_IDS = [label.id for label in labels if label.id >= 0]
THING_IDS = [label.id for label in labels if label.hasInstances and label.id >= 0]
ROAD, SIDEWALK, BUILDING, TREE, PERSON, RIDER, CAR, CARAVAN = 7, 8, 11, 21, 24, 25, 26, 29


@pytest.fixture
def official_score(tmp_path: Path) -> Callable[[list[Triple]], dict[str, Any]]:
    """Write images and call the official evaluateImgLists on them."""

    def score(images: list[Triple]) -> dict[str, Any]:
        arguments = official.CArgs()
        arguments.__dict__.update(official.args.__dict__)
        arguments.quiet = True
        arguments.JSONOutput = False
        gt_files, predictions = [], []
        for index, arrays in enumerate(images):
            files = [
                tmp_path / f"{index}_{kind}.png" for kind in ("labelIds", "instanceIds", "pred")
            ]
            for array, file in zip(arrays, files, strict=True):
                Image.fromarray(array).save(file)
            gt_files.append(str(files[0]))
            predictions.append(str(files[2]))
        result: dict[str, Any] = official.evaluateImgLists(predictions, gt_files, arguments)
        return result

    return score


def score(images: list[Triple]) -> dict[str, Any]:
    return pixel_scores([count_image(*arrays) for arrays in images])


def random_images(seed: int) -> list[Triple]:
    """Images with everything the protocol knows: ignored labels, groups, caravans, tiny things."""
    random = np.random.default_rng(seed)
    # Few classes leave many without a pixel.
    label_choice = random.choice(ALL_IDS, size=random.integers(1, 20), replace=False)
    thing_choice = random.choice(THING_IDS, size=random.integers(1, 6), replace=False)
    images = []
    for _ in range(random.integers(1, 4)):
        shape = tuple(random.integers(1, 28, size=2).tolist())

        def window(shape: tuple[int, ...] = shape) -> tuple[slice, slice]:
            starts = [random.integers(0, size) for size in shape]
            ends = [start + random.integers(1, 12) for start in starts]
            return slice(starts[0], ends[0]), slice(starts[1], ends[1])

        label_ids = np.full(shape, random.choice(label_choice), dtype=np.uint8)
        for _ in range(random.integers(0, 6)):
            label_ids[window()] = random.choice(label_choice)
        instance_ids = label_ids.astype(np.uint16)
        for number in range(random.integers(0, 7)):
            thing, where = random.choice(thing_choice), window()
            label_ids[where] = thing
            is_group = random.random() < 0.2
            instance_ids[where] = thing if is_group else thing * 1000 + random.choice([0, number])
        predicted_ids = label_ids.copy()
        for _ in range(random.integers(0, 6)):
            predicted_ids[window()] = random.choice([*thing_choice, *label_choice])
        noise = random.random(shape) < random.choice([0.0, 0.1, 1.0], p=[0.4, 0.5, 0.1])
        predicted_ids[noise] = random.choice(ALL_IDS, size=int(noise.sum()))
        images.append((label_ids, instance_ids, predicted_ids))
    return images


@pytest.mark.usefixtures("numpy_with_in1d")
@pytest.mark.parametrize("seeds", [range(i, i + 40) for i in range(0, 120, 40)], ids=str)
def test_same_bits_as_the_official_function(
    seeds: range, official_score: Callable[[list[Triple]], dict[str, Any]]
) -> None:
    car = []
    for seed in seeds:
        images = random_images(seed)
        with np.errstate(all="raise"):
            mine = score(images)
        # Exact; NaN equals NaN; the same keys.
        np.testing.assert_equal(mine, official_score(images), err_msg=f"seed {seed}")
        car.append(mine["classInstScores"]["car"])
    # The cases are worth comparing: absent, 0 and anything between.
    assert np.isnan(car).any()
    assert 0 in car
    assert len(set(car)) > 5


def ids(rows: list[list[int]], dtype: Any = np.uint8) -> Ids:
    return np.array(rows, dtype=dtype)


def test_pixels_by_hand() -> None:
    gt = ids([[ROAD, ROAD, ROAD, ROAD], [SIDEWALK, SIDEWALK, 0, 0], [TREE, TREE, TREE, TREE]])
    found = ids([[ROAD, ROAD, ROAD, SIDEWALK], [SIDEWALK, 0, ROAD, 0], [BUILDING, 4, TREE, TREE]])
    scores = score([(gt, gt.astype(np.uint16), found)])
    # road: 3 of 4 found; the one predicted on unlabeled (0) is no false positive: 3 / 4.
    assert scores["classScores"]["road"] == 0.75
    # sidewalk: 1 of 2 found, 1 false on road; predicting unlabeled counts as missed: 1 / 3.
    assert scores["classScores"]["sidewalk"] == 1 / 3
    assert scores["classScores"]["vegetation"] == 2 / 4
    assert scores["classScores"]["building"] == 0 / 1
    assert math.isnan(scores["classScores"]["unlabeled"])
    assert math.isnan(scores["classScores"]["car"])
    assert scores["averageScoreClasses"] == (0.75 + 1 / 3 + 0.0 + 0.5) / 4
    # flat, road and sidewalk as one: 5 of 6 pixels found, none false.
    assert scores["categoryScores"]["flat"] == 5 / 6
    assert scores["categoryScores"]["nature"] == 2 / 4
    assert scores["categoryScores"]["construction"] == 0
    assert scores["averageScoreCategories"] == (5 / 6 + 0.0 + 0.5) / 3
    assert scores["confMatrix"][ROAD][ROAD] == 3
    assert scores["priors"]["vegetation"] == 4 / 12
    assert math.isnan(scores["averageScoreInstClasses"])  # no instances


def test_instances_by_hand() -> None:
    instance_ids = ids([[24000, 24000, 24000, 24000, 24001, 24001, 24, 7]], np.uint16)
    gt = ids([[PERSON] * 7 + [ROAD]])
    found = ids([[PERSON, PERSON, RIDER, ROAD, PERSON, ROAD, ROAD, PERSON]])
    scores = score([(gt, instance_ids, found)])
    # A pixel of the first person weighs mean / 4, of the second mean / 2; the group (24) nothing.
    # Hit: mean * (2 / 4 + 1 / 2) = mean; missed as much; 1 false pixel on road.
    mean = 3462.4756337644
    assert scores["classInstScores"]["person"] == pytest.approx(mean / (2 * mean + 1))
    assert scores["classScores"]["person"] == 3 / (7 + 1)
    # As a human the rider's pixel is right too: 3 / 4 + 1 / 2 hit, 1 / 4 + 1 / 2 missed.
    expected = pytest.approx(1.25 * mean / (2 * mean + 1))
    assert scores["categoryInstScores"]["human"] == expected
    assert math.isnan(scores["classInstScores"]["road"])
    # Predicted on a person, but no instance of it is there: 0 weighed hits, 1 false pixel.
    assert scores["classInstScores"]["rider"] == 0.0
    assert math.isnan(scores["classInstScores"]["car"])


def test_caravans_count_as_vehicles_only_in_the_instance_score_of_the_category() -> None:
    instance_ids = ids([[26000, 26000, 29000, 7]], np.uint16)
    gt, found = ids([[CAR, CAR, CARAVAN, ROAD]]), ids([[CAR, CARAVAN, CARAVAN, CARAVAN]])
    scores = score([(gt, instance_ids, found)])
    assert scores["classScores"]["car"] == 1 / 2
    assert scores["categoryScores"]["vehicle"] == 1 / 2
    # The car's area weighs its mean, all of it a vehicle; 1 false pixel on road.
    mean = 12794.0202738185
    assert scores["categoryInstScores"]["vehicle"] == pytest.approx(mean / (mean + 1))
    assert math.isnan(scores["classInstScores"]["caravan"])


@pytest.mark.usefixtures("numpy_with_in1d")
def test_no_images_and_an_image_of_void(
    official_score: Callable[[list[Triple]], dict[str, Any]],
) -> None:
    nothing = pixel_scores([])
    assert np.sum(nothing["confMatrix"]) == 0
    groups = [nothing["priors"], *(value for key, value in nothing.items() if "Scores" in key)]
    assert all(math.isnan(value) for group in groups for value in group.values())
    void = [(ids([[4, 0]]), ids([[4, 0]], np.uint16), ids([[ROAD, CAR]]))]
    assert math.isnan(score(void)["averageScoreClasses"])
    np.testing.assert_equal(score(void), official_score(void))


@pytest.mark.parametrize(
    ("label_ids", "instance_ids", "predicted_ids", "message"),
    [
        ([[7, 34]], [[7, 7]], [[7, 7]], "the ground truth holds the label id 34"),
        ([[7, 7]], [[7, 7]], [[255, 7]], "the prediction holds the label id 255"),
        ([[7, 7]], [[34001, 7]], [[7, 7]], "instance id 34001, which belongs to no official label"),
        ([[7, 7]], [[7001, 7]], [[7, 7]], r"\*_instanceIds.png holds the instance id 7001, which"),
        ([[7, 7]], [[7, 7]], [[7]], r"prediction and label ids .* not \(1, 1\) and \(1, 2\)"),
        ([[7, 7]], [[7], [7]], [[7, 7]], r"instanceIds.png: instance ids .* not \(2, 1\) and"),
    ],
)
def test_wrong_values_and_shapes(
    label_ids: Any, instance_ids: Any, predicted_ids: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        count_image(ids(label_ids), ids(instance_ids, np.uint16), ids(predicted_ids))


def test_table() -> None:
    gt = ids([[ROAD, ROAD, CAR]])
    instance_ids = ids([[ROAD, ROAD, 26000]], np.uint16)
    table = format_pixel_scores(score([(gt, instance_ids, ids([[ROAD, CAR, CAR]]))]))
    lines = table.splitlines()
    assert lines[0] == "Cityscapes pixel-level protocol (official), percent"
    # Weighed, the car's one pixel is 12,794 and the false one 1: 12794.02 / 12795.02 = 99.992 %.
    assert lines[1] == "class                IoU    iIoU"
    assert lines[2] == "road               50.00       -"
    assert "car                50.00   99.99" in lines
    assert "average            50.00   99.99" in lines
    assert "train                  -       -" in lines
    # heading, 19 classes and average; heading, 7 categories and average; the protocol.
    assert len(lines) == 1 + 21 + 9
    assert lines[22] == "category             IoU    iIoU"
    assert lines[23] == "flat               50.00       -"
