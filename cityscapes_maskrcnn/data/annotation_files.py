"""From one official annotation file to Detectron2's annotations.

The geometry is that of Detectron2's loader, down to the last digit: the same GEOS operations in the
same order on the same numbers.
"""

from __future__ import annotations

import json
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import shapely

from cityscapes_maskrcnn.data.cache import Record
from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS, Label, resolve_label
from cityscapes_maskrcnn.utils.errors import InputError

XYXY_ABS: Final = 0  # detectron2.structures.BoxMode.XYXY_ABS, an IntEnum, is equal to it

#: The fields of a record of :func:`read_instances`, for n objects of p polygons of c numbers.
NO_INSTANCES: Final[Record] = {
    "size": np.zeros(0, np.int64),  # (2,): height and width of the image in pixels
    "categories": np.zeros(0, np.int64),  # (n,): contiguous class ids
    "crowds": np.zeros(0, bool),  # (n,): whether an object is a group
    "boxes": np.zeros((0, 4)),  # (n, 4): x0, y0, x1, y1 in absolute pixel coordinates
    "polygon_counts": np.zeros(0, np.int64),  # (n,): polygons of every object
    "polygon_sizes": np.zeros(0, np.int64),  # (p,): numbers (twice the points) of every polygon
    "coordinates": np.zeros(0),  # (c,): x0, y0, x1, y1, ... of one polygon after another
}

AnnotatedObject = tuple[Label, bool, npt.NDArray[np.float32]]


def read_instances(path: str) -> Record:
    """Parse one ``*_polygons.json`` file.

    Later objects of the file lie in front of earlier ones; every instance keeps the part of its
    polygon that no later object covers.

    Returns:
        A record with the fields of :data:`NO_INSTANCES`.

    Raises:
        InputError: the file is missing, incomplete, or not what the official files look like.
    """
    height, width, objects = read_objects(path)
    check_polygons(path, objects)
    found: dict[str, list[Any]] = {name: [] for name in NO_INSTANCES}
    found["size"] = [height, width]
    things = [label.id in ID_TO_CONTIGUOUS for label, _, _ in objects]
    first_thing = things.index(True) if any(things) else len(things)
    covered = shapely.Polygon()
    # What lies behind the last thing hides no thing.
    for label, is_group, points in reversed(objects[first_thing:]):
        try:
            # Vertices are pixel indices, hence + 0.5; the official rasteriser draws every pixel
            # that the boundary touches, hence half a pixel more on every side.
            shape = shapely.buffer(shapely.Polygon(points + 0.5), 0.5, quad_segs=4)
        except (ValueError, shapely.GEOSException) as error:
            raise InputError(f"{path}: a polygon of {label.name!r} is not one: {error}") from error
        if label.id in ID_TO_CONTIGUOUS:
            visible = shape.difference(covered)
            parts = _polygons(visible)
            if not parts:
                continue
            rings = [shapely.get_coordinates(part.exterior) for part in parts]
            found["categories"].append(ID_TO_CONTIGUOUS[label.id])
            found["crowds"].append(is_group)
            found["boxes"].append(visible.bounds)
            found["polygon_counts"].append(len(rings))
            found["polygon_sizes"].extend(ring.size for ring in rings)
            found["coordinates"].extend(ring.ravel() for ring in rings)
        covered = covered.union(shape)
    found["coordinates"] = np.concatenate([[], *found["coordinates"]])
    return {
        name: np.asarray(found[name], empty.dtype).reshape(-1, *empty.shape[1:])
        for name, empty in NO_INSTANCES.items()
    }


def annotation_dicts(record: Record) -> list[dict[str, Any]]:
    """Turn a record of :func:`read_instances` into Detectron2's annotations.

    Returns:
        One dict per object with ``iscrowd`` (True for a group), ``category_id`` (contiguous, 0 to
        7), ``bbox`` (x0, y0, x1, y1) and ``bbox_mode`` XYXY_ABS, ``segmentation`` (polygons as x0,
        y0, x1, y1, ...). Coordinates are absolute pixels, continuous: a pixel's centre is at +0.5.
    """
    numbers = record["coordinates"].tolist()
    ends = accumulate(record["polygon_sizes"].tolist(), initial=0)
    polygons = (numbers[start:stop] for start, stop in pairwise(ends))
    per_object = ("categories", "crowds", "boxes", "polygon_counts")
    return [
        {
            "iscrowd": crowd,
            "category_id": category,
            "segmentation": list(islice(polygons, count)),
            "bbox": tuple(box),
            "bbox_mode": XYXY_ABS,
        }
        for category, crowd, box, count in zip(
            *(record[name].tolist() for name in per_object), strict=True
        )
    ]


def read_objects(path: str) -> tuple[int, int, list[AnnotatedObject]]:
    """Read and check one annotation file.

    Returns:
        Height, width, and per object in drawing order its label, whether it is a group, and its
        vertices, shape (points, 2), float32; without deleted objects and those without an official
        id (licence plates), which belong to no image.

    Raises:
        InputError: the file is missing, incomplete, or not what the official files look like.
    """
    try:
        with Path(path).open("rb") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a complete JSON file ({error}); unpack it again") from error
    try:
        height, width, entries = content["imgHeight"], content["imgWidth"], content["objects"]
        if type(height) is not int or type(width) is not int or min(height, width) < 1:
            raise InputError("imgHeight and imgWidth must be positive whole numbers")
        objects = []
        for entry in entries:
            if "deleted" in entry:
                continue
            label, is_group = resolve_label(entry["label"])
            if label.id >= 0:
                objects.append((label, is_group, np.asarray(entry["polygon"], np.float32)))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a Cityscapes annotation ({error!r})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return height, width, objects


def check_polygons(path: str, objects: list[AnnotatedObject]) -> None:
    """Verify that the vertices of :func:`read_objects` enclose an area.

    Raises:
        InputError: vertices are fewer than three, not finite, or not pairs.
    """
    for label, _, points in objects:
        is_list_of_pairs = points.ndim == 2 and points.shape[1] == 2
        if not is_list_of_pairs or len(points) < 3 or not np.isfinite(points).all():
            raise InputError(
                f"{path}: a polygon of {label.name!r} is not a list of three or more (x, y) points"
            )


def _polygons(geometry: Any) -> list[Any]:
    """The non-empty polygons of a geometry; lines and points have no area and are left out."""
    return [
        part
        for part in shapely.get_parts(shapely.get_parts(geometry))
        if isinstance(part, shapely.Polygon) and not part.is_empty
    ]
