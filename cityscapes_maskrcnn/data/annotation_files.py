"""One official annotation file to its instances or its size.

The geometry is that of Detectron2's loader, down to the last digit: the same GEOS operations in the
same order on the same numbers.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from cityscapes_maskrcnn.data.annotation_cache import Record, empty_record
from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS, Label, resolve_label
from cityscapes_maskrcnn.utils.errors import InputError

AnnotatedObject = tuple[Label, bool, npt.NDArray[np.float32]]


def read_instances(path: str) -> Record:
    """Parse one ``*_polygons.json`` file.

    Later objects of the file lie in front of earlier ones; every instance keeps the part of its
    polygon that no later object covers.

    Raises:
        InputError: the file is missing, incomplete, or not what the official files look like.
    """
    height, width, objects = read_objects(path)
    check_polygons(path, objects)
    things = [label.id in ID_TO_CONTIGUOUS for label, _, _ in objects]
    first_thing = things.index(True) if any(things) else len(things)
    covered = shapely.Polygon()
    categories: list[int] = []
    crowds: list[bool] = []
    boxes: list[tuple[float, float, float, float]] = []
    polygon_counts: list[int] = []
    polygon_sizes: list[int] = []
    coordinates: list[npt.NDArray[np.float64]] = []
    # Whatever lies behind the last thing covers no thing.
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
            categories.append(ID_TO_CONTIGUOUS[label.id])
            crowds.append(is_group)
            boxes.append(visible.bounds)
            polygon_counts.append(len(rings))
            polygon_sizes.extend(ring.size for ring in rings)
            coordinates.extend(ring.ravel() for ring in rings)
        covered = covered.union(shape)
    if not categories:
        return empty_record(height, width)
    return Record(
        height,
        width,
        np.array(categories, np.int64),
        np.array(crowds, bool),
        np.array(boxes, np.float64),
        np.array(polygon_counts, np.int64),
        np.array(polygon_sizes, np.int64),
        np.concatenate(coordinates),
    )


def read_size(path: str) -> Record:
    """Read the size of a PNG from its header, as a record without objects.

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
    return empty_record(height, width)


def _polygons(geometry: Any) -> list[Any]:
    """The non-empty polygons of a geometry; lines and points have no area and are left out."""
    return [
        part
        for part in shapely.get_parts(shapely.get_parts(geometry))
        if isinstance(part, shapely.Polygon) and not part.is_empty
    ]


def read_objects(path: str) -> tuple[int, int, list[AnnotatedObject]]:
    """Read and check one annotation file.

    Returns:
        Height, width, and per object in drawing order its label, whether it is a group, and its
        vertices, shape (points, 2), float32; without deleted objects and those without an official
        id (licence plates), which belong to no image.
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
            raise InputError(f"{path}: imgHeight and imgWidth must be positive whole numbers")
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
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    return height, width, objects


def check_polygons(path: str, objects: list[AnnotatedObject]) -> None:
    """Make sure that the vertices of :func:`read_objects` enclose something.

    Raises:
        InputError: vertices are fewer than three, not finite, or not pairs.
    """
    for label, _, points in objects:
        if (
            points.ndim != 2
            or points.shape[1] != 2
            or len(points) < 3
            or not np.isfinite(points).all()
        ):
            raise InputError(
                f"{path}: a polygon of {label.name!r} is not a list of three or more (x, y) points"
            )
