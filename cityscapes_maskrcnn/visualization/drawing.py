"""Pictures of instances: ground truth and predictions over their image.

Detectron2's Visualizer, adapted to street scenes: official class colours, small images enlarged
until labels are readable, large objects below small ones, groups hatched, and only as many labels
as find room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as coco_mask
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.font_manager import findfont
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw, ImageFont

from cityscapes_maskrcnn.utils.text import counted
from cityscapes_maskrcnn.visualization.label_layout import place_labels
from cityscapes_maskrcnn.visualization.outcome_legend import EDGE_WIDTH, edge_look
from cityscapes_maskrcnn.visualization.outlines import (
    FILL_ALPHA,
    HATCH,
    SHADES,
    DrawnObject,
    FloatArray,
    box_contour,
    mask_contours,
    signed_area,
)
from cityscapes_maskrcnn.visualization.style import INK, RED

RgbImage = npt.NDArray[np.uint8]
Colors = Sequence[Sequence[int]]

MIN_PANEL_WIDTH = 1024
#: Pixels: height of the smallest letters, which can be read also at half a picture's size.
MIN_LETTERS = 18


def draw_ground_truth(image_rgb: RgbImage, dataset_dict: dict[str, Any], metadata: Any) -> RgbImage:
    """Draw the annotated instances of an image.

    Args:
        image_rgb: shape (H, W, 3), uint8.
        dataset_dict: a record in Detectron2's format; of each annotation ``category_id`` and
            ``segmentation`` (polygons or run-lengths) are used, or ``bbox`` where it has none, and
            ``iscrowd``. Coordinates are pixels of ``image_rgb``.
        metadata: with ``thing_classes``; without ``thing_colors`` Detectron2's are taken.

    Returns:
        The picture, shape (H', W', 3), uint8: as large as the image, or enlarged until it is
        ``MIN_PANEL_WIDTH`` wide.
    """
    objects = []
    for annotation in dataset_dict.get("annotations", []):
        name = metadata.thing_classes[annotation["category_id"]]
        is_group = bool(annotation.get("iscrowd", 0))
        objects.append(
            DrawnObject(
                category=annotation["category_id"],
                contours=_annotation_contours(annotation, image_rgb.shape[:2]),
                label=f"{name} group" if is_group else name,
                is_group=is_group,
            )
        )
    return draw_objects(image_rgb, objects, _class_colors(metadata))


def _class_colors(metadata: Any) -> Colors:
    """Get the colours of the classes, RGB, which datasets of other code need not have."""
    colors: Colors | None = getattr(metadata, "thing_colors", None)
    if colors is not None:
        return colors
    palette = colormap(rgb=True, maximum=255).astype(int).tolist()
    return [tuple(palette[index % len(palette)]) for index in range(len(metadata.thing_classes))]


def draw_predictions(
    image_rgb: RgbImage, instances: Instances, metadata: Any, score_thresh: float = 0.5
) -> RgbImage:
    """Draw predicted instances with their scores.

    Args:
        image_rgb: shape (H, W, 3), uint8.
        instances: with ``scores``, ``pred_classes`` and ``pred_masks`` (N, H, W), bool, on the CPU
            and at the size of ``image_rgb``; of a model without masks, ``pred_boxes`` are drawn.
        metadata: with ``thing_classes``; without ``thing_colors`` Detectron2's are taken.
        score_thresh: predictions with a lower score are left out, between 0 and 1.

    Returns:
        The picture, see :func:`draw_ground_truth`.
    """
    kept = instances[instances.scores >= score_thresh]
    if kept.has("pred_masks"):
        contours = [mask_contours(mask) for mask in np.asarray(kept.pred_masks, dtype=bool)]
    else:
        contours = [[box_contour(box)] for box in kept.pred_boxes.tensor.numpy()]
    found = zip(kept.pred_classes.tolist(), kept.scores.tolist(), contours, strict=True)
    objects = [
        DrawnObject(category, shape, label=f"{metadata.thing_classes[category]} {score:.0%}")
        for category, score, shape in found
    ]
    return draw_objects(image_rgb, objects, _class_colors(metadata))


def draw_captioned_predictions(
    image_rgb: RgbImage, instances: Instances, metadata: Any, score_thresh: float
) -> tuple[str, RgbImage]:
    """Draw predicted instances; returns a caption with their number, and the picture.

    Args:
        image_rgb: see :func:`draw_predictions`.
        instances: the same.
        metadata: the same.
        score_thresh: the same.
    """
    number = int((instances.scores >= score_thresh).sum())
    caption = caption_of(f"prediction (score ≥ {score_thresh:g})", number)
    return caption, draw_predictions(image_rgb, instances, metadata, score_thresh)


def draw_semantic_labels(
    image_rgb: RgbImage, train_ids: npt.NDArray[np.uint8], metadata: Any
) -> RgbImage:
    """Draw the class of every pixel.

    Args:
        image_rgb: shape (H, W, 3), uint8.
        train_ids: shape (H, W), uint8; ids without a class, such as 255, are left out.
        metadata: with ``stuff_classes`` and ``stuff_colors``.

    Returns:
        The picture, see :func:`draw_ground_truth`.
    """
    objects = [
        DrawnObject(category, mask_contours(train_ids == category), label=name)
        for category, name in enumerate(metadata.stuff_classes)
    ]
    return draw_objects(image_rgb, objects, metadata.stuff_colors)


def side_by_side(panels: Sequence[tuple[str, RgbImage]], warning: str = "") -> RgbImage:
    """Put captioned pictures in a row on white.

    Args:
        panels: pairs of a caption and a picture of shape (H, W, 3), uint8, RGB, from left to
            right, at least one. Pictures are aligned at the top.
        warning: at the right end of the captions, in red; above them where they leave no room.

    Returns:
        One picture, shape (H + captions, sum of W + gaps, 3), uint8, RGB.
    """
    height = max(picture.shape[0] for _, picture in panels)
    text_height = max(14, round(max(picture.shape[1] for _, picture in panels) / 45))
    bar, gap = round(1.8 * text_height), round(text_height / 2)
    width = sum(picture.shape[1] for _, picture in panels) + gap * (len(panels) - 1)
    # The font that matplotlib brings along: the labels' own, and there on every machine.
    font = ImageFont.truetype(findfont("DejaVu Sans"), text_height)
    bold = ImageFont.truetype(findfont("DejaVu Sans:bold"), text_height)
    caption, picture = panels[-1]
    needed = font.getlength(caption) + bold.getlength(warning) + 3 * gap
    top = bar if warning and needed > picture.shape[1] else 0
    canvas = Image.new("RGB", (width, top + bar + height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((width - gap, bar / 2), warning, fill=RED, font=bold, anchor="rm")
    left = 0
    for caption, picture in panels:
        draw.text((left + gap, top + bar / 2), caption, fill=INK, font=font, anchor="lm")
        canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (left, top + bar))
        left += picture.shape[1] + gap
    return np.array(canvas)


def caption_of(what: str, num_objects: int, num_groups: int = 0) -> str:
    """Say above a picture what is drawn, so that one without objects does not look broken.

    Args:
        what: such as ``"ground truth"``.
        num_objects: number of objects, without groups.
        num_groups: number of groups, whose hatching is explained.
    """
    parts = [counted(num_objects, "object") if num_objects or not num_groups else ""]
    if num_groups:
        parts.append(f"{counted(num_groups, 'group')} (hatched: several in one outline)")
    return f"{what}: {', '.join(filter(None, parts))}"


def _annotation_contours(annotation: dict[str, Any], size: tuple[int, ...]) -> list[FloatArray]:
    """The outline of an annotated object, in pixels of its image; see :func:`mask_contours`."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        return [box_contour(box)]
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *size)
        return mask_contours(coco_mask.decode(segmentation).astype(bool))
    polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    # All the same way round: a part annotated the other way would count as a hole.
    return [part if signed_area(part) >= 0 else part[::-1] for part in polygons]


def draw_objects(image: RgbImage, objects: Sequence[DrawnObject], colors: Colors) -> RgbImage:
    """Draw objects over an image, enlarged with them until it is wide enough for labels.

    Args:
        image: shape (H, W, 3), uint8, RGB.
        objects: in pixels of the image; contours of less than three points are left out.
        colors: RGB from 0 to 255 of every class.

    Returns:
        The picture, see :func:`draw_ground_truth`.
    """
    factor = max(1.0, MIN_PANEL_WIDTH / image.shape[1])
    if factor > 1:
        enlarged = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        image = np.asarray(enlarged, dtype=np.uint8)
    scaled = []
    for item in objects:
        contours = [part * factor for part in item.contours if len(part) >= 3]
        if contours:
            scaled.append(replace(item, contours=contours))
    visualizer = StreetVisualizer(image, colors)
    visualizer.draw_objects(scaled)
    return visualizer.get_output().get_image()


class StreetVisualizer(Visualizer):
    """Detectron2's Visualizer with a look for crowded street scenes.

    Args:
        image_rgb: shape (H, W, 3), uint8; the drawing has its size.
        class_colors: RGB from 0 to 255 of every class.
    """

    def __init__(self, image_rgb: RgbImage, class_colors: Colors):
        super().__init__(image_rgb)
        self._class_colors = class_colors
        # Detectron2 shows the image resampled, which moves half of it by a pixel.
        self.output.ax.images[0].remove()
        self.output.fig.figimage(self.img, origin="upper", zorder=-1)
        self._points_per_pixel = 72 / self.output.dpi
        self._text_height = float(np.clip(self.output.width / 76, MIN_LETTERS, 27))
        self._line_width = float(np.clip(self.output.width / 1000, 1.0, 1.6))

    def draw_objects(self, objects: Sequence[DrawnObject]) -> None:
        """Draw objects: groups first, then from large to small, then the labels."""
        order = sorted(objects, key=lambda item: (not item.is_group, -item.area))
        # Neighbours of a class, from left to right, get different shades of its colour.
        counts: Counter[int] = Counter()
        shades: dict[DrawnObject, float] = {}
        for item in sorted(order, key=lambda item: item.box[0]):
            shades[item] = SHADES[counts[item.category] % len(SHADES)]
            counts[item.category] += 1
        for item in order:
            self._draw_object(item, shades[item])
        self._draw_labels(order)

    def _class_color(self, category: int, white: float = 0.0) -> tuple[float, ...]:
        """The official colour of a class with a share of white, RGB from 0 to 1."""
        color = np.array(self._class_colors[category]) / 255
        return tuple(color + (1 - color) * white)

    def _draw_object(self, item: DrawnObject, shade: float) -> None:
        outline = Outline.make_compound_path(
            *(Outline(np.vstack([part, part[:1]]), closed=True) for part in item.contours)
        )
        patch = PathPatch(
            outline,
            facecolor=(
                *self._class_color(item.category, shade),
                FILL_ALPHA / 3 if item.is_group else FILL_ALPHA,
            ),
            edgecolor=self._class_color(item.category, 0.55 + shade / 2),
            linewidth=self._line_width * self._points_per_pixel,
            linestyle="--" if item.is_group else "-",
            joinstyle="round",
            hatch=HATCH if item.is_group else None,
        )
        self.output.ax.add_patch(patch)
        if item.edge is not None:
            width = EDGE_WIDTH * self._line_width * self._points_per_pixel
            look = edge_look(item.edge, width)
            self.output.ax.add_patch(PathPatch(outline, fill=False, joinstyle="round", **look))

    def _draw_labels(self, objects: Sequence[DrawnObject]) -> None:
        labelled = [item for item in objects if item.box[3] - item.box[1] >= self._text_height]
        labelled.sort(key=lambda item: -item.area)
        if not labelled:
            return
        renderer = self.output.canvas.get_renderer()
        padding = round(self._text_height / 6)
        texts = [
            self.output.ax.text(
                0,
                0,
                item.label,
                size=self._text_height * self._points_per_pixel,
                family="sans-serif",
                # The one that stands out better (luma, ITU-R BT.601).
                color="black" if np.dot(color, (0.299, 0.587, 0.114)) > 0.6 else "white",
                verticalalignment="top",
                bbox={
                    "facecolor": self._class_color(item.category, 0.1),
                    "alpha": 0.8,
                    "pad": padding * self._points_per_pixel,
                    "edgecolor": "none",
                },
                zorder=10,
            )
            for item in labelled
            for color in [self._class_color(item.category)]
        ]
        extents = [text.get_window_extent(renderer) for text in texts]
        places = place_labels(
            np.array([item.box for item in labelled]),
            np.array([_inner_point(item) for item in labelled]),
            np.array([(each.width, each.height) for each in extents]) + 2 * padding,
            (self.output.height, self.output.width),
        )
        for text, place in zip(texts, places, strict=True):
            if place is None:
                text.remove()
            else:
                text.set_position((place[0] + padding, place[1] + padding))


def _inner_point(item: DrawnObject) -> tuple[float, float]:
    """The point ``(x, y)`` of an object farthest from its outline, to within a few pixels."""
    x0, y0, x1, y1 = item.box
    # 64 cells along the longer side are exact enough for a label and cost nothing.
    cell = max(x1 - x0, y1 - y0, 1) / 64
    grid = np.zeros((int((y1 - y0) / cell) + 3, int((x1 - x0) / cell) + 3), dtype=np.uint8)
    parts = [np.round((part - (x0, y0)) / cell + 1).astype(np.int32) for part in item.contours]
    cv2.fillPoly(grid, parts, 1)
    row, column = np.unravel_index(
        np.argmax(cv2.distanceTransform(grid, cv2.DIST_L2, 3)), grid.shape
    )
    return x0 + float(column - 1) * cell, y0 + float(row - 1) * cell
