"""What goes wrong in hand-made images, and agreement with the official score on random ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.error_analysis import (
    ImageErrors,
    analyse_image,
    summarise_errors,
    write_error_tables,
)
from cityscapes_maskrcnn.evaluation.instance_ap import (
    ImageMatches,
    Prediction,
    average_precision,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.utils.error_summary import CAUSES
from cityscapes_maskrcnn.utils.errors import InputError

HEIGHT, WIDTH = 60, 120
PERSON, RIDER, CAR, TRUCK, BUS = range(5)
LABEL_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
Box = tuple[int, int, int, int]


def rectangle(x0: int, y0: int, width: int, height: int) -> RunMask:
    bitmap = np.ones((height, width), dtype=bool)
    return mask_from_bitmap(bitmap, x0=x0, y0=y0, height=HEIGHT, width=WIDTH)


def scene(*objects: tuple[int, Box]) -> np.ndarray:
    """Instance ids: pixel value and (x0, y0, width, height), later ones in front."""
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
    for value, (x0, y0, width, height) in objects:
        ids[y0 : y0 + height, x0 : x0 + width] = value
    return ids


def analyse(
    ids: np.ndarray, *predictions: tuple[int, float, Box], threshold: float = 0.5
) -> tuple[ImageMatches, ImageErrors]:
    gt = ground_truth(ids)
    items = [Prediction(rectangle(*box), category, score) for category, score, box in predictions]
    matches = match_image(gt, items)
    return matches, analyse_image(gt, items, matches, threshold)


def causes(errors: ImageErrors) -> list[tuple[str, str]]:
    return [
        (THING_CLASSES[category], CAUSES[cause])
        for category, cause in zip(errors.false_categories, errors.causes, strict=True)
    ]


CAR_BOX = (10, 10, 20, 20)


@pytest.mark.parametrize("step", [1, -1], ids=["in order", "reversed"])
def test_every_cause(step: int) -> None:
    predictions = [
        (CAR, 0.9, CAR_BOX),  # found
        (CAR, 0.8, (10, 10, 20, 15)),  # IoU 300 / 400 with the one that is found already
        (BUS, 0.7, CAR_BOX),
        (CAR, 0.6, (50, 10, 20, 10)),  # IoU 200 / 400 = 0.5, which does not exceed 0.5
        (CAR, 0.6, (50, 28, 20, 5)),  # IoU 40 / (400 + 100 - 40) = 0.09
        (PERSON, 0.6, (0, 45, 8, 8)),
        (PERSON, 0.4, (20, 45, 8, 8)),  # below the threshold
    ]
    _, errors = analyse(
        scene((26001, CAR_BOX), (26002, (50, 10, 20, 20)), (24001, (90, 10, 10, 30))),
        *predictions[::step],
    )
    expected = [
        ("car", "duplicate"),
        ("bus", "wrong class"),
        ("car", "poor mask"),
        ("car", "background"),
        ("person", "background"),
    ]
    assert causes(errors) == expected[::step]
    # Objects come in order of their ids: the person first.
    assert errors.categories.tolist() == [PERSON, CAR, CAR]
    assert errors.found.tolist() == [False, True, False]
    assert errors.pred_categories.tolist() == [-1, CAR, -1]


def test_what_is_found_is_not_confused() -> None:
    _, errors = analyse(
        scene((26001, CAR_BOX)),
        (CAR, 0.6, (10, 10, 20, 15)),
        (CAR, 0.8, CAR_BOX),
        (TRUCK, 0.9, CAR_BOX),
    )
    # Found as a car, although the truck has a higher score.
    assert (errors.found.tolist(), errors.pred_categories.tolist()) == ([True], [CAR])
    assert causes(errors) == [("car", "duplicate"), ("truck", "wrong class")]


def test_what_is_missed_counts_as_the_class_of_the_highest_score() -> None:
    _, errors = analyse(
        scene((26001, CAR_BOX)), (TRUCK, 0.7, CAR_BOX), (BUS, 0.9, CAR_BOX), (CAR, 0.4, CAR_BOX)
    )
    assert (errors.found.tolist(), errors.pred_categories.tolist()) == ([False], [BUS])


@pytest.mark.parametrize(
    ("category", "expected"), [(CAR, []), (RIDER, [("rider", "wrong class")] * 2)]
)
def test_what_the_protocol_ignores(category: int, expected: list[tuple[str, str]]) -> None:
    _, errors = analyse(
        scene((26, CAR_BOX), (26001, (50, 10, 9, 11)), (4, (80, 0, 40, 60))),
        (category, 0.9, CAR_BOX),  # a group
        (category, 0.9, (50, 10, 9, 11)),  # 99 pixels
        (category, 0.9, (75, 10, 20, 20)),  # 15 of 20 columns on void
    )
    assert causes(errors) == expected
    assert len(errors.categories) == 0


def test_occlusion_by_what_ends_lower() -> None:
    _, errors = analyse(
        scene(
            (26001, (10, 10, 40, 20)),  # box 40 x 20, the person takes 10 x 20 / 2 of it
            (24001, (20, 20, 10, 30)),
            (24002, (60, 10, 10, 20)),  # ends as low as the next: neither is closer
            (24003, (65, 10, 10, 20)),
        )
    )
    by_id = dict(zip(["24001", "24002", "24003", "26001"], errors.occlusions, strict=True))
    assert by_id == {"24001": 0, "24002": 0, "24003": 0, "26001": 10 * 10 / (40 * 20)}


def random_images(seed: int, count: int = 12) -> list[tuple[ImageMatches, ImageErrors]]:
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
        for number in range(9):
            y0, x0 = random.integers(0, 45), random.integers(0, 100)
            label = int(random.choice(LABEL_IDS[:4]))
            value = 4 if number == 0 else label if number == 1 else label * 1000 + number
            ids[y0 : y0 + random.integers(6, 25), x0 : x0 + random.integers(6, 35)] = value
        predictions = [Prediction(mask_from_bitmap(ids == 999), CAR, 0.99)]  # empty: does not count
        for value in [v for v in np.unique(ids).tolist() if v >= 24] * 3:
            shift = random.integers(-3, 4, size=2).tolist()
            mask = mask_from_bitmap(np.roll(ids == value, shift, axis=(0, 1)))
            right = LABEL_IDS.index(value if value < 1000 else value // 1000)
            category = right if random.random() < 0.7 else int(random.integers(0, 5))
            predictions.append(Prediction(mask, category, float(random.integers(1, 9)) / 8))
        gt = ground_truth(ids)
        matches = match_image(gt, predictions)
        images.append((matches, analyse_image(gt, predictions, matches, 0.5)))
    return images


@pytest.mark.parametrize("seed", range(3))
def test_curves_and_counts_agree_with_the_official_ap50(seed: int) -> None:
    images = random_images(seed)
    matches, errors = ([image[part] for image in images] for part in (0, 1))
    summary = summarise_errors(matches, errors, 0.5)
    official = average_precision(matches)[:, 0]
    areas = [np.nan if c is None else c.area() for c in summary.curves]
    np.testing.assert_array_equal(areas, official)
    assert 0.02 < np.nanmean(official) < 0.98
    objects, missed = summary.by_size.sum(axis=1).T
    np.testing.assert_array_equal(objects, sum(image.num_ground_truth for image in matches))
    for category, curve in enumerate(summary.curves):
        if curve is None:
            assert objects[category] == 0
            continue
        at = np.searchsorted(curve.confidences, 0.5)
        found = objects[category] - missed[category]
        detections = found + summary.false_positives[category].sum()
        assert curve.recall[at] == found / objects[category]
        assert curve.precision[at] == found / detections
    np.testing.assert_array_equal(summary.confusion[:8].sum(axis=1), objects)
    np.testing.assert_array_equal(summary.confusion[:8].diagonal(), objects - missed)
    np.testing.assert_array_equal(summary.by_size.sum(1), summary.by_occlusion.sum(1))
    on_nothing = summary.false_positives[:, [CAUSES.index("poor mask"), CAUSES.index("background")]]
    np.testing.assert_array_equal(summary.confusion[8, :8], on_nothing.sum(axis=1))
    assert (summary.false_positives.sum(axis=0) > 0).all()
    assert summary.confusion[:8, :8].diagonal().sum() < summary.confusion[:8, :8].sum()


def test_nothing_at_all_and_nothing_predicted() -> None:
    matches, errors = analyse(scene())
    for images in [([], []), ([matches], [errors])]:
        summary = summarise_errors(*images, 0.5)
        assert summary.curves == (None,) * 8
        assert summary.confusion.tolist() == [[0] * 9] * 9
    # 31 x 33 = 1,023; 32 x 32 = 1,024 is COCO's medium already.
    matches, errors = analyse(scene((26001, (0, 0, 31, 33)), (26002, (50, 0, 32, 32))))
    summary = summarise_errors([matches], [errors], 0.5)
    assert summary.confusion[CAR, 8] == 2
    assert summary.curves[CAR] is not None
    assert summary.curves[CAR].area() == 0.0 == average_precision([matches])[CAR, 0]
    assert summary.by_size[CAR].tolist() == [[1, 1], [1, 1], [0, 0]]


def test_threshold_that_is_no_number() -> None:
    with pytest.raises(InputError, match="NaN"):
        analyse(scene(), threshold=float("nan"))


def test_tables(tmp_path: Path) -> None:
    images = random_images(1)
    matches, errors = ([image[part] for image in images] for part in (0, 1))
    ap = average_precision(matches)
    write_error_tables(tmp_path / "new", summarise_errors(matches, errors, 0.5), ap)
    tables = {}
    for path in (tmp_path / "new").iterdir():
        with path.open() as file:
            tables[path.name] = list(csv.DictReader(file))
    assert set(tables) == {
        *("per_class.csv", "precision_recall.csv", "confusion.csv"),
        *("false_positives.csv", "misses.csv"),
    }
    car = tables["per_class.csv"][CAR]
    assert (car["class"], float(car["AP50"])) == ("car", 100 * ap[CAR, 0])
    assert int(car["found"]) + int(car["missed"]) == int(car["objects"]) > 0
    assert tables["per_class.csv"][7]["AP"] == ""  # no bicycle: not a number
    assert tables["confusion.csv"][8]["truth"] == "unmatched"
    assert len(tables["misses.csv"]) == 8 * (3 + 3)
