"""Draw detections into frames with OpenCV: fast, and without state from frame to frame.

A figure of matplotlib for every frame, as :mod:`.visualization.drawing` makes for single pictures,
takes 20 times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ImageFont

from cityscapes_maskrcnn.deploy.frame_detections import BgrImage, FrameDetections
from cityscapes_maskrcnn.visualization.label_layout import place_labels
from cityscapes_maskrcnn.visualization.outlines import (
    FILL_ALPHA,
    SHADES,
    DrawnObject,
    FloatArray,
    box_contour,
    frame_contours,
)

Pixels = npt.NDArray[np.uint8]

#: Smaller frames are enlarged by a whole factor, until labels are readable.
MIN_WIDTH: Final = 640
_LABEL_ALPHA: Final = 0.85
# OpenCV takes coordinates as whole numbers of 1/16 pixel.
_SHIFT: Final = 4


class FrameArtist:
    """Draws the detections of frames in the official colours.

    Args:
        class_names: by class of the model.
        class_colors: by class of the model, RGB from 0 to 255.
    """

    def __init__(self, class_names: Sequence[str], class_colors: Sequence[Sequence[int]]) -> None:
        self._names = class_names
        self._colors = np.array(class_colors, dtype=np.float64)[:, ::-1]  # BGR

    def picture(self, image: BgrImage, detections: FrameDetections, in_motion: bool) -> BgrImage:
        """Draw detections over their frame.

        Args:
            image: the frame; not changed.
            detections: of the frame.
            in_motion: one picture of a video. Neighbours of a class then have one shade, unless
                they are tracked: their order, and so their shades, would change all the time.

        Returns:
            Shape (H', W', 3), uint8, BGR: the frame's size, or enlarged, see :func:`enlarged`.
        """
        canvas = enlarged(image)
        if canvas is image:
            canvas = image.copy()
        self._draw(canvas, image.shape[:2], detections, in_motion)
        return canvas

    def overlay(self, image: BgrImage, detections: FrameDetections, in_motion: bool) -> Pixels:
        """Draw detections without their frame.

        Args:
            image: the frame, whose size counts.
            detections: of the frame.
            in_motion: see :meth:`picture`.

        Returns:
            Shape (H', W', 4), uint8: BGR, not premultiplied, and opacity; size as :meth:`picture`.
        """
        factor = _factor(image)
        canvas = np.zeros((image.shape[0] * factor, image.shape[1] * factor, 4), np.uint8)
        self._draw(canvas, image.shape[:2], detections, in_motion)
        alpha = canvas[:, :, 3:].astype(np.uint16)
        colors = canvas[:, :, :3].astype(np.uint16) * 255 // np.maximum(alpha, 1)
        return np.concatenate([np.minimum(colors, 255), alpha], axis=2).astype(np.uint8)

    def _draw(
        self, canvas: Pixels, size: tuple[int, ...], detections: FrameDetections, in_motion: bool
    ) -> None:
        """Draw into a canvas; one of four channels holds premultiplied colours."""
        factor = canvas.shape[0] / size[0]
        objects, shades = self._objects(detections, factor, in_motion)
        order = sorted(range(len(objects)), key=lambda index: -objects[index].area)
        thickness = 1 if canvas.shape[1] < 1600 else 2
        for index in order:
            item, shade = objects[index], shades[index]
            color = self._colors[item.category]
            _paint_area(canvas, item.contours, _lighter(color, shade), FILL_ALPHA)
            _paint_lines(canvas, item.contours, _lighter(color, 0.55 + shade / 2), thickness)
        self._draw_labels(canvas, [objects[index] for index in order])

    def _objects(
        self, detections: FrameDetections, factor: float, in_motion: bool
    ) -> tuple[list[DrawnObject], list[float]]:
        """What is to be drawn, in pixels of the canvas, and the share of white in its colours."""
        objects, ids = [], []
        track_ids: Any = detections.track_ids
        for index, category in enumerate(detections.classes.tolist()):
            contours = [part * factor for part in _contours(detections, index) if len(part) >= 3]
            if not contours:
                continue
            track_id = 0 if track_ids is None else int(track_ids[index])
            name = f"{self._names[category]} #{track_id}" if track_id else self._names[category]
            # The usual space is hardly seen between two numbers.
            label = f"{name}  {detections.scores[index]:.0%}"
            objects.append(DrawnObject(category=category, contours=contours, label=label))
            ids.append(track_id)
        if track_ids is not None:
            return objects, [SHADES[track_id % len(SHADES)] for track_id in ids]
        shades = [0.0] * len(objects)
        if not in_motion:
            counts: Counter[int] = Counter()
            for index in sorted(range(len(objects)), key=lambda index: objects[index].box[0]):
                category = objects[index].category
                shades[index] = SHADES[counts[category] % len(SHADES)]
                counts[category] += 1
        return objects, shades

    def _draw_labels(self, canvas: Pixels, objects: Sequence[DrawnObject]) -> None:
        """Draw the labels that find room, those of large objects first."""
        height, width = canvas.shape[:2]
        text_height = round(np.clip(width / 92, 12, 22))
        padding = round(text_height / 4)
        labelled = [item for item in objects if item.box[3] - item.box[1] >= 1.2 * text_height]
        if not labelled:
            return
        font = ImageFont.load_default(text_height)
        texts = [_text_coverage(item.label, font, padding) for item in labelled]
        boxes = np.array([item.box for item in labelled])
        sizes = np.array([text.shape[::-1] for text in texts], dtype=np.float64)
        # Along the upper border, which moves less from frame to frame than an object's middle.
        anchors = np.column_stack(
            [(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 1] + sizes[:, 1] / 2 + 2]
        )
        places = place_labels(boxes, anchors, sizes, (height, width))
        for item, text, place in zip(labelled, texts, places, strict=True):
            if place is None:
                continue
            x, y = round(place[0]), round(place[1])
            color = self._colors[item.category]
            _paint(canvas, np.full_like(text, 255), x, y, _lighter(color, 0.1), _LABEL_ALPHA)
            # The one that stands out better (luma, ITU-R BT.601).
            dark = np.dot(color, (0.114, 0.587, 0.299)) > 0.6 * 255
            _paint(canvas, text, x, y, np.zeros(3) if dark else np.full(3, 255.0), 1.0)


def enlarged(image: BgrImage) -> BgrImage:
    """Enlarge an image by the whole factor that makes it at least :data:`MIN_WIDTH` wide.

    Returns:
        The image itself where it is wide enough.
    """
    factor = _factor(image)
    if factor == 1:
        return image
    size = (image.shape[1] * factor, image.shape[0] * factor)
    result: BgrImage = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return result


def _factor(image: BgrImage) -> int:
    return -(-MIN_WIDTH // image.shape[1]) if image.shape[0] <= 2 * image.shape[1] else 1


def _contours(detections: FrameDetections, index: int) -> list[FloatArray]:
    """The outline of a detection, in pixels of the frame, for the eye: steps are rounded off."""
    if detections.masks is None:
        return [box_contour(detections.boxes[index])]
    return [_smooth(part) for part in frame_contours(detections.masks[index])]


def _smooth(contour: FloatArray) -> FloatArray:
    """Replace every point of a closed curve by the mean of it and two to either side."""
    # The last point repeats the first.
    points = contour[:-1]
    if len(points) < 8:
        return contour
    padded = np.concatenate([points[-2:], points, points[:2]])
    sums = np.cumsum(np.concatenate([np.zeros((1, 2)), padded]), axis=0)
    mean: FloatArray = (sums[5:] - sums[:-5]) / 5
    return mean


def _lighter(color: FloatArray, white: float) -> FloatArray:
    """A colour with a share of white."""
    return color + (255 - color) * white


def _paint_area(
    canvas: Pixels, contours: Sequence[FloatArray], color: FloatArray, opacity: float
) -> None:
    coverage, x, y, parts = _window(canvas, contours, margin=1)
    cv2.fillPoly(coverage, parts, 255, lineType=cv2.LINE_AA, shift=_SHIFT)
    _paint(canvas, coverage, x, y, color, opacity)


def _paint_lines(
    canvas: Pixels, contours: Sequence[FloatArray], color: FloatArray, thickness: int
) -> None:
    coverage, x, y, parts = _window(canvas, contours, margin=1 + thickness)
    cv2.polylines(
        coverage, parts, isClosed=True, color=255, thickness=thickness, lineType=cv2.LINE_AA,
        shift=_SHIFT,
    )  # fmt: skip
    _paint(canvas, coverage, x, y, color, 1.0)


def _window(
    canvas: Pixels, contours: Sequence[FloatArray], margin: int
) -> tuple[Pixels, int, int, list[npt.NDArray[np.int32]]]:
    """The part of a canvas around contours: empty coverage, its place, the contours in it."""
    points = np.concatenate(contours)
    limits = (canvas.shape[1], canvas.shape[0])
    x0, y0 = np.clip(np.floor(points.min(axis=0)).astype(int) - margin, 0, limits).tolist()
    x1, y1 = np.clip(np.ceil(points.max(axis=0)).astype(int) + margin, 0, limits).tolist()
    # OpenCV's pixels have their centres at whole numbers.
    origin = np.array([x0 + 0.5, y0 + 0.5])
    parts = [np.round((part - origin) * 2**_SHIFT).astype(np.int32) for part in contours]
    return np.zeros((y1 - y0, x1 - x0), np.uint8), x0, y0, parts


def _paint(
    canvas: Pixels, coverage: Pixels, x: int, y: int, color: FloatArray, opacity: float
) -> None:
    """Lay a colour over a part of a canvas, as far as it is covered.

    Args:
        canvas: three channels, or four with premultiplied colours; changed.
        coverage: shape (h, w), from 0 to 255.
        x: column of its upper left pixel in the canvas.
        y: row of that pixel.
        color: BGR from 0 to 255.
        opacity: from 0 to 1.
    """
    if not coverage.size:
        return
    window = canvas[y : y + coverage.shape[0], x : x + coverage.shape[1]]
    channels = np.append(color, 255.0)[: canvas.shape[2]].astype(np.float32)
    alpha = cv2.multiply(coverage, np.float64(opacity / 255), dtype=cv2.CV_32F)[:, :, None]
    values = window.astype(np.float32)
    values += (channels - values) * alpha
    np.rint(values, out=values)
    window[:] = values


def _text_coverage(text: str, font: Any, padding: int) -> Pixels:
    """Set a line of text, antialiased.

    Returns:
        Shape (h, w), uint8: 255 where a letter is; all of one font are equally high.
    """
    ascent, descent = font.getmetrics()
    mask, (_, top) = font.getmask2(text, mode="L")
    width, height = mask.size
    letters = np.array(mask, dtype=np.uint8).reshape(height, width)
    coverage = np.zeros((ascent + descent + padding, width + 2 * padding), np.uint8)
    row = max(0, top + padding // 2)
    target = coverage[row : row + height, padding : padding + width]
    target[:] = letters[: len(target)]
    return coverage
