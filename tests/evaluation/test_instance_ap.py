"""The score against the real official function, on the same files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official  # noqa: N813
from PIL import Image

from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.evaluation.instance_ap import (
    OVERLAPS,
    ImageMatches,
    Prediction,
    average_precision,
    averages,
    format_averages,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.evaluation.result_files import (
    find_ground_truth,
    find_result_files,
    read_masks,
    read_result_lines,
)
from cityscapes_maskrcnn.evaluation.result_source import ResultSource
from cityscapes_maskrcnn.utils.errors import InputError

Score = Callable[[Path, Path], dict[str, Any]]
PERSON, CAR, TRAIN = 0, 2, 5
INSTANCE_IDS = [24, 25, 26, 27, 28, 31, 32, 33]


def mask(ids: np.ndarray, y0: int, y1: int, x0: int, x1: int) -> RunMask:
    """A filled rectangle in a frame like ``ids``; y1 and x1 are exclusive."""
    full = np.zeros(ids.shape, dtype=bool)
    full[y0:y1, x0:x1] = True
    return mask_from_bitmap(full)


FRAME = np.zeros((5, 5))


@pytest.fixture
def official_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Call the official evaluateImgLists on a folder of results and one of ground truth."""
    # It only writes caches, which newer NumPy's numbers break and which nobody reads here.
    monkeypatch.setattr(official, "writeDict2JSON", lambda *_: None)

    def score(results: Path, gt_dir: Path) -> dict[str, Any]:
        arguments = official.CArgs()
        arguments.__dict__.update(official.args.__dict__)
        arguments.quiet = True
        arguments.JSONOutput = False
        arguments.gtInstancesFile = str(tmp_path / "does_not_exist.json")
        arguments.predictionPath = str(results)
        arguments.predictionWalk = None
        gt_files = sorted(str(file) for file in gt_dir.glob("*/*_gtFine_instanceIds.png"))
        predictions = [official.getPrediction(file, arguments) for file in gt_files]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # its nanmean of nothing
            result: dict[str, Any] = official.evaluateImgLists(predictions, gt_files, arguments)
        return result

    return score


class Scenes:
    """Random images with ground truth and predictions that meet every rule of the protocol."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        random = self.random
        self.classes = random.choice(INSTANCE_IDS, size=random.integers(1, 5), replace=False)
        self.num_objects = random.choice([0, 1, 4, 9])
        self.num_predictions = random.choice([0, 1, 6, 14], p=[0.1, 0.1, 0.4, 0.4])
        self.few_confidences = random.random() < 0.4

    def rectangle(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        height, width = shape
        y0, x0 = self.random.integers(0, height - 3), self.random.integers(0, width - 3)
        tall, wide = self.random.integers(2, [height // 2, width // 2])
        return slice(y0, y0 + tall), slice(x0, x0 + wide)

    def instance_ids(self, shape: tuple[int, int]) -> np.ndarray:
        random = self.random
        ids = np.full(shape, 7, dtype=np.uint16)
        for _ in range(random.integers(0, 4)):  # void of all kinds, and road
            ids[self.rectangle(shape)] = random.choice([0, 1, 3, 4, 6, 7, 9, 18, 29, 30])
        for number in range(self.num_objects):
            label = random.choice(self.classes)
            kind = random.random()
            value = label if kind < 0.2 else label * 1000 + number  # a group, or an instance
            if kind > 0.95:
                value = 29000 + number  # a caravan: ignored, but its pixels are not void
            ids[self.rectangle(shape)] = value
        return ids

    def predictions(self, ids: np.ndarray) -> list[tuple[np.ndarray, int, float]]:
        random = self.random
        result = []
        objects = [value for value in np.unique(ids) if value >= 24]
        for _ in range(self.num_predictions):
            kind = random.random()
            if kind < 0.6 and objects:  # a noisy copy of an object; often two of the same
                value = int(random.choice(objects))
                found = ids == value
                found &= random.random(ids.shape) < random.choice([0.55, 0.8, 1.0])
                found |= random.random(ids.shape) < random.choice([0.0, 0.0, 0.01])
                label = value if value < 1000 else value // 1000
            else:
                found = np.zeros(ids.shape, dtype=bool)
                if kind < 0.95:
                    found[self.rectangle(ids.shape)] = True
                elif kind < 0.97:
                    found[:] = True
                label = int(random.choice(self.classes))
            if random.random() < 0.15:  # another class; 7 and 29 are not evaluated
                label = int(random.choice([*INSTANCE_IDS, 7, 29]))
            confidence = float(np.float32(random.random()))
            if self.few_confidences:
                confidence = float(random.choice([0.0, 0.25, 0.5]))
            result.append((found, label, confidence))
        return result


def write_case(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write a case's files, by hand: the official reader and ours get the same ones."""
    scenes = Scenes(seed)
    gt_dir, results = folder / "gt" / "val", folder / "results"
    (gt_dir / "ulm").mkdir(parents=True)
    results.mkdir()
    for index in range(scenes.random.integers(1, 4)):
        shape = tuple(scenes.random.integers(30, 70, size=2).tolist())
        ids = scenes.instance_ids(shape)
        Image.fromarray(ids).save(gt_dir / "ulm" / f"ulm_{index:06}_000019_gtFine_instanceIds.png")
        lines = []
        for number, (found, label, confidence) in enumerate(scenes.predictions(ids)):
            file = results / f"{index}_{number}.png"
            Image.fromarray(found.astype(np.uint8) * 255).save(file, compress_level=0)
            lines.append(f"{file.name} {label} {confidence}\n")
        (results / f"ulm_{index:06}_000019_pred.txt").write_text("".join(lines))
    return results, gt_dir


def match_case(results: Path, gt_dir: Path) -> list[ImageMatches]:
    """Match a case's files, also where the ground truth has nothing to score."""
    source, gt_files = ResultSource(results), find_ground_truth(gt_dir)
    matches = []
    for text, gt_file in zip(
        find_result_files(source, [*gt_files]), gt_files.values(), strict=True
    ):
        ids = read_instance_ids(gt_file)
        lines, (height, width) = read_result_lines(source, text), ids.shape
        predictions = read_masks(source, text, lines, height=height, width=width)
        matches.append(match_image(ground_truth(ids), predictions))
    return matches


@pytest.mark.usefixtures("numpy_with_in1d")
@pytest.mark.parametrize("first", range(0, 200, 40))
def test_same_bits_as_the_official_function(
    first: int, tmp_path: Path, official_score: Score
) -> None:
    compared, values = 0, []
    for seed in range(first, first + 40):
        folder = tmp_path / str(seed)
        results, gt_dir = write_case(folder, seed)
        ap = average_precision(match_case(results, gt_dir))
        try:
            expected = official_score(results, gt_dir)
        except IndexError:  # its defect: ground truth, and every prediction ignored
            continue
        compared += 1
        values.append(ap)
        np.testing.assert_array_equal(ap, np.array(expected["resultApMatrix"])[0], str(seed))
        assert list(expected["overlaps"]) == list(OVERLAPS)
        # assert_equal takes NaN for equal to NaN and compares nested dictionaries exactly.
        np.testing.assert_equal(averages(ap), expected["averages"])
    assert compared >= 35
    # The cases are worth comparing: absent, 0, perfect and anything between.
    assert np.isnan(values).any()
    assert {0, 1} < set(np.ravel(values))
    assert ((np.array(values) > 0) & (np.array(values) < 1)).sum() > 100


def test_calibration_of_each_class_changes_no_bit(tmp_path: Path) -> None:
    """A strictly increasing function of a class's confidences, another one for each class."""
    changed = 0
    for seed in range(20):
        folder = tmp_path / str(seed)
        matches = match_case(*write_case(folder, seed))
        calibrated = [
            replace(
                each,
                confidences=(0.1 + 0.05 * each.categories)
                * each.confidences ** (0.3 + 0.4 * each.categories),
            )
            for each in matches
        ]
        for before, after in zip(matches, calibrated, strict=True):
            for category in set(before.categories.tolist()):
                mine = before.categories == category
                pairs = before.confidences[mine], after.confidences[mine]
                # As many different ones in the same order: nothing was rounded away.
                np.testing.assert_array_equal(
                    *(np.unique(each, return_inverse=True)[1] for each in pairs)
                )
            changed += not np.array_equal(
                before.confidences.argsort(kind="stable"), after.confidences.argsort(kind="stable")
            )
        np.testing.assert_array_equal(average_precision(matches), average_precision(calibrated))
    # Across the classes, the order is another one.
    assert changed > 10


def test_one_true_positive_one_false_positive_one_miss() -> None:
    ids = np.full((40, 100), 7, dtype=np.uint16)
    ids[0:10, 0:10] = 26000  # found
    ids[20:30, 0:10] = 26001  # missed
    predictions = [
        Prediction(mask(ids, 0, 10, 0, 8), CAR, 0.9),  # IoU 80 / 100 = 0.8
        Prediction(mask(ids, 0, 10, 50, 60), CAR, 0.5),  # on the road
        Prediction(mask(ids, 0, 10, 0, 10), PERSON, 0.9),  # no person there
    ]
    matches = match_image(ground_truth(ids), predictions)
    assert matches.overlaps.tolist() == [0.8, 0.0, 0.0]
    assert matches.targets.tolist() == [0, -1, -1]
    assert matches.num_ground_truth.tolist() == [0, 0, 2, 0, 0, 0, 0, 0]
    ap = average_precision([matches])
    # The curve's points are (recall 1/2, precision 1/2), (1/2, 1), (0, 1). Each is weighted with
    # half the recall between its neighbours: 1/2 * 0 + 1 * 1/4 + 1 * 1/4 = 1/2, below IoU 0.8
    # (0.50 ... 0.75: 6 overlaps; strict, and the seventh is 0.8000000000000003).
    assert ap[CAR].tolist() == [0.5] * 6 + [0.0] * 4
    assert np.isnan(np.delete(ap, CAR, axis=0)).all()
    result = averages(ap)
    assert result["allAp50%"] == 0.5
    assert result["classes"]["car"]["ap"] == pytest.approx(0.3)  # 6 * 0.5 / 10
    assert np.isnan(result["classes"]["person"]["ap"])


def test_limits_of_overlap_and_size() -> None:
    ids = np.full((20, 40), 7, dtype=np.uint16)
    ids[0:9, 0:11] = 26000  # 99 pixels: ignored
    ids[10:20, 0:10] = 26001  # 100 pixels: evaluated
    predictions = [
        Prediction(mask(ids, 0, 9, 0, 11), CAR, 0.9),
        Prediction(mask(ids, 10, 20, 0, 5), CAR, 0.5),  # IoU 50 / 100 does not exceed 0.5
    ]
    matches = match_image(ground_truth(ids), predictions)
    assert matches.num_ground_truth[CAR] == 1
    assert matches.targets.tolist() == [-1, 1]
    assert matches.overlaps.tolist() == [1.0, 0.5]
    assert matches.ignored.tolist() == [1.0, 0.0]
    assert average_precision([matches])[CAR, 0] == 0.0


@pytest.mark.usefixtures("numpy_with_in1d")
def test_all_predictions_ignored_gives_zero(tmp_path: Path, official_score: Score) -> None:
    ids = np.full((40, 40), 7, dtype=np.uint16)
    ids[0:10, 0:10] = 26000
    ids[20:40] = 0
    matches = match_image(ground_truth(ids), [Prediction(mask(ids, 20, 30, 0, 10), CAR, 0.9)])
    assert average_precision([matches])[CAR].tolist() == [0] * 10
    (tmp_path / "ulm").mkdir()
    Image.fromarray(ids).save(tmp_path / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png")
    Image.fromarray(np.uint8(ids == 0)).save(tmp_path / "m.png")
    (tmp_path / "ulm_000000_000019.txt").write_text("m.png 26 0.9\n")
    with pytest.raises(IndexError):  # If this stops failing, drop the note in instance_ap.
        official_score(tmp_path, tmp_path)


@pytest.mark.filterwarnings("error")
def test_no_ground_truth_is_nan_and_no_prediction_zero() -> None:
    bare = match_image(ground_truth(np.full((4, 4), 7, dtype=np.uint16)), [])
    for matches in ([], [bare]):
        ap = average_precision(matches)
        assert (ap.shape, np.isnan(ap).all()) == ((8, 10), True)
        assert np.isnan([averages(ap)["allAp"], averages(ap)["allAp50%"]]).all()
    ids = np.full((20, 20), 31000, dtype=np.uint16)
    for predictions in ([], [Prediction(mask(ids, 0, 0, 0, 0), TRAIN, 0.9)]):
        image = match_image(ground_truth(ids), predictions)
        assert len(image.confidences) == 0
        assert average_precision([image])[TRAIN].tolist() == [0.0] * 10


def test_ground_truth_holds_boxes_areas_and_masks() -> None:
    ids = np.zeros((6, 5), dtype=np.uint16)
    ids[1:3, 1:5] = 24001
    ids[2, 2] = 24  # cuts into it
    ids[4, 0] = 33000
    gt = ground_truth(ids)
    assert gt.ids.tolist() == [24, 24001, 33000]
    assert gt.categories.tolist() == [0, 0, 7]
    assert gt.areas.tolist() == [1, 7, 1]
    assert gt.boxes.tolist() == [[2, 2, 3, 3], [1, 1, 5, 3], [0, 4, 1, 5]]
    assert gt.is_group.tolist() == [True, False, False]
    assert gt.instance_mask(1).frame()[1:3, 1:].tolist() == [[1] * 4, [1, 0, 1, 1]]


def test_void_is_every_ignored_label_id_but_no_instance_id() -> None:
    void = []
    for label_id in [*range(34), 29000]:
        ids = np.full((5, 5), label_id, dtype=np.uint16)
        matches = match_image(ground_truth(ids), [Prediction(mask(ids, 0, 5, 0, 5), CAR, 0.9)])
        if matches.ignored.tolist() == [1.0] and label_id != 26:
            void.append(label_id)
    assert void == [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]


def test_more_instances_than_a_byte_holds() -> None:
    ids = np.repeat(24000 + np.arange(400, dtype=np.uint16), 100).reshape(400, 100)
    predictions = [Prediction(mask_from_bitmap(ids == 24399), PERSON, 0.5)]
    matches = match_image(ground_truth(ids), predictions)
    assert matches.targets.tolist() == [399]
    assert matches.overlaps.tolist() == [1.0]
    assert average_precision([matches])[PERSON, 0] == 1 / 400


@pytest.mark.parametrize("value", [34, 999, 34000, 65535])
def test_unknown_instance_id(value: int) -> None:
    with pytest.raises(InputError, match=f"instance id {value}"):
        ground_truth(np.full((2, 2), value, dtype=np.uint16))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (Prediction(mask(FRAME, 0, 1, 0, 1), CAR, float("nan")), "NaN"),
        (Prediction(mask(FRAME, 0, 1, 0, 1), 8, 0.5), "the class 8"),
        (
            Prediction(mask(np.zeros((5, 6)), 0, 2, 4, 6), CAR, 0.5),
            "a mask is 5 x 6 .* image 5 x 5",
        ),
    ],
)
def test_invalid_predictions(prediction: Prediction, message: str) -> None:
    gt = ground_truth(np.full((5, 5), 7, dtype=np.uint16))
    with pytest.raises(InputError, match=message):
        match_image(gt, [prediction])


def test_table_names_its_protocol() -> None:
    ap = np.full((8, 10), np.nan)
    ap[CAR] = 0.25
    table = format_averages(averages(ap)).splitlines()
    assert "Cityscapes instance protocol (official)" in table[0]
    assert table[4].split() == ["car", "25.00", "25.00"]
    assert table[2].split() == ["person", "nan", "nan"]
    assert table[-1].split() == ["average", "25.00", "25.00"]
