"""Compare the polygons used in training with the ``*_instanceIds.png`` used in scoring.

Both show the same objects where the official painter drew the one from the other. Where a polygons
file was changed later, or another tool wrote either of them, they may not.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.annotations import annotation_dicts
from cityscapes_maskrcnn.data.cache import Record
from cityscapes_maskrcnn.data.labels import (
    CONTIGUOUS_TO_ID,
    ID_TO_CONTIGUOUS,
    THING_CLASSES,
)

# An object of fewer pixels, not counting borders, is not compared.
_FEWEST_PIXELS: Final = 10
# Single objects of the polygons have keys from here on, above all values of 16 bit.
_FIRST_KEY: Final = 1 << 16


def differing_instances(record: Record, instance_ids: npt.NDArray[np.integer[Any]]) -> list[str]:
    """List the objects of the 8 classes that only the polygons or only the drawing has.

    Args:
        record: see :func:`.annotations.read_instances`.
        instance_ids: shape (height, width): the ``*_instanceIds.png`` of the same size. Single
            objects may have any numbers. Borders may differ by a pixel.

    Returns:
        A text for every object that less than half agrees with one of the other side, of the same
        class and also single or also a group.
    """
    annotations = annotation_dicts(record)
    # Numbered from 1; 0 is where none is. What is in front comes first, and is drawn last.
    numbers = np.zeros(instance_ids.shape, np.float32)
    for number, annotation in reversed(list(enumerate(annotations, start=1))):
        for polygon in annotation["segmentation"]:
            # OpenCV's coordinates have 16 bits.
            points = np.clip(np.floor(np.reshape(polygon, (-1, 2))), -30_000, 30_000)
            cv2.fillPoly(numbers, [points.astype(np.int32)], number)
    # An image without single objects may have 8 bits, which have no 1000.
    instance_ids = instance_ids.astype(np.int32)
    label_ids = np.where(instance_ids < 1000, instance_ids, instance_ids // 1000)
    values = np.where(np.isin(label_ids, CONTIGUOUS_TO_ID), instance_ids, 0).astype(np.float32)
    inside = _without_borders(numbers) & _without_borders(values) & ((numbers > 0) | (values > 0))
    # As in the drawing, the groups of a class have its label id in common.
    keys = np.array(
        [0]
        + [
            CONTIGUOUS_TO_ID[each["category_id"]] if each["iscrowd"] else _FIRST_KEY + index
            for index, each in enumerate(annotations)
        ]
    )
    codes = keys[numbers[inside].astype(np.int64)] << 16 | values[inside].astype(np.int64)
    found, counts = np.unique(codes, return_counts=True)
    overlaps = {
        (code >> 16, code & 0xFFFF): count
        for code, count in zip(found.tolist(), counts.tolist(), strict=True)
    }
    areas: Counter[int] = Counter()
    for pair, count in overlaps.items():
        areas.update(dict.fromkeys(pair, count))
    names = {key: _name(key, annotations) for key in areas}
    agreeing = {0}
    for (key, value), count in overlaps.items():
        if names[key] == names[value] and 2 * count >= max(areas[key], areas[value]):
            agreeing.update((key, value))
    differing = []
    for key, area in sorted(areas.items()):
        if key in agreeing or area < _FEWEST_PIXELS:
            continue
        if key >= _FIRST_KEY:
            x0, y0, x1, y1 = (round(number) for number in annotations[key - _FIRST_KEY]["bbox"])
            place = f"the {names[key]} in x {x0} to {x1}, y {y0} to {y1}"
            differing.append(f"{place} is not drawn as such in instanceIds.png")
        elif key >= 1000:
            differing.append(f"instanceIds.png has {key} ({names[key]}), the polygons have not")
        else:
            differing.append(f"instanceIds.png ({key}) and the polygons differ in {names[key]}")
    return differing


def _name(key: int, annotations: list[dict[str, Any]]) -> str:
    """Class of an object, or of a value of the instance ids; with "group" after it for a group."""
    if key >= _FIRST_KEY:
        return THING_CLASSES[annotations[key - _FIRST_KEY]["category_id"]]
    if key >= 1000:
        return THING_CLASSES[ID_TO_CONTIGUOUS[key // 1000]]
    return f"{THING_CLASSES[ID_TO_CONTIGUOUS[key]]}group" if key else ""


def _without_borders(image: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether a pixel and its eight neighbours have one value."""
    square = np.ones((3, 3), np.uint8)
    same: npt.NDArray[np.bool_] = cv2.erode(image, square) == cv2.dilate(image, square)
    return same
