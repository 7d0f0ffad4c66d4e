from __future__ import annotations

import sys

import numpy as np
import pytest

from cityscapes_maskrcnn.deploy.frames import open_source
from cityscapes_maskrcnn.deploy.prediction_stream import PredictionStream
from cityscapes_maskrcnn.deploy.tracking import ObjectTracker
from cityscapes_maskrcnn.utils.errors import InputError

PERSON, CAR = 0, 2


@pytest.fixture
def tracker() -> ObjectTracker:
    return ObjectTracker(25, 0.5)


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError) as error:
        ObjectTracker(25, 0.5)
    assert str(error.value) == (
        "--track: supervision is not installed: pip install -e '.[track]' && pip install --no-deps"
        " 'trackers>=2.6'"
    )


def test_numbers_stay_in_a_moving_video(tracker, tmp_path, make_video, square_model):
    """The squares pass each other; each keeps its number from its second frame on."""
    source = open_source([str(make_video(tmp_path / "v.mp4", 130))])
    numbers = []
    stream = PredictionStream(
        source,
        square_model,
        lambda _, found: numbers.append(dict(zip(
            found.classes.tolist(), tracker.update(found).track_ids.tolist(), strict=True
        ))),
        depth=4,
    )  # fmt: skip
    stream.run(lambda: None)
    assert numbers[0] == {CAR: 0, PERSON: 0}
    assert set(numbers[1].values()) == {1, 2}
    assert all(each == numbers[1] for each in numbers[1:])


def test_hidden_object_keeps_its_number(tracker, square_model):
    def found(number, visible=True):
        image = np.zeros((96, 160), np.uint8)
        image[20:40, 10 + number : 30 + number] = 255 * visible
        return square_model.detections(image, 96, 160)

    for number in range(5):
        before = tracker.update(found(number)).track_ids
    for number in range(5, 10):
        assert len(tracker.update(found(number, visible=False))) == 0
    after = tracker.update(found(10)).track_ids
    assert before.tolist() == after.tolist() == [1]


def test_numbers_of_ended_tracks_are_forgotten_and_not_given_again(tracker, square_model):
    """Objects that are seen for three frames, one after the other, far from each other."""
    found = []
    for number in range(20):
        image = np.zeros((96, 160), np.uint8)
        image[20:40, 10 + 60 * (number % 2) : 30 + 60 * (number % 2)] = 255
        for _ in range(3):
            detections = tracker.update(square_model.detections(image, 96, 160))
        found += detections.track_ids.tolist()
        for _ in range(40):  # longer than a track waits
            tracker.update(square_model.detections(np.zeros_like(image), 96, 160))
        assert len(tracker._numbers) <= 1
    assert found == list(range(1, 21))


def test_weak_detections_continue_tracks_but_begin_none(tracker, square_model):
    image = np.zeros((96, 160), np.uint8)
    image[20:40, 10:30] = 255
    found = square_model.detections(image, 96, 160)
    found.scores[:] = 0.55  # in the lowest fifth from 0.5 to 1, which ends at 0.6
    assert [tracker.update(found).track_ids.tolist() for _ in range(3)] == [[0]] * 3
    found.scores[:] = 0.9
    tracker.update(found)
    assert tracker.update(found).track_ids.tolist() == [1]
    found.scores[:] = 0.55
    assert tracker.update(found).track_ids.tolist() == [1]
