"""Read images and label images; a broken file is an InputError that names it."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

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
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_BROKEN: Final = "truncated, or not an image of a known format; fetch or unpack it again"
# What else Pillow, which looks at the header, and OpenCV, which decodes, both read.
_OTHER_FORMATS: Final = ("JPEG", "WEBP", "BMP", "TIFF", "PPM")


def read_image(path: str | os.PathLike[str], image_format: str = "BGR") -> npt.NDArray[np.uint8]:
    """Read a colour image.

    The pixels equal Detectron2's ``read_image``; the array is contiguous in both channel orders,
    while Detectron2's BGR is a view with a negative stride that later steps have to copy.

    Args:
        path: a PNG or JPEG file.
        image_format: ``"BGR"`` or ``"RGB"``.

    Returns:
        Array of shape (height, width, 3), dtype uint8.

    Raises:
        InputError: the file is missing, truncated, no image, or too large.
    """
    flags = {"BGR": cv2.IMREAD_COLOR, "RGB": cv2.IMREAD_COLOR_RGB}
    if image_format not in flags:
        raise InputError(f"INPUT.FORMAT {image_format!r}: it must be BGR or RGB")
    return _decode(path, _read_whole(path), flags[image_format])


def read_label_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a ``*_labelIds.png``.

    Returns:
        Array of shape (height, width), dtype uint8, holding official label ids.

    Raises:
        InputError: the file is missing, truncated, not one channel of 8 bits, or holds a value
            that is no official label id.
    """
    data = _read_whole(path)
    label_ids = _decode(path, data, cv2.IMREAD_UNCHANGED)
    # OpenCV brings fewer bits to 8, with other values.
    packed = data.startswith(_PNG) and data[_PNG_HEADER - 2 : _PNG_HEADER] != b"\x08\x00"
    if packed or label_ids.dtype != np.uint8 or label_ids.ndim != 2:
        raise InputError(f"{path}: a label image has one channel of 8 bits, unlike this one")
    if label_ids.max(initial=0) >= NUM_IDS:
        raise InputError(
            f"{path}: {label_ids.max()} is no official label id (0 to {NUM_IDS - 1}); train ids "
            "must not be in the file, they are looked up"
        )
    return label_ids


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of an image, as :func:`read_image` gives it, from its header.

    Raises:
        InputError: the file is missing or no image.
    """
    if Path(path).suffix.lower() == ".png":
        return read_png_size(path)
    with open_file(path) as file:
        try:
            image = _open_header(file, ("PNG", *_OTHER_FORMATS))
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        except PILLOW_ERRORS as error:
            raise InputError(f"{path}: {_BROKEN}") from error
    width, height = image.size
    _check_size(path, height, width)
    return (width, height) if turned else (height, width)


def read_png_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of a PNG from its header.

    Raises:
        InputError: the file is missing, its beginning is not that of a PNG, or it claims to be too
            large.
    """
    with open_file(path) as file:
        header = file.read(_PNG_HEADER)
    if len(header) < _PNG_HEADER or header[:8] != _PNG or header[12:16] != b"IHDR":
        raise InputError(f"{path}: not a PNG file, or only its beginning; unpack it again")
    width, height = struct.unpack(">II", header[16:24])
    _check_size(path, height, width)
    return height, width


def _read_whole(path: str | os.PathLike[str]) -> bytes:
    """Read the bytes of an image; what is surely broken or too large is not decoded."""
    data = read_file(path, _MAX_BYTES)
    if not (_is_whole_png if data.startswith(_PNG) else _is_whole)(path, data):
        raise InputError(f"{path}: {_BROKEN}")
    return data


def _decode(path: str | os.PathLike[str], data: bytes, flags: int) -> npt.NDArray[np.uint8]:
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


def _is_whole_png(path: str | os.PathLike[str], data: bytes) -> bool:
    """Whether the chunks of a PNG are whole and may hold as many pixels as it claims.

    OpenCV allocates what a chunk's length claims, up to 4 GB, before it reads the chunk, and takes
    some damage for pixels.
    """
    if len(data) < _PNG_HEADER:
        return False
    width, height, depth, colour = struct.unpack(">IIBB", data[16:_PNG_HEADER])
    _check_size(path, height, width)
    # Deflate makes at most 1032 bytes of one.
    if height * width * depth * _CHANNELS.get(colour, 1) // 8 > 1032 * len(data):
        return False
    for kind, content, checksum in png_chunks(data):
        if checksum != struct.pack(">I", zlib.crc32(content)):
            return False
        if kind == b"IEND":
            return True
    return False


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Walk through the chunks of a PNG, also of one that is not whole.

    Args:
        data: of the file; of another format it has no chunks.

    Yields:
        The kind of a chunk (``b"IDAT"``), what its checksum covers (kind and content), and the
        checksum, 4 bytes. The last ones may be cut off.
    """
    start, view = len(_PNG), memoryview(data)
    while data.startswith(_PNG) and start + 8 <= len(data):
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
    _check_size(path, height, width)
    # OpenCV fills what a truncated JPEG lacks with grey. In the data of a scan, which "start of
    # scan" begins, neither marker occurs.
    return image.format != "JPEG" or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _open_header(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Open an image without decoding it."""
    with warnings.catch_warnings():
        # _check_size says more than Pillow's warning.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=formats)


def _check_size(path: str | os.PathLike[str], height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(
            f"{path}: its header says {width}x{height} pixels; at most {MAX_PIXELS} are read"
        )
