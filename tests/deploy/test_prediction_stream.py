from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cityscapes_maskrcnn.deploy.frame_drawing import FrameArtist
from cityscapes_maskrcnn.deploy.frames import open_source
from cityscapes_maskrcnn.deploy.prediction_output import JsonLines, StreamOutputs, VideoFile
from cityscapes_maskrcnn.deploy.prediction_stream import (
    PredictionStream,
    ReadAhead,
    WriteBehind,
)
from cityscapes_maskrcnn.utils.errors import InputError


def test_frames_keep_their_order_and_detections(tmp_path, make_video, square_model):
    source = open_source([str(make_video(tmp_path / "v.mp4", 40))])
    written = []
    stream = PredictionStream(source, square_model, lambda *each: written.append(each), depth=3)
    predicted = []
    stream.run(lambda: predicted.append(None))
    assert [frame.number for frame, _ in written] == list(range(40))
    for number, (_, found) in enumerate(written):
        assert [square_model.class_names[each] for each in found.classes] == ["car", "person"]
        # The white one is at the frame's number, the grey one as far from the other side.
        np.testing.assert_allclose(found.boxes[:, 0], (number, 140 - number), atol=2)
    assert len(predicted) == 40
    assert stream.num_dropped == 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_video(tmp_path, make_video, square_model):
    """Of the last 240 frames, 11 MB, less than a fifth stays: the noise of the allocator."""
    path = make_video(tmp_path / "v.mp4", 300)
    outputs = StreamOutputs(
        detections_to=[JsonLines(tmp_path / "a.jsonl", square_model.class_names)],
        pictures_to=[VideoFile(tmp_path / "a.mp4", 25)],
        artist=FrameArtist(square_model.class_names, square_model.class_colors),
        layout="prediction",
        in_motion=True,
    )
    stream = PredictionStream(open_source([str(path)]), square_model, outputs.write, depth=4)
    numbers = itertools.count(1)
    resident: list[int] = []

    def measure() -> None:
        if next(numbers) in (60, 300):
            gc.collect()
            resident.append(resident_bytes())

    stream.run(measure)
    assert outputs.close() == []
    assert outputs.num_frames == 300
    assert (tmp_path / "a.mp4").stat().st_size > 50_000
    assert resident[1] - resident[0] < 2_000_000


def test_reading_and_writing_go_on_while_the_model_works(tmp_path, make_video, square_model):
    """Each of the three takes 10 ms a frame; one after the other they would take 30."""

    class Slow(type(square_model)):
        def predict(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for image in images:
                time.sleep(0.01)
                yield image[:, :, 0]

    source = open_source([str(make_video(tmp_path / "v.mp4", 40))])
    frames = list(source)

    class SlowSource:
        live = False

        def __iter__(self):
            for frame in frames:
                time.sleep(0.01)
                yield frame

    begin = time.monotonic()
    stream = PredictionStream(SlowSource(), Slow(), lambda *_: time.sleep(0.01), depth=4)
    predicted = []
    stream.run(lambda: predicted.append(None))
    assert time.monotonic() - begin < 40 * 0.025
    assert len(predicted) == 40


def test_frames_before_an_unreadable_one_are_written(square_model):
    def frames():
        for number in range(5):
            yield frame_of(number)
        raise InputError("the camera is gone")

    written = []
    source = Source(frames())
    stream = PredictionStream(source, square_model, lambda frame, _: written.append(frame), 2)
    with pytest.raises(InputError, match="the camera is gone"):
        stream.run(lambda: None)
    assert [frame.number for frame in written] == list(range(5))


class Source:
    name = "a camera"

    def __init__(self, frames, live=False):
        self._frames = frames
        self.live = live

    def __iter__(self):
        return iter(self._frames)


def frame_of(number):
    from cityscapes_maskrcnn.deploy.frames import Frame

    return Frame(number, "x", None, np.zeros((32, 32, 3), np.uint8))


def test_nothing_is_written_after_a_failed_write(square_model):
    written = []

    def write(frame, _):
        if frame.number == 3:
            raise InputError("the disk is full")
        written.append(frame.number)

    stream = PredictionStream(Source(map(frame_of, range(10**9))), square_model, write, 2)
    with pytest.raises(InputError, match="the disk is full"):
        stream.run(lambda: None)
    assert written == [0, 1, 2]


def test_stopped_from_another_thread(square_model):
    written = []
    stream = PredictionStream(
        Source(map(frame_of, range(10**9))),
        square_model,
        lambda frame, _: written.append(frame.number),
        depth=2,
    )
    threading.Timer(0.2, stream.stop).start()
    predicted = []
    stream.run(lambda: predicted.append(None))
    assert written == list(range(len(predicted)))
    assert predicted


def test_read_ahead_holds_no_more_than_its_depth():
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    ahead = ReadAhead(items(), depth=3)
    ahead.start()
    results = iter(ahead)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(taken) == 5  # one is used, three wait, one waits for room
    assert list(results) == list(range(1, 10))


def test_newest_frames_of_a_camera_count():
    ready = threading.Event()

    def items():
        yield from range(10)
        ready.set()

    ahead = ReadAhead(items(), depth=2, newest=True)
    ahead.start()
    assert ready.wait(5)
    assert list(ahead) == [8, 9]
    assert ahead.num_dropped == 8


def test_write_behind_waits_for_room():
    gate, done = threading.Event(), []

    def write(item: int) -> None:
        gate.wait()
        done.append(item)

    behind = WriteBehind(write, depth=2)
    behind.put(0)
    behind.put(1)
    blocked = threading.Thread(target=behind.put, args=(2,))
    blocked.start()
    time.sleep(0.05)
    assert blocked.is_alive()
    gate.set()
    blocked.join(5)
    behind.close()
    assert done == [0, 1, 2]


def test_write_behind_keeps_raising_what_a_write_raised():
    tried = []

    def write(item: int) -> None:
        tried.append(item)
        time.sleep(0.05)
        raise InputError(f"item {item}")

    behind = WriteBehind(write, depth=1)
    behind.put(0)
    for _ in range(3):  # the first waits for room
        with pytest.raises(InputError, match="item 0"):
            behind.put(1)
    with pytest.raises(InputError, match="item 0"):
        behind.close()
    assert tried == [0]
