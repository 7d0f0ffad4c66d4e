from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.images import read_image, read_image_size, read_label_image
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    pixels = np.random.default_rng(3).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pixels_are_pillows_in_both_orders(picture: Path) -> None:
    expected = np.asarray(Image.open(picture))
    np.testing.assert_array_equal(read_image(picture, "RGB"), expected)
    np.testing.assert_array_equal(read_image(picture, "BGR"), expected[:, :, ::-1])
    assert read_image(picture, "BGR").flags.c_contiguous


@pytest.mark.parametrize("length", [0, 4, 300, -20])
@pytest.mark.parametrize("read", [read_image, read_label_image])
def test_a_truncated_file_is_one_error_and_nothing_on_stderr(
    picture: Path, capfd: pytest.CaptureFixture[str], read: object, length: int
) -> None:
    picture.write_bytes(picture.read_bytes()[:length])
    level = cv2.utils.logging.getLogLevel()
    with pytest.raises(InputError, match=f"^{picture}: truncated, or not an image"):
        read(picture)
    # OpenCV writes to the file descriptor, below Python's sys.stderr.
    assert capfd.readouterr().err == ""
    assert cv2.utils.logging.getLogLevel() == level


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_pixels(tmp_path: Path, orientation: int) -> None:
    """Cameras held upright write a sideways JPEG and a tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "a.JPG", exif=exif)
    height, width = read_image_size(tmp_path / "a.JPG")
    assert (height, width) == read_image(tmp_path / "a.JPG").shape[:2]
    assert (height, width) == ((40, 60) if orientation <= 4 else (60, 40))


def test_size_of_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>")
    for name, message in [("a.jpg", "as an image: cannot identify"), ("b.jpg", ": No such file")]:
        with pytest.raises(InputError, match=rf"{name}: cannot be read ?{message}"):
            read_image_size(tmp_path / name)


def test_other_mistakes_are_named(picture: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png: cannot be read: No such file"):
        read_image(picture.with_name("nowhere.png"))
    with pytest.raises(InputError, match=r"INPUT\.FORMAT 'YUV': it must be BGR or RGB"):
        read_image(picture, "YUV")
    with pytest.raises(InputError, match="a label image has one channel of 8 bits"):
        read_label_image(picture)
