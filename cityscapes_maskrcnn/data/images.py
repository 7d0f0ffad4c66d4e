"""Read images and label images; a broken file is an InputError that names it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from cityscapes_maskrcnn.utils.errors import InputError


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
        InputError: the file is missing, truncated, or no image.
    """
    flags = {"BGR": cv2.IMREAD_COLOR, "RGB": cv2.IMREAD_COLOR_RGB}
    if image_format not in flags:
        raise InputError(f"INPUT.FORMAT {image_format!r}: it must be BGR or RGB")
    return _decode(path, flags[image_format])


def read_label_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a ``*_labelIds.png``.

    Returns:
        Array of shape (height, width), dtype uint8, holding official label ids.

    Raises:
        InputError: the file is missing, truncated, or not one channel of 8 bits.
    """
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise InputError(f"{path}: a label image has one channel of 8 bits; unlike this one")
    return image


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of an image, as :func:`read_image` gives it, from its header.

    Raises:
        InputError: the file is missing or no image.
    """
    if Path(path).suffix.lower() == ".png":
        return read_png_size(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    # What Pillow raises for files that are no images, or claim to have any number of pixels.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error
    return (width, height) if turned else (height, width)


def read_png_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of a PNG from its header.

    Raises:
        InputError: the file is missing or its beginning is not that of a PNG.
    """
    try:
        with Path(path).open("rb") as file:
            header = file.read(24)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise InputError(f"{path}: not a PNG file, or only its beginning; unpack it again")
    width, height = struct.unpack(">II", header[16:])
    return height, width


def _decode(path: str | os.PathLike[str], flags: int) -> npt.NDArray[np.uint8]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    # OpenCV has no exception for a broken file: it decodes nothing, and writes to stderr.
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    log.setLogLevel(level)
    if image is None:
        raise InputError(f"{path}: truncated, or not an image; fetch or unpack it again")
    return image
