"""Read images and label images; a broken file is an InputError that names it."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import chain
from typing import Any, BinaryIO, Final

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from kornia_rs import io as kornia_io
from PIL import ExifTags, Image, ImageOps

from cityscapes_maskrcnn.data.labels import NUM_IDS
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import open_file, read_file

#: What Pillow raises for files that are no images, or claim to have any number of pixels.
PILLOW_ERRORS: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
#: What is larger is not decoded: 8192 x 8192, 32 official images.
MAX_PIXELS: Final = 2**26
_MAX_BYTES: Final = 200_000_000
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER: Final = 26  # bytes up to bit depth and colour type
_GREY_8: Final = b"\x08\x00"  # the last two of them
_GREY_16: Final = b"\x10\x00"
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_BROKEN: Final = (
    "truncated, or not an image of a known format (PNG, JPEG, WebP); fetch or unpack it again, or "
    "convert it"
)
# What Pillow, which looks at the header, and OpenCV, which decodes, read alike: extensions by
# Pillow's name of the format. Not TIFF, BMP and PPM: they scale values of other than 8 bits, and
# turn images, in different ways.
_FORMATS: Final = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",)}
_OTHER_FORMATS: Final = tuple(name for name in _FORMATS if name != "PNG")
#: Extensions, in lower case, of the images that :func:`read_image` reads, and of usual ones that it
#: does not.
IMAGE_EXTENSIONS: Final = frozenset(chain.from_iterable(_FORMATS.values()))
UNREAD_EXTENSIONS: Final = frozenset({".bmp", ".ppm", ".tif", ".tiff"})
# Writers put at least some kilobytes into each.
_MAX_CHUNKS: Final = 50_000
_MAX_EXIF: Final = 100_000
# All that Pillow needs for the pixels. libpng refuses others whose name begins with a capital
# letter, inflates texts and profiles to gigabytes, and writes a profile's name to stderr as it is.
_USED_CHUNKS: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
# Texts by which Pillow, and so Detectron2, turns an image; it bounds what it inflates.
_TEXT_CHUNKS: Final = (b"tEXt", b"zTXt", b"iTXt")
_TURNING_TEXTS: Final = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_LONGEST_KEYWORD: Final = 79
# Of a JPEG, each a pass over its pixels; writers make about ten. And pixels in all of them.
_MAX_SCANS: Final = 100
_MAX_SCANNED: Final = 20 * MAX_PIXELS
# Not of restarts; a value of 255 in a scan is followed by a zero.
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MAX_MARKERS: Final = 100_000
# Five bytes in the header of a PNG: bits a channel, the kind of pixels, how they are compressed and
# filtered, for which there are no other values than 0, and whether they are interlaced.
_PLAIN_FORMAT: Final = slice(24, 29)
# By channels: grey and RGB.
_PLAIN: Final = {1: b"\x08\x00\x00\x00\x00", 3: b"\x08\x02\x00\x00\x00"}
_PLAIN_CHUNKS: Final = {b"IHDR", b"IDAT", b"IEND"}


def read_image(path: str | os.PathLike[str], image_format: str = "BGR") -> npt.NDArray[np.uint8]:
    """Read a colour image.

    The pixels equal Detectron2's ``read_image``; the array is contiguous in both channel orders,
    while Detectron2's BGR is a view with a negative stride that later steps have to copy.

    Args:
        path: a PNG, JPEG or WebP file.
        image_format: ``"BGR"`` or ``"RGB"``.

    Returns:
        Array of shape (height, width, 3), dtype uint8.

    Raises:
        InputError: the file is missing, truncated, no such image, too large, or has 16 bits a
            channel or inks (CMYK) for colours.
    """
    flags = {"BGR": cv2.IMREAD_COLOR, "RGB": cv2.IMREAD_COLOR_RGB}
    if image_format not in flags:
        raise InputError(f"INPUT.FORMAT {image_format!r}: it must be BGR or RGB")
    data = _read_colours(path)
    pixels = _decode_plain_rgb(path, data)
    if pixels is None:
        return _decode(path, data, flags[image_format])
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if image_format == "BGR" else pixels


def check_image(path: str | os.PathLike[str]) -> None:
    """Verify that :func:`read_image` can read a file; plain PNGs are inflated, not decoded.

    Raises:
        InputError: see :func:`read_image`.
    """
    data = _read_colours(path)
    if not _is_plain_rgb(path, data):
        _decode(path, data, cv2.IMREAD_COLOR)


def read_label_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a ``*_labelIds.png``.

    Returns:
        Array of shape (height, width), dtype uint8, holding official label ids.

    Raises:
        InputError: the file is missing, truncated, not one channel of 8 bits, or holds a value
            that is no official label id.
    """
    label_ids = _read_ids(path)
    if label_ids.dtype != np.uint8:
        raise InputError(f"{path}: a label image has one channel of 8 bits, this one of 16")
    if label_ids.max(initial=0) >= NUM_IDS:
        raise InputError(
            f"{path}: {label_ids.max()} is no official label id (0 to {NUM_IDS - 1}); train ids "
            "must not be in the file, they are looked up"
        )
    return label_ids


def read_instance_ids(path: str | os.PathLike[str]) -> npt.NDArray[np.uint16]:
    """Read a ``*_instanceIds.png``.

    Returns:
        Array of shape (height, width), dtype uint16: label id * 1000 + number of the instance, or
        the label id alone. Other values are returned too.

    Raises:
        InputError: the file is missing, truncated, too large or not one channel of 8 or 16 bits.
    """
    return _read_ids(path).astype(np.uint16, copy=False)


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of an image, as :func:`read_image` gives it, from its header.

    Raises:
        InputError: the file is missing or no image.
    """
    with open_file(path) as file:
        header = file.read(_PNG_HEADER)
        if header.startswith(_PNG):
            if len(header) < _PNG_HEADER or header[12:16] != b"IHDR":
                raise InputError(f"{path}: not a PNG file, or only its beginning; unpack it again")
            width, height = struct.unpack(">II", header[16:24])
            try:
                orientation = _png_orientation(file)
            except PILLOW_ERRORS as error:
                raise InputError(f"{path}: {_BROKEN}") from error
        else:
            file.seek(0)
            try:
                image = _open_header(file, _OTHER_FORMATS)
                orientation = image.getexif().get(ExifTags.Base.Orientation)
            except PILLOW_ERRORS as error:
                raise InputError(f"{path}: {_BROKEN}") from error
            width, height = image.size
    _check_num_pixels(path, height, width)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _png_orientation(file: BinaryIO) -> int | None:
    """Find the EXIF orientation of a PNG, also behind its pixels, of which nothing is read."""
    start = len(_PNG)
    orientation: int | None = None
    for _ in range(_MAX_CHUNKS):
        # Not through the file's buffer, which would read nearly all of it.
        head = os.pread(file.fileno(), 8 + _LONGEST_KEYWORD, start)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head[:8])
        if _turns_by_text(kind, head[8:]):
            file.seek(0)
            return Image.open(file, formats=("PNG",)).getexif().get(ExifTags.Base.Orientation)
        if kind == b"eXIf":
            exif = Image.Exif()
            exif.load(os.pread(file.fileno(), min(length, _MAX_EXIF), start + 8))
            orientation = exif.get(ExifTags.Base.Orientation)
        start += length + 12
    return orientation


def _turns_by_text(kind: bytes, content: bytes | memoryview) -> bool:
    """Whether a chunk of a PNG is a text that may hold an orientation."""
    return kind in _TEXT_CHUNKS and bytes(content[:_LONGEST_KEYWORD]).startswith(_TURNING_TEXTS)


def _read_colours(path: str | os.PathLike[str]) -> bytes:
    """Read the bytes of an image whose pixels are alike for all decoders."""
    data = _read_whole(path, with_orientation=True)
    if data.startswith(_PNG) and data[_PNG_HEADER - 2] > 8:
        # Pillow, and so Detectron2, makes white of every grey value above 255.
        raise InputError(f"{path}: its channels have 16 bits; save it with 8")
    return data


def _read_ids(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read a grey PNG whose values are ids, and not brightness."""
    data = _read_whole(path)
    header = data[_PNG_HEADER - 2 : _PNG_HEADER]
    # OpenCV brings fewer bits to 8, with other values.
    if data.startswith(_PNG) and header in (_GREY_8, _GREY_16):
        ids = _decode(path, data, cv2.IMREAD_UNCHANGED)
        if ids.ndim == 2:
            return ids
    raise InputError(f"{path}: a PNG with one channel of 8 or 16 bits is expected, unlike this one")


def _read_whole(path: str | os.PathLike[str], *, with_orientation: bool = False) -> bytes:
    """Read the bytes of an image; what is surely broken or too large is not decoded.

    Those of a PNG are without the chunks that leave its pixels as they are.
    """
    data = read_file(path, _MAX_BYTES)
    if data.startswith(_PNG):
        whole = _pixel_chunks(path, data, with_orientation)
    else:
        whole = data if _is_whole(path, data) else None
    if whole is None:
        raise InputError(f"{path}: {_BROKEN}")
    return whole


def _decode(path: str | os.PathLike[str], data: bytes, flags: int) -> npt.NDArray[Any]:
    # OpenCV knows no orientation in texts.
    if not data.startswith(_PNG) or any(kind in _TEXT_CHUNKS for kind, _, _ in png_chunks(data)):
        pixels = _decode_photo(path, data)
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if flags == cv2.IMREAD_COLOR else pixels
    # For most broken files OpenCV has no exception: it decodes nothing, and writes to stderr.
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    finally:
        log.setLogLevel(level)
    if image is None:
        raise InputError(f"{path}: {_BROKEN}")
    return image


def _decode_photo(path: str | os.PathLike[str], data: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image as Detectron2 does; OpenCV takes damaged JPEG and WebP for pixels."""
    try:
        with warnings.catch_warnings():
            # Of remarks that are damaged, and of a size that is checked.
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=tuple(_FORMATS))
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except PILLOW_ERRORS as error:
        raise InputError(f"{path}: {_BROKEN}") from error


def _decode_plain_rgb(path: str | os.PathLike[str], data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode the common kind of PNG, in half of OpenCV's time.

    Args:
        path: of the image, for messages.
        data: of the image, whole, see :func:`_read_whole`.

    Returns:
        Shape (height, width, 3), RGB; None: OpenCV has to decode, or to refuse.

    Raises:
        InputError: the compressed data are damaged, for which OpenCV would write to stderr.
    """
    if not _is_plain_rgb(path, data):
        return None
    width, height = struct.unpack(">II", data[16:24])
    try:
        pixels: npt.NDArray[np.uint8] = kornia_io.decode_image_png_u8(data, (height, width), "rgb")
    except Exception:  # it has none of its own
        return None
    return pixels


def _is_plain_rgb(path: str | os.PathLike[str], data: bytes) -> bool:
    """Whether an image is a PNG of the common kind, with as many bytes as its pixels need.

    Arguments and errors are those of :func:`_decode_plain_rgb`.
    """
    surplus = plain_png_surplus(data, 3)
    if surplus is not None and surplus < 0:
        raise InputError(f"{path}: {_BROKEN}")
    return surplus == 0


def plain_png_surplus(data: bytes, channels: int) -> int | None:
    """Compare the compressed data of a PNG of the common kind with what its pixels need.

    That kind has 8 bits a channel, is not interlaced and has no chunks beside header and pixels: of
    the others, such as colour profiles, decoders refuse different ones. kornia_rs decodes it in a
    tenth to half of the time that others take, but looks at no checksum of the pixels.

    Args:
        data: of a file, whole or not.
        channels: 1: grey; 3: RGB.

    Returns:
        0: there are as many bytes as the pixels need; 1: there are more; negative: fewer, or they
        are damaged. None: the file is of another kind.
    """
    if not data.startswith(_PNG) or data[_PLAIN_FORMAT] != _PLAIN[channels]:
        return None
    if not {kind for kind, _, _ in png_chunks(data)} <= _PLAIN_CHUNKS:
        return None
    width, height = struct.unpack(">II", data[16:24])
    # A row begins with the number of its filter.
    num_bytes = height * (1 + channels * width)
    return min(_inflated_length(data, num_bytes + 1) - num_bytes, 1)


def _inflated_length(data: bytes, limit: int) -> int:
    """Count the bytes that the compressed data of a PNG hold; 0 if their checksum is wrong.

    Those of the chunks do not show that a stream was damaged before it was written, and kornia_rs
    leaves this one out. To inflate once more takes a third of its time.

    Args:
        data: of the PNG.
        limit: so many bytes or more are enough.
    """
    stream = isal_zlib.decompressobj()
    length = 0
    try:
        for kind, content, _ in png_chunks(data):
            if kind == b"IDAT" and length < limit:
                length += len(stream.decompress(content[4:], limit))
    except isal_zlib.IsalError:  # type: ignore[misc]  # its stub is wrong
        return 0
    return length if stream.eof or length >= limit else 0


def _pixel_chunks(
    path: str | os.PathLike[str], data: bytes, with_orientation: bool
) -> bytes | None:
    """Reduce a PNG to the chunks that decide about its pixels.

    Args:
        path: of the image, for messages.
        data: of the image.
        with_orientation: texts that may turn the image are kept too.

    Returns:
        A PNG; None if a chunk is damaged or there are not enough for the pixels that it claims:
        OpenCV allocates what a chunk's length claims, up to 4 GB, before it reads the chunk, and
        takes some damage for pixels.
    """
    if len(data) < _PNG_HEADER:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", data[16:_PNG_HEADER])
    _check_num_pixels(path, height, width)
    # Deflate makes at most 1032 bytes of one.
    if height * width * depth * _CHANNELS.get(colour, 1) // 8 > 1032 * len(data):
        return None
    parts: list[bytes | memoryview] = [_PNG]
    for kind, content, checksum in png_chunks(data):
        if checksum != struct.pack(">I", zlib.crc32(content)):
            return None
        if kind in _USED_CHUNKS or (with_orientation and _turns_by_text(kind, content[4:])):
            parts += [struct.pack(">I", len(content) - 4), content, checksum]
        if kind == b"IEND":
            return b"".join(parts)
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Walk through the chunks of a PNG, also of one that is not whole.

    Args:
        data: of the file; of another format it has no chunks. Of more than 50,000 the rest is not
            visited: to look at millions of them would take minutes.

    Yields:
        The kind of a chunk (``b"IDAT"``), what its checksum covers (kind and content), and the
        checksum, 4 bytes. The last ones may be cut off.
    """
    start, view = len(_PNG), memoryview(data)
    for _ in range(_MAX_CHUNKS):
        if not data.startswith(_PNG) or start + 8 > len(data):
            return
        length, kind = struct.unpack(">I4s", view[start : start + 8])
        end = start + 8 + length
        yield kind, view[start + 4 : end], view[end : end + 4]
        start = end + 4


def _is_whole(path: str | os.PathLike[str], data: bytes) -> bool:
    """Whether what is no PNG is an image, and not too large; for JPEG, whether it has its end."""
    try:
        image = _open_header(BytesIO(data), _OTHER_FORMATS)
    except PILLOW_ERRORS:
        return False
    width, height = image.size
    _check_num_pixels(path, height, width)
    if image.mode == "CMYK":
        raise InputError(f"{path}: its colours are inks (CMYK); save it as RGB")
    # OpenCV fills what a truncated JPEG lacks with grey.
    return image.format != "JPEG" or check_scans(path, data, height * width)


def check_scans(path: str | os.PathLike[str], data: bytes, num_pixels: int) -> bool:
    """Verify that the scans of a JPEG take no minutes to decode.

    Args:
        path: of the file, for messages.
        data: its content.
        num_pixels: of the image.

    Returns:
        Whether it has its end.

    Raises:
        InputError: there are too many scans, for so many pixels.
    """
    scans = position = 0
    for _ in range(_MAX_MARKERS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None or marker[0] == b"\xff\xd9":
            return marker is not None and scans > 0
        position = marker.end()
        if marker[0] not in (b"\xff\xd8", b"\xff\x01"):
            position += int.from_bytes(data[position : position + 2], "big")
        scans += marker[0] == b"\xff\xda"
        if scans > _MAX_SCANS or scans * num_pixels > _MAX_SCANNED:
            break
    raise InputError(
        f"{path}: a JPEG with too many scans or segments; save it again, not as a progressive one"
    )


def _open_header(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Open an image without decoding it."""
    with warnings.catch_warnings():
        # _check_num_pixels says more than Pillow's warning.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=formats)


def check_size(
    path: str | os.PathLike[str], pixels: npt.NDArray[Any], record: Mapping[str, Any]
) -> None:
    """Verify that an image, or a label image, is as large as its annotation says.

    Args:
        path: of the image, for messages.
        pixels: shape (height, width, ...).
        record: in Detectron2's format; ``height`` and ``width`` are read.

    Raises:
        InputError: it is of another size.
    """
    height, width = pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise InputError(
            f"{path} is {width}x{height} pixels, but its annotation is for "
            f"{record['width']}x{record['height']}; image and annotation must come from the same "
            "release"
        )


def _check_num_pixels(path: str | os.PathLike[str], height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(
            f"{path}: its header says {width}x{height} pixels; at most {MAX_PIXELS} are read"
        )
