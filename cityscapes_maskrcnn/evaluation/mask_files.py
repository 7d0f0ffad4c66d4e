"""The official masks and instance ids, from PNG files."""

from __future__ import annotations

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cityscapes_maskrcnn.data.png import decode_rows, inflate_grey, occupied_rows
from cityscapes_maskrcnn.evaluation.masks import CroppedMask, crop_mask
from cityscapes_maskrcnn.utils.errors import InputError


def read_instance_ids(file: str | os.PathLike[str]) -> npt.NDArray[np.uint16]:
    """Read a ``*_gtFine_instanceIds.png``.

    Returns:
        Shape (height, width), dtype uint16.

    Raises:
        InputError: the file is missing, unreadable or no image of instance ids.
    """
    data = _read_bytes(Path(file))
    try:
        png = inflate_grey(data)
        ids = None if png is None else decode_rows(png, 0, len(png.rows))
    except ValueError as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error
    if ids is None:
        image = _decode(Path(file), data)
        raise InputError(f"{file}: not an image of 16 bit instance ids (mode {image.mode})")
    return ids.astype(np.uint16, copy=False)


def read_mask(file: Path, height: int, width: int) -> CroppedMask:
    """Read a mask: what is not black.

    Args:
        file: an image of any kind.
        height: that it has to have, in pixels.
        width: that it has to have, in pixels.

    Raises:
        InputError: the file is unreadable or of another size.
    """
    data = _read_bytes(file)
    try:
        png = inflate_grey(data)
        if png is not None and png.depth == 8:
            _check_size(file, (len(png.rows), png.width), (height, width))
            top, pixels = occupied_rows(png)
            mask = crop_mask(pixels != 0)
            return replace(mask, y0=mask.y0 + top)
    except ValueError as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error
    image = _decode(file, data)
    _check_size(file, (image.height, image.width), (height, width))
    # The official code converts to grey first: an index into a palette is not what counts.
    return crop_mask(np.asarray(image.convert("L")) != 0)


def _check_size(file: Path, found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise InputError(
            f"{file}: the mask is {found[0]} x {found[1]} (height x width), its image"
            f" {expected[0]} x {expected[1]}"
        )


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error


def _decode(file: Path, data: bytes) -> Image.Image:
    """Decode an image of any kind."""
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            return image
    # A broken PNG is a SyntaxError for Pillow.
    except UnidentifiedImageError as error:
        raise InputError(f"cannot read {file} as an image: it is none; expected a PNG") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error
