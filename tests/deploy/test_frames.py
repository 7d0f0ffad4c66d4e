from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from cityscapes_maskrcnn.deploy.frames import open_source, parse_size
from cityscapes_maskrcnn.utils.errors import InputError


def write_image(path: Path, grey: int, height: int = 32, width: int = 64) -> Path:
    cv2.imwrite(str(path), np.full((height, width, 3), grey, np.uint8))
    return path


def test_images_in_their_order_without_those_that_cannot_be_read(tmp_path, caplog):
    for number in range(5):
        write_image(tmp_path / f"{number}.png", 10 * number)
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    source = open_source([str(tmp_path)])
    assert (source.length, source.unit, source.rate, source.name) == (5, "image", None, None)
    frames = list(source)
    assert [(frame.number, int(frame.image[0, 0, 0])) for frame in frames] == [
        (0, 0), (1, 10), (3, 30), (4, 40),
    ]  # fmt: skip
    assert frames[1].name == str(tmp_path / "1.png")
    assert frames[1].seconds is None
    assert source.num_unreadable == 1
    assert caplog.messages == [
        f"{tmp_path}/2.png: truncated, or not an image of a known format (PNG, JPEG, WebP); fetch"
        " or unpack it again, or convert it; left out"
    ]


def test_every_third_image(tmp_path):
    for number in range(7):
        write_image(tmp_path / f"{number}.png", number)
    source = open_source([str(tmp_path / "*.png")], every=3)
    assert source.length == 3  # 0 3 6
    assert [frame.number for frame in source] == [0, 3, 6]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20x10", (10, 20)),  # height, width
        ("16", (8, 16)),  # 64 x 32 is four times as large
        ("128", (64, 128)),
    ],
)
def test_resized(text, size, tmp_path):
    path = write_image(tmp_path / "a.png", 7)
    (frame,) = open_source([str(path)], size=parse_size(text))
    assert frame.image.shape == (*size, 3)
    assert frame.image.dtype == np.uint8


@pytest.mark.parametrize("text", ["", "0", "10x", "x10", "10x0", "9000", "-5", "1.5", "a"])
def test_bad_sizes(text):
    with pytest.raises(InputError, match=f"^--resize {text}: it must be WIDTHxHEIGHT or the "):
        parse_size(text)


def test_nothing_is_left_of_an_image(tmp_path, caplog):
    path = write_image(tmp_path / "a.png", 0, height=1, width=100)
    assert not list(open_source([str(path)], size=parse_size("10")))
    assert "100x1 pixels cannot be resized: nothing is left" in caplog.text


@contextmanager
def standard_input(path: Path) -> Iterator[None]:
    saved, given = os.dup(0), os.open(path, os.O_RDONLY)
    os.dup2(given, 0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(given)


def test_names_on_standard_input(tmp_path):
    paths = [write_image(tmp_path / name, 3) for name in ("b.png", "a b.png", "c.png")]
    (tmp_path / "names").write_bytes(f"{paths[0]}\r\n\n{paths[1]}\n{paths[2]}".encode())
    with standard_input(tmp_path / "names"):
        source = open_source(["-"])
        assert source.length is None
        assert [frame.name for frame in source] == list(map(str, paths))


def test_standard_input_without_names(tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(200_000))
    for path, message in {
        tmp_path / "zeros": "--input -: a line of more than 65536 bytes names no file",
        tmp_path: "--input -: standard input cannot be read: Is a directory",
    }.items():
        with standard_input(path), pytest.raises(InputError, match=f"^{message}$"):
            list(open_source(["-"]))


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv", "100%d.mov"])
def test_video(name, tmp_path, make_video):
    path = make_video(tmp_path / name, 20, "MJPG" if name.endswith("avi") else "mp4v")
    source = open_source([str(path)])
    assert (source.length, source.rate, source.unit) == (20, 25, "frame")
    frames = list(source)
    assert [frame.number for frame in frames] == list(range(20))
    # Milliseconds is what Matroska counts in.
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(20) / 25, atol=1e-3)
    # The white square is as far to the right as the frame's number says.
    left = [np.flatnonzero(frame.image[30, :, 0] > 128).min() for frame in frames]
    np.testing.assert_allclose(left, np.arange(20), atol=1)


def test_every_third_frame_of_a_video(tmp_path, make_video):
    source = open_source([str(make_video(tmp_path / "v.mp4", 20))], every=3)
    assert source.length == 7  # 0 3 ... 18
    assert source.rate == pytest.approx(25 / 3)
    frames = list(source)
    assert [frame.number for frame in frames] == [0, 3, 6, 9, 12, 15, 18]
    assert frames[-1].seconds == pytest.approx(18 / 25)


def test_a_length_that_is_estimated_too_low_cuts_nothing(tmp_path, make_video):
    source = open_source([str(make_video(tmp_path / "v.mkv", 20))])
    source._count = 12
    assert [frame.number for frame in source] == list(range(20))


def test_damaged_frames_are_left_out_and_counted(tmp_path, make_video, caplog):
    path = make_video(tmp_path / "v.avi", 40, "MJPG")
    data = bytearray(path.read_bytes())
    # Of the tenth frame's JPEG and of the next one's nothing is left but its length.
    at = -1
    for number in range(12):
        at = data.index(b"00dc", at + 1)
        if number >= 10:
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            data[at + 8 : at + 8 + size] = bytes(size)
    path.write_bytes(data)
    assert len(list(open_source([str(path)]))) == 38
    assert caplog.messages == [
        f"{path}: 38 of its 40 frames could be read; the others are damaged or cut off"
    ]


def test_damaged_times(tmp_path, make_video):
    path = make_video(tmp_path / "v.mkv", 150)
    data = bytearray(path.read_bytes())
    # The second cluster begins after 5 s; here in 65,535 milliseconds.
    at = data.index(b"\x1f\x43\xb6\x75", data.index(b"\x1f\x43\xb6\x75") + 4)
    at = data.index(b"\xe7", at)
    size = data[at + 1] & 0x7F
    data[at + 2 : at + 2 + size] = b"\xff" * size
    path.write_bytes(data)
    seconds = [frame.seconds for frame in open_source([str(path)])]
    np.testing.assert_allclose(np.diff(seconds), 1 / 25, atol=2e-3)


def test_end_of_a_video_is_cut_off(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 20)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"v\.mp4: neither an image of a known format nor a r"):
        open_source([str(path)])


def test_what_is_no_video(tmp_path, capfd):
    path = tmp_path / "notes.txt"
    path.write_text("nothing to see")
    for given in (str(path), "/dev/video77", "77", "http://127.0.0.1:9/x"):
        with pytest.raises(InputError, match=rf"^--input {given}: (neither an image|no camera)"):
            open_source([given])
    with pytest.raises(InputError, match=r"notes\.txt: not an image; give only one video"):
        open_source([str(write_image(tmp_path / "a.png", 0)), str(path)])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.tif", "a.bmp", "a.PPM"])
def test_an_image_of_another_type_is_no_video(tmp_path, name):
    """FFmpeg would show it as a video of one frame."""
    path = write_image(tmp_path / name, 7)
    with pytest.raises(InputError, match=rf"^--input {path}: images of this type are not read; c"):
        open_source([str(path)])
    with pytest.raises(InputError, match=rf"^--input {path}: images of this type are not read; c"):
        open_source([str(write_image(tmp_path / "a.png", 7)), str(path)])


def test_camera_that_vanishes(camera_on_the_network):
    with camera_on_the_network(30) as url:
        source = open_source([url])
        assert (source.live, source.length) == (True, None)
        frames = []
        with pytest.raises(InputError, match=f"^--input {url}: the camera gave no more frames aft"):
            # What came before the error is kept.
            for frame in source:
                frames += [frame]
    assert len(frames) >= 25  # some are needed to learn what they are
    assert frames[0].image.shape == (32, 64, 3)
    assert [frame.number for frame in frames] == list(range(len(frames)))
