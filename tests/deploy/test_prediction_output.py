from __future__ import annotations

import json

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.deploy.frame_detections import FrameDetections
from cityscapes_maskrcnn.deploy.frames import Frame
from cityscapes_maskrcnn.deploy.prediction_output import (
    JsonLines,
    PictureFolder,
    VideoFile,
    coco_entries,
    mask_polygons,
)
from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap
from cityscapes_maskrcnn.utils.errors import InputError

CATEGORIES = [(26, "car"), (24, "person")]
GREY = np.full((48, 64, 3), 100, np.uint8)


def frame(number=0, seconds=None, image=GREY, name="v.mp4"):
    return Frame(number=number, name=name, seconds=seconds, image=image)


def two_squares(track_ids=None):
    masks = []
    for x, y in ((2, 3), (20, 10)):
        bitmap = np.zeros((48, 64), bool)
        bitmap[y : y + 8, x : x + 4] = True
        masks.append(mask_from_bitmap(bitmap))
    return FrameDetections(
        classes=np.array([0, 1]),
        scores=np.array([0.9877, 0.5], np.float32),
        boxes=np.array([[2, 3, 6, 11.123], [20, 10, 24, 18]], np.float32),
        masks=masks,
        track_ids=track_ids,
    )


def test_entries_are_coco_results():
    found = two_squares(np.array([7, 0]))
    car, person = coco_entries(frame(12, 0.48), found, CATEGORIES, "rle")
    segmentation = car.pop("segmentation")
    assert car == {
        "image": "v.mp4",
        "image_id": 12,
        "seconds": 0.48,
        "category_id": 26,
        "category": "car",
        "bbox": [2.0, 3.0, 4.0, 8.12],
        "score": 0.9877,
        "track_id": 7,
    }
    assert person["track_id"] is None
    assert json.loads(json.dumps(segmentation))["size"] == [48, 64]
    np.testing.assert_array_equal(coco_mask.decode(segmentation), found.masks[0].frame())


def test_polygons():
    car, _ = coco_entries(frame(), two_squares(), CATEGORIES, "polygons")
    assert "seconds" not in car
    assert "track_id" not in car
    (polygon,) = car["segmentation"]
    x, y = polygon[0::2], polygon[1::2]
    # Pixels 2 to 5 reach from 2.0 to 6.0.
    assert (min(x), max(x), min(y), max(y)) == (2, 6, 3, 11)
    assert "segmentation" not in coco_entries(frame(), two_squares(), CATEGORIES, "none")[0]


def test_polygons_of_parts_and_holes():
    bitmap = np.zeros((100, 200), np.uint8)
    cv2.circle(bitmap, (50, 50), 40, 1, -1)
    cv2.circle(bitmap, (50, 50), 10, 0, -1)
    cv2.circle(bitmap, (150, 50), 20, 1, -1)
    polygons = mask_polygons(mask_from_bitmap(bitmap))
    assert len(polygons) == 2
    filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 100, 200)))
    cv2.circle(bitmap, (50, 50), 11, 1, -1)  # without its hole
    assert (filled & bitmap).sum() / (filled | bitmap).sum() > 0.98
    assert mask_polygons(mask_from_bitmap(np.zeros((5, 5)))) == []


def test_json_lines_get_their_name_when_they_are_closed(tmp_path):
    path = tmp_path / "new" / "found.jsonl"
    lines = JsonLines(path, THING_CLASSES, "rle")
    assert not list(path.parent.iterdir())
    lines.write(frame(0), two_squares())
    partial = tmp_path / "new" / "found.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 2  # at once
    lines.write(frame(1), two_squares().select(np.array([False, True])))
    lines.close()
    assert list(path.parent.iterdir()) == [path]
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["image_id"] for entry in entries] == [0, 0, 1]
    assert [entry["category_id"] for entry in entries] == [24, 25, 25]  # person, rider


def test_two_processes_do_not_write_into_one_file(tmp_path):
    for name, kind, what in (
        ("a.jsonl", lambda path: JsonLines(path, THING_CLASSES), two_squares()),
        ("a.mp4", lambda path: VideoFile(path, 25), GREY),
    ):
        first, second = kind(tmp_path / name), kind(tmp_path / name)
        first.write(frame(0), what)
        with pytest.raises(InputError, match=rf"/{name}: another process is writing it$"):
            second.write(frame(0), what)
        second.close()
        kind(tmp_path / name)
        first.write(frame(1), what)
        first.close()
        third = kind(tmp_path / name)
        third.write(frame(0), what)
        third.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.mp4"]


def test_earlier_file_stays_if_there_is_no_frame(tmp_path):
    (tmp_path / "a.jsonl").write_text("old")
    JsonLines(tmp_path / "a.jsonl", THING_CLASSES).close()
    VideoFile(tmp_path / "a.mp4", 25).close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert (tmp_path / "a.jsonl").read_text() == "old"


def test_lines_stay_whole_on_a_full_disk(tmp_path, full_disk):
    lines = JsonLines(tmp_path / "a.jsonl", THING_CLASSES)
    lines.write(frame(0), two_squares())
    size = (tmp_path / "a.partial.jsonl").stat().st_size
    with full_disk(size + size // 2), pytest.raises(InputError, match=r"a\.jsonl: cannot be wri"):
        lines.write(frame(1), two_squares())
    lines.close()
    entries = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [entry["image_id"] for entry in entries] == [0, 0]


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    frames = []
    while True:
        is_read, image = capture.read()
        if not is_read:
            return rate, frames
        frames.append(image)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.mov", "a.webm"])
def test_video(tmp_path, name):
    path = tmp_path / name
    video = VideoFile(path, 12.5)
    for number in range(10):
        video.write(frame(number), np.full((49, 65, 3), 20 * number, np.uint8))
    assert [each.name for each in tmp_path.iterdir()] == [f"a.partial{path.suffix}"]
    video.close()
    assert list(tmp_path.iterdir()) == [path]
    rate, frames = read_video(path)
    assert rate == pytest.approx(12.5, abs=0.01)
    assert len(frames) == 10
    assert frames[0].shape == (50, 66, 3)
    values = [int(image[20, 20, 0]) for image in frames]
    np.testing.assert_allclose(values, np.arange(0, 200, 20), atol=6)


def test_frames_are_shown_when_their_source_showed_them(tmp_path):
    video = VideoFile(tmp_path / "a.mp4", 10)
    # At 10 frames a second: 0, 1, 1 again, which is left out but shown at 2 and 3, and 4.
    for seconds, grey in ((0, 40), (0.1, 80), (0.13, 120), (0.4, 160)):
        video.write(frame(seconds=seconds), np.full((48, 64, 3), grey, np.uint8))
    video.close()
    _, frames = read_video(tmp_path / "a.mp4")
    values = [int(image[20, 20, 0]) for image in frames]
    np.testing.assert_allclose(values, [40, 80, 120, 120, 160], atol=6)


def test_pictures_of_other_sizes_are_fitted(tmp_path):
    video = VideoFile(tmp_path / "a.avi", 10)
    for shape in ((48, 64), (96, 64), (20, 10)):
        video.write(frame(), np.full((*shape, 3), 200, np.uint8))
    video.close()
    _, frames = read_video(tmp_path / "a.avi")
    assert {image.shape for image in frames} == {(48, 64, 3)}
    # 96 high is twice too high: 32 wide. 20 x 10 becomes 48 x 24.
    for image, width in zip(frames, (64, 32, 24), strict=True):
        columns = np.flatnonzero(image[24, :, 0] > 100)
        assert len(columns) == pytest.approx(width, abs=2)


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("a.mp4", "XXXX", "--codec XXXX: this OpenCV cannot write it into a .mp4 file at 25 fra"),
        ("a.mp4", "long", "--codec long: this OpenCV cannot write"),
        ("a.avi", "h", "--codec h: it must be four letters"),
    ],
)
def test_codecs_that_cannot_be_written(tmp_path, name, codec, message, capfd):
    with pytest.raises(InputError) as error:
        VideoFile(tmp_path / name, 25, codec)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"^--output {tmp_path}/file/a\.jsonl: cannot be wr"):
        JsonLines(tmp_path / "file" / "a.jsonl", THING_CLASSES)
    with pytest.raises(InputError, match=rf"^--output {tmp_path}/file/a\.mp4: cannot be writt"):
        VideoFile(tmp_path / "file" / "a.mp4", 25)
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(InputError, match=r"b\.mp4: is a folder$"):
        VideoFile(tmp_path / "b.mp4", 25)


def test_video_on_a_full_disk(tmp_path, full_disk):
    (tmp_path / "a.mp4").write_bytes(b"an earlier one")
    video = VideoFile(tmp_path / "a.mp4", 25)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with full_disk(20_000):
        for number in range(60):
            video.write(frame(number), np.roll(noise, 7 * number, axis=0))
        with pytest.raises(InputError, match=r"a\.partial\.mp4: could not be finished; is the d"):
            video.close()
    assert (tmp_path / "a.mp4").read_bytes() == b"an earlier one"


def test_video_is_finished_before_the_disk_is_full(tmp_path, monkeypatch):
    video = VideoFile(tmp_path / "a.mp4", 25)
    for number in range(10):
        video.write(frame(number), GREY)
    monkeypatch.setattr("cityscapes_maskrcnn.deploy.prediction_output._MIN_FREE_BYTES", 2**80)
    with pytest.raises(InputError, match=r"a\.mp4: the disk is almost full$"):
        video.write(frame(10), GREY)
    video.close()
    assert len(read_video(tmp_path / "a.mp4")[1]) == 10


def test_pictures_are_named_after_image_or_video(tmp_path):
    pictures = PictureFolder(tmp_path, "prediction", None)
    for name in ("x/a.png", "y/a.jpg"):
        pictures.write(frame(name=name), GREY)
    pictures = PictureFolder(tmp_path, "overlay", "drive/dusk.mp4")
    pictures.write(frame(25), np.dstack([GREY, GREY[:, :, :1]]))
    pictures = PictureFolder(tmp_path, "prediction", "0")
    pictures.write(frame(3), GREY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a_2_prediction.png",
        "a_prediction.png",
        "camera_0_000003_prediction.png",
        "dusk_000025_overlay.png",
    ]
    overlay = cv2.imread(str(tmp_path / "dusk_000025_overlay.png"), cv2.IMREAD_UNCHANGED)
    assert overlay.shape == (48, 64, 4)
