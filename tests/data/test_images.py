from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import ExifTags, Image, ImageOps

from cityscapes_maskrcnn.data.images import (
    IMAGE_EXTENSIONS,
    UNREAD_EXTENSIONS,
    check_image,
    read_image,
    read_image_size,
    read_instance_ids,
    read_label_image,
)
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


def test_what_is_read_is_known_by_its_extension(tmp_path: Path) -> None:
    assert {".png", ".jpg", ".jpeg", ".webp"} == IMAGE_EXTENSIONS
    for extension in IMAGE_EXTENSIONS | UNREAD_EXTENSIONS:
        path = tmp_path / f"a{extension}"
        Image.new("RGB", (60, 40)).save(path)
        if extension in IMAGE_EXTENSIONS:
            assert read_image(path).shape == (40, 60, 3)
        else:
            with pytest.raises(InputError, match=BROKEN):
                read_image(path)


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


@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_sizes_are_those_of_the_pixels(tmp_path: Path, orientation: int) -> None:
    """Cameras held upright write a sideways JPEG and a tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "a.JPG", exif=exif)
    height, width = read_image_size(tmp_path / "a.JPG")
    assert (height, width) == read_image(tmp_path / "a.JPG").shape[:2]
    assert (height, width) == ((60, 40) if orientation in (5, 6, 7, 8) else (40, 60))


def test_damaged_remarks_of_a_webp_are_refused(tmp_path: Path) -> None:
    """They may hold its orientation; Detectron2 refuses such a file too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content, path = io.BytesIO(), tmp_path / "x.webp"
    Image.new("RGB", (32, 24)).save(content, "WEBP", exif=exif)
    data = content.getvalue()
    path.write_bytes(data)
    assert read_image(path).shape == (32, 24, 3)
    path.write_bytes(data[:-27] + bytes(16) + data[-11:])
    with pytest.raises(InputError, match=BROKEN):
        read_image(path)


def test_size_of_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>")
    for name, message in [("a.jpg", "truncated, or not an"), ("b.jpg", "cannot be read: No such")]:
        with pytest.raises(InputError, match=rf"{name}: {message}"):
            read_image_size(tmp_path / name)


@pytest.mark.parametrize("behind", [False, True])
def test_sizes_of_pngs_that_are_turned(tmp_path: Path, behind: bool) -> None:
    """As ImageMagick writes photos of phones; EXIF may stand before and behind the pixels."""
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    parts = [PIXELS, turned] if behind else [turned, PIXELS]
    path.write_bytes(png(8, 6, *parts, chunk(b"IEND")))
    assert read_image(path).shape == (8, 6, 3)
    assert detectron2_read_image(str(path), "BGR").shape == (8, 6, 3)
    assert read_image_size(path) == (8, 6)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW_EXIF = (
    b"\nexif\n26\n"
    + (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0").hex().encode()
)


@pytest.mark.parametrize(
    "text",
    [
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"tEXt", b"XML:com.adobe.xmp\0" + XMP),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_orientations_in_texts_turn_a_png(
    tmp_path: Path, text: tuple[bytes, bytes], behind: bool
) -> None:
    """As programs of Adobe and ImageMagick write them, and Pillow reads them."""
    path = tmp_path / "a.png"
    turned = chunk(*text)
    path.write_bytes(png(8, 6, *([PIXELS, turned] if behind else [turned, PIXELS]), chunk(b"IEND")))
    expected = detectron2_read_image(str(path), "BGR")
    assert expected.shape == (8, 6, 3)
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image_size(path) == (8, 6)


def test_size_of_a_jpeg_that_is_called_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6)).save(path, "JPEG")
    assert read_image_size(path) == read_image(path).shape[:2] == (6, 8)


def test_unknown_chunks_are_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of those with capital letters libpng says that they are necessary, and writes to stderr."""
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 8, chunk(b"ABCD", b"abc"), PIXELS, chunk(b"IEND")))
    assert not read_image(path).any()
    assert capfd.readouterr().err == ""


def test_other_mistakes_are_named(picture: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png: cannot be read: No such file"):
        read_image(picture.with_name("nowhere.png"))
    with pytest.raises(InputError, match=r"INPUT\.FORMAT 'YUV': it must be BGR or RGB"):
        read_image(picture, "YUV")
    for read in (read_label_image, read_instance_ids):
        with pytest.raises(InputError, match="a PNG with one channel of 8 or 16 bits is expected"):
            read(picture)


def chunk(kind: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """One chunk of a PNG; its length may be a lie."""
    claimed = len(content) if length is None else length
    return (
        struct.pack(">I", claimed) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks)


PIXELS = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))  # 8 rows of 8 grey pixels
BROKEN = "truncated, or not an image"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(8, 8, chunk(b"IDAT", b"abc", length=2**32 - 1)), BROKEN),
        (png(8, 8, chunk(b"tEXt", b"abc", length=2**31), PIXELS, chunk(b"IEND")), BROKEN),
        (png(8, 8, PIXELS, chunk(b"IEND", length=2**32 - 1)), BROKEN),
        (png(8, 8, PIXELS), BROKEN),
        (png(8000, 8000, PIXELS, chunk(b"IEND")), BROKEN),
        (png(65535, 65535, PIXELS, chunk(b"IEND")), "its header says 65535x65535 pixels; at most"),
        (png(0, 8, PIXELS, chunk(b"IEND")), "its header says 0x8 pixels"),
        (png(8, 8, *[chunk(b"tEXt")] * 100_000, PIXELS, chunk(b"IEND")), BROKEN),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_label_image, read_instance_ids])
def test_what_a_header_claims_is_not_believed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], read: object, content: bytes, message: str
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        read(path)
    assert capfd.readouterr().err == ""


def test_sizes_are_those_of_images_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(8, 6, PIXELS, chunk(b"IEND")))
    assert read_image_size(path) == (6, 8)
    path.write_bytes(png(65535, 65535))
    jpeg = tmp_path / "x.jpg"
    content = io.BytesIO()
    Image.new("RGB", (8, 6)).save(content, "JPEG")
    data = content.getvalue()
    start = data.index(b"\xff\xc0") + 5
    jpeg.write_bytes(data[:start] + struct.pack(">HH", 12000, 12000) + data[start + 4 :])
    for file, size in ((path, "65535x65535"), (jpeg, "12000x12000")):
        with pytest.raises(InputError, match=f"^{file}: its header says {size} pixels"):
            read_image_size(file)
    for file in (tmp_path / "pipe.png", tmp_path / "pipe.jpg"):
        os.mkfifo(file)
        with pytest.raises(InputError, match=f"^{file}: not a file, but a pipe or device"):
            read_image_size(file)
        with pytest.raises(InputError, match=f"^{file}: not a file, but a pipe or device"):
            read_image(file)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_not_filled_with_grey(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "x.jpg"
    pixels = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    thumbnail = io.BytesIO()
    Image.fromarray(pixels[:9, :9]).save(thumbnail, "JPEG")
    # A camera's thumbnail is a JPEG with an end of its own; some write more behind the image.
    Image.fromarray(pixels).save(path, exif=b"Exif" + thumbnail.getvalue(), progressive=progressive)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0trailer")
    assert read_image(path).shape == (60, 80, 3)
    for length in (len(whole) - 2, len(whole) * 2 // 3):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"^{path}: {BROKEN}"):
            read_image(path)


@pytest.mark.parametrize("position", [18, 25, 30, -50, -20, -14, -1])
def test_a_flipped_bit_is_no_pixel(
    picture: Path, capfd: pytest.CaptureFixture[str], position: int
) -> None:
    content = bytearray(picture.read_bytes())
    content[position] ^= 4
    picture.write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"^{picture}: {BROKEN}"):
        read_image(picture)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("value", [34, 100, 255])
def test_values_that_are_no_label_ids(tmp_path: Path, value: int) -> None:
    path = tmp_path / "x_labelIds.png"
    ids = np.full((4, 6), 33, np.uint8)
    Image.fromarray(ids).save(path)
    np.testing.assert_array_equal(read_label_image(path), ids)
    ids[2, 3] = value
    Image.fromarray(ids).save(path)
    message = rf"^{path}: {value} is no official label id \(0 to 33\); train ids must not be"
    with pytest.raises(InputError, match=message):
        read_label_image(path)


def test_label_images_of_four_bits_are_not_scaled(tmp_path: Path) -> None:
    """OpenCV and Pillow make 17 of a 1."""
    path = tmp_path / "x_labelIds.png"
    path.write_bytes(
        png(8, 8, chunk(b"IDAT", zlib.compress(bytes(5 * 8))), chunk(b"IEND"), depth=4)
    )
    with pytest.raises(InputError, match="a PNG with one channel of 8 or 16 bits is expected"):
        read_label_image(path)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(("JPEG", mode) for mode in ("L", "RGB")),
        *(("WEBP", mode) for mode in ("L", "RGB", "RGBA")),
    ],
)
def test_pixels_of_all_kinds_of_images_are_detectron2s(
    tmp_path: Path, picture: Path, kind: str, mode: str
) -> None:
    path = tmp_path / "x"
    options = {"transparency": 3} if kind == "PNG" and mode in ("L", "P") else {}
    Image.open(picture).convert(mode).save(path, kind, **options)
    np.testing.assert_array_equal(read_image(path), detectron2_read_image(str(path), "BGR"))


@pytest.mark.parametrize("colours", ["grey", "RGB"])
def test_images_of_16_bits_are_refused(tmp_path: Path, colours: str) -> None:
    """Detectron2 makes white of all grey values above 255, OpenCV divides them by 256."""
    path = tmp_path / "x.png"
    pixels = np.full((8, 8, 3) if colours == "RGB" else (8, 8), 1000, np.uint16)
    cv2.imwrite(str(path), pixels)
    for read in (read_image, check_image):
        with pytest.raises(InputError, match=f"^{path}: its channels have 16 bits; save it with 8"):
            read(path)


def test_kinds_of_images_that_readers_see_differently(tmp_path: Path, picture: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.open(picture).convert("CMYK").save(path)
    with pytest.raises(InputError, match=rf"^{path}: its colours are inks \(CMYK\); save it as"):
        read_image(path)
    # OpenCV does not scale values up to 7, and turns a TIFF as Detectron2 does not.
    for content in (b"P5 8 8 7\n" + bytes(range(8)) * 8, b"II*\x00", b"BM"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{BROKEN} of a known format \(PNG, JPEG, WebP\)"):
            read_image(path)


def test_instance_ids(tmp_path: Path) -> None:
    path = tmp_path / "x_instanceIds.png"
    ids = np.array([[0, 7, 26], [24001, 33999, 65535]], dtype=np.uint16)
    for dtype in (np.uint16, np.uint8):
        Image.fromarray(ids.astype(dtype)).save(path)
        read = read_instance_ids(path)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, ids.astype(dtype))
    Image.fromarray(ids).save(path)
    with pytest.raises(InputError, match="a label image has one channel of 8 bits, this one of 16"):
        read_label_image(path)
    with pytest.raises(InputError, match=r"gone\.png: cannot be read: No such file"):
        read_instance_ids(tmp_path / "gone.png")


@pytest.mark.parametrize("read", [read_label_image, read_instance_ids])
def test_ids_are_in_a_whole_grey_png(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x.png"
    pixels = zlib.compress(bytes(9 * 8))
    # The checksum within the stream is wrong, those of the chunks are right.
    damaged = pixels[:-1] + bytes([pixels[-1] ^ 1])
    path.write_bytes(png(8, 8, chunk(b"IDAT", damaged), chunk(b"IEND")))
    with pytest.raises(InputError, match=f"^{path}: {BROKEN}"):
        read(path)
    for mode, kind in (("LA", "TIFF"), ("L", "TIFF"), ("L", "JPEG"), ("P", "PNG"), ("LA", "PNG")):
        Image.new(mode, (8, 8)).save(path, kind)
        with pytest.raises(InputError, match=f"^{path}: "):
            read(path)


EXIF_TURNED = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"gAMA", struct.pack(">I", 45455)),
        (b"sRGB", b"\0"),
        (b"pHYs", struct.pack(">IIB", 9, 1, 1)),
        (b"tIME", b"\x07\xe0\1\1\1\1\1"),
        (b"tEXt", b"a\0b"),
        (b"tRNS", b"\0\1\0\2\0\3"),
        (b"eXIf", EXIF_TURNED),
    ],
)
def test_pixels_are_pillows_whatever_else_the_file_holds(
    tmp_path: Path, kind: bytes, content: bytes
) -> None:
    pixels = np.random.default_rng(5).integers(256, size=(12, 16, 3), dtype=np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = zlib.compress(rows)
    path = tmp_path / "x.png"
    path.write_bytes(
        png(16, 12, chunk(kind, content), chunk(b"IDAT", data), chunk(b"IEND"), colour=2)
    )
    image = Image.open(path)
    assert image.size == (16, 12)
    expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path, "RGB"), expected)
    np.testing.assert_array_equal(read_image(path, "BGR"), expected[:, :, ::-1])
    assert expected.shape == ((16, 12, 3) if kind == b"eXIf" else (12, 16, 3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda stream: stream[:-1] + bytes([stream[-1] ^ 1]),  # the checksum at its end
        lambda stream: stream[:-4],
        lambda stream: stream[:90] + bytes([stream[90] ^ 4]) + stream[91:],
        lambda stream: zlib.compress(zlib.decompress(stream)[:-1]),
    ],
)
def test_a_damaged_stream_in_sound_chunks(
    tmp_path: Path, damage: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(5).integers(256, size=(12, 16, 3), dtype=np.uint8)
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    path = tmp_path / "x.png"
    path.write_bytes(png(16, 12, chunk(b"IDAT", stream), chunk(b"IEND"), colour=2))
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)
    path.write_bytes(png(16, 12, chunk(b"IDAT", damage(stream)), chunk(b"IEND"), colour=2))
    for read in (read_image, check_image):
        with pytest.raises(InputError, match=f"^{path}: {BROKEN}"):
            read(path)
    assert capfd.readouterr().err == ""


def test_pixels_in_many_chunks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(256, size=(120, 160, 3), dtype=np.uint8)
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    parts = [chunk(b"IDAT", stream[start : start + 99]) for start in range(0, len(stream), 99)]
    path = tmp_path / "x.png"
    path.write_bytes(png(160, 120, *parts, chunk(b"IEND"), colour=2))
    np.testing.assert_array_equal(read_image(path, "RGB"), pixels)


def test_texts_and_profiles_of_a_png_are_left_to_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """libpng inflates the texts to 2.8 GB, and writes the profile's name as it is."""
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_000_000)))
    profile = chunk(b"iCCP", b"\x1b[31m\0\0" + zlib.compress(b"x" * 200))
    path = tmp_path / "x.png"
    ids = zlib.compress(b"".join(b"\0" + bytes([row] * 8) for row in range(8)))
    path.write_bytes(png(8, 8, profile, text * 400, chunk(b"IDAT", ids), chunk(b"IEND")))
    start = time.process_time()
    for pixels in (read_image(path)[..., 0], read_label_image(path), read_instance_ids(path)):
        assert pixels[:, 0].tolist() == [*range(8)]
    check_image(path)
    assert time.process_time() - start < 2
    assert capfd.readouterr().err == ""


def jpeg_of_scans(count: int, width: int, height: int) -> bytes:
    """The last scan of a progressive JPEG, again and again."""
    encoded = io.BytesIO()
    Image.new("L", (width, height)).save(encoded, "JPEG", progressive=True)
    data = encoded.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


@pytest.mark.parametrize(
    ("count", "width", "height", "is_read"),
    [(100, 64, 32, True), (101, 64, 32, False), (25, 8192, 8192, False)],
)
def test_scans_of_a_jpeg_are_counted(
    tmp_path: Path, count: int, width: int, height: int, is_read: bool
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_of_scans(count, width, height))
    with (
        nullcontext()
        if is_read
        else pytest.raises(
            InputError,
            match=f"^{path}: a JPEG with too many scans or segments; save it again, not as",
        )
    ):
        assert read_image(path).shape == (height, width, 3)


def test_a_picture_within_a_jpeg_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_of_scans(6, 64, 32))
    data = path.read_bytes()
    preview = b"\xff\xd8" + b"\xff\xda" * 200 + b"\xff\xd9"
    segment = b"\xff\xe5" + struct.pack(">H", 2 + len(preview)) + preview
    path.write_bytes(data[:2] + segment + data[2:] + b"\xff\xda" * 200)
    assert read_image(path).shape == (32, 64, 3)
    path.write_bytes(data[:2] + segment + data[2:-2])
    with pytest.raises(InputError, match=f"^{path}: {BROKEN}"):
        read_image(path)
