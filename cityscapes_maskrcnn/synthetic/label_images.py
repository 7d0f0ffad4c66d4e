"""Drawing and coarsening of annotations in the form of the official ``*_polygons.json``."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cityscapes_maskrcnn.data.labels import LABELS, resolve_label

Annotation = dict[str, Any]


def _draw(annotation: Annotation, values: list[int]) -> npt.NDArray[np.int32]:
    """Draw every object with its value, later ones over earlier ones; negative: not at all."""
    # Mode "I" is drawn in memory only: Pillow 13 cannot write it any more.
    image = Image.new("I", (annotation["imgWidth"], annotation["imgHeight"]), 0)
    drawer = ImageDraw.Draw(image)
    for item, value in zip(annotation["objects"], values, strict=True):
        if value >= 0:
            drawer.polygon([(x, y) for x, y in item["polygon"]], fill=value)
    return np.asarray(image, dtype=np.int32)


def draw_instance_ids(annotation: Annotation) -> npt.NDArray[np.uint16]:
    """Draw what ``*_instanceIds.png`` holds.

    Args:
        annotation: the content of a polygons file.

    Returns:
        (H, W) uint16: the label id, or label id * 1000 + number for single objects of the classes
        with instances. Equal to ``cityscapesscripts.preparation.json2instanceImg``.

    Raises:
        InputError: an object has a label that is none of Cityscapes.
    """
    numbers: dict[str, int] = {}
    values = []
    for item in annotation["objects"]:
        if item.get("deleted"):
            values.append(-1)
            continue
        label, is_group = resolve_label(item["label"])
        value = label.id
        if label.hasInstances and not is_group:
            number = numbers.get(label.name, 0)
            numbers[label.name] = number + 1
            value = label.id * 1000 + number
        values.append(value)
    return _draw(annotation, values).astype(np.uint16)


def labels_of_instances(instance_ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Compute label ids (H, W) uint8 of an instance image (H, W) uint16."""
    single = instance_ids >= 1000
    return np.where(single, instance_ids // 1000, instance_ids).astype(np.uint8)


def colors_of_labels(label_ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Look up RGBA colours (H, W, 4) uint8 of label ids (H, W) uint8."""
    table = np.zeros((256, 4), dtype=np.uint8)
    table[:, 3] = 255
    for label in LABELS:
        if label.id >= 0:
            table[label.id, :3] = label.color
    return table[label_ids]


def visible_areas(annotation: Annotation) -> npt.NDArray[np.int64]:
    """Count the visible pixels of every object, those that no later object hides.

    Returns:
        One count per entry of ``annotation["objects"]``; 0 for those that are not drawn.
    """
    count = len(annotation["objects"])
    areas = np.bincount(_draw_order(annotation).ravel(), minlength=count + 1)
    return np.asarray(areas[1:], dtype=np.int64)


def _draw_order(annotation: Annotation) -> npt.NDArray[np.int32]:
    """(H, W): 1 + the index of the object that is visible there, 0 for none."""
    values = [
        -1 if item.get("deleted") or resolve_label(item["label"])[0].id < 0 else index + 1
        for index, item in enumerate(annotation["objects"])
    ]
    return _draw(annotation, values)


def coarsen(annotation: Annotation) -> Annotation:
    """Simplify an annotation to what a quick annotator would draw.

    As in the official coarse set, areas stay inside the objects, have few vertices and leave gaps
    along the edges unlabeled; small and mostly hidden objects are left out.

    Args:
        annotation: the fine one.

    Returns:
        A coarse one of the same size.
    """
    height, width = annotation["imgHeight"], annotation["imgWidth"]
    order = _draw_order(annotation)
    void = ("ego vehicle", "out of roi", "rectification border")
    smallest = 900 * (height / 1024) ** 2
    objects = []
    for index, item in enumerate(annotation["objects"]):
        if item["label"] in void:
            objects.append({"label": item["label"], "polygon": item["polygon"]})
            continue
        points = np.asarray(item["polygon"])
        x0, y0 = np.maximum(points.min(axis=0), 0)
        x1, y1 = np.minimum(points.max(axis=0) + 1, (width, height))
        if x1 - x0 < 3 or y1 - y0 < 3:
            continue
        visible = (order[y0:y1, x0:x1] == index + 1).astype(np.uint8)
        polygon = _shrunk(visible, smallest, height)
        if polygon is not None:
            shifted = [[int(x) + int(x0), int(y) + int(y0)] for x, y in polygon]
            objects.append({"label": item["label"], "polygon": shifted})
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def _shrunk(
    mask: npt.NDArray[np.uint8], smallest: float, height: int
) -> npt.NDArray[np.int32] | None:
    """A simple polygon (N, 2) inside the largest area of a mask, or None if that is too small."""
    area = float(mask.sum())
    if area < smallest:
        return None
    gap = max(1, round(min(0.06 * area**0.5, 0.008 * height)))
    padded = cv2.copyMakeBorder(mask, gap, gap, gap, gap, cv2.BORDER_CONSTANT)
    kernel = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
    inner = cv2.erode(padded, kernel)
    contours, _ = cv2.findContours(inner, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    simple = cv2.approxPolyDP(largest, max(1.2, gap * 0.8), True).reshape(-1, 2) - gap
    if len(simple) < 3 or cv2.contourArea(simple.astype(np.int32)) < smallest / 4:
        return None
    return np.asarray(simple, dtype=np.int32)


def withheld(annotation: Annotation) -> Annotation:
    """Replace an annotation by a placeholder of ignored regions, as in the official test set."""
    height, width = annotation["imgHeight"], annotation["imgWidth"]
    whole = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    kept = [
        item
        for item in annotation["objects"]
        if item["label"] in ("ego vehicle", "rectification border") and not item.get("deleted")
    ]
    objects = [{"label": "out of roi", "polygon": whole}, *kept]
    return {"imgHeight": height, "imgWidth": width, "objects": objects}
