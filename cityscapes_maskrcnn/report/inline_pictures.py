"""Pictures inside a page: small WebP files as ``data:`` addresses."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_file
from cityscapes_maskrcnn.visualization.outcome_legend import legend_height

_MAX_BYTES: Final = 100_000_000
# A drawing has fewer colours than any photograph. It is small without loss, and its letters keep
# sharp.
_MAX_COLORS: Final = 4096
_QUALITY: Final = 82


@dataclass(frozen=True)
class InlinePicture:
    """A picture for an ``<img>``.

    Attributes:
        src: its ``data:`` address.
        width: pixels.
        height: pixels.
    """

    src: str
    width: int
    height: int


def inline_picture(path: Path, max_width: int, *, with_legend: bool = True) -> InlinePicture:
    """Encode a picture, scaled down if it is wider than ``max_width`` pixels.

    Args:
        path: the picture.
        max_width: pixels.
        with_legend: False: without the strip that :func:`.draw_outcomes` puts below it.

    Raises:
        InputError: the file is missing, too large, or no picture.
    """
    content = read_file(path, max_bytes=_MAX_BYTES)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture that can be read: {error}") from error
    if not with_legend:
        height = max(1, image.height - legend_height(image.width))
        image = image.crop((0, 0, image.width, height))
    # Before it is scaled, which mixes colours.
    is_drawing = image.getcolors(_MAX_COLORS) is not None
    if image.width > max_width:
        height = max(1, round(image.height * max_width / image.width))
        image = image.resize((max_width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=is_drawing, quality=_QUALITY)
    address = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return InlinePicture(address, image.width, image.height)
