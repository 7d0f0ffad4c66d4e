"""Putting pictures beside each other, with a caption above each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

_INK = (30, 30, 30)


def side_by_side(panels: Sequence[tuple[str, npt.NDArray[np.uint8]]]) -> npt.NDArray[np.uint8]:
    """Put captioned pictures in a row on white.

    Args:
        panels: pairs of a caption and a picture of shape (H, W, 3), uint8, RGB, from left to
            right, at least one. Lower pictures than the highest stand at the top.

    Returns:
        One picture, shape (H + caption, sum of W + gaps, 3), uint8, RGB.
    """
    height = max(picture.shape[0] for _, picture in panels)
    text_height = max(14, round(max(picture.shape[1] for _, picture in panels) / 45))
    bar, gap = round(1.8 * text_height), round(text_height / 2)
    width = sum(picture.shape[1] for _, picture in panels) + gap * (len(panels) - 1)
    canvas = Image.fromarray(np.full((bar + height, width, 3), 255, dtype=np.uint8))
    draw = ImageDraw.Draw(canvas)
    # The font that matplotlib brings along: the labels' own, and there on every machine.
    font = ImageFont.truetype(findfont("DejaVu Sans"), text_height)
    left = 0
    for caption, picture in panels:
        draw.text((left + gap, bar / 2), caption, fill=_INK, font=font, anchor="lm")
        canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (left, bar))
        left += picture.shape[1] + gap
    return np.array(canvas)
