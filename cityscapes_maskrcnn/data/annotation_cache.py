"""Annotations of a whole split as a few flat arrays, kept in one file.

Parsing 2,975 ``*_polygons.json`` files takes minutes; reading the arrays back takes a fraction of a
second. A cache file is only a copy: it may be deleted at any time, is rebuilt when an annotation
changes, and is ignored with a warning when it cannot be read. It is a NumPy ``.npz`` file without
pickled objects, so that reading it never executes code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.array_cache import (
    build_lock,
    pack_names,
    read_arrays,
    unpack_names,
    write_arrays,
)
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

FORMAT_VERSION = 1

IntArray = npt.NDArray[np.int64]


class Source(NamedTuple):
    """One file that annotations are read from.

    Attributes:
        name: path below the split's folder, for instance ``aachen/aachen_..._polygons.json``.
        size: in bytes.
        mtime_ns: time of the last change, in nanoseconds.
    """

    name: str
    size: int
    mtime_ns: int


class Record(NamedTuple):
    """What one annotation file holds, for n objects made of p polygons of c numbers together.

    Attributes:
        height: of the image, in pixels.
        width: of the image, in pixels.
        categories: contiguous class ids, shape (n,).
        crowds: whether an object is a group, shape (n,).
        boxes: (x0, y0, x1, y1) in absolute pixel coordinates, shape (n, 4).
        polygon_counts: number of polygons of every object, shape (n,).
        polygon_sizes: how many numbers (twice the points) every polygon has, shape (p,).
        coordinates: x0, y0, x1, y1, ... of all polygons one after another, shape (c,).
    """

    height: int
    width: int
    categories: IntArray
    crowds: npt.NDArray[np.bool_]
    boxes: npt.NDArray[np.float64]
    polygon_counts: IntArray
    polygon_sizes: IntArray
    coordinates: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """The records of many annotation files, each field in one array.

    ``object_counts`` says how many objects belong to every image, shape (images,); the other fields
    are those of :class:`Record`, one record after another.
    """

    heights: IntArray
    widths: IntArray
    object_counts: IntArray
    categories: IntArray
    crowds: npt.NDArray[np.bool_]
    boxes: npt.NDArray[np.float64]
    polygon_counts: IntArray
    polygon_sizes: IntArray
    coordinates: npt.NDArray[np.float64]

    def ends(self) -> tuple[IntArray, IntArray, IntArray]:
        """Where every image's objects, object's polygons and polygon's numbers begin and end.

        Returns:
            Three arrays of shapes (images + 1,), (objects + 1,) and (polygons + 1,): item i lies
            between entries i and i + 1.
        """
        return (
            _running_sum(self.object_counts),
            _running_sum(self.polygon_counts),
            _running_sum(self.polygon_sizes),
        )

    def is_consistent(self) -> bool:
        """Whether the arrays have the right types and their lengths agree with each other."""
        for name, kind, rank in _LAYOUT:
            array = getattr(self, name)
            if (
                array.dtype != kind
                or array.ndim != rank
                or (kind == np.int64 and (array < 0).any())
            ):
                return False
        return (
            len(self.heights) == len(self.widths) == len(self.object_counts)
            and int(self.object_counts.sum()) == len(self.categories)
            and len(self.categories) == len(self.crowds) == len(self.polygon_counts)
            and self.boxes.shape == (len(self.categories), 4)
            and int(self.polygon_counts.sum()) == len(self.polygon_sizes)
            and int(self.polygon_sizes.sum()) == len(self.coordinates)
        )

    def records(self) -> list[Record]:
        """Cut the table into the records it was joined from."""
        object_ends, polygon_ends, number_ends = self.ends()
        records = []
        for image in range(len(self.heights)):
            objects = slice(object_ends[image], object_ends[image + 1])
            polygons = slice(polygon_ends[objects.start], polygon_ends[objects.stop])
            numbers = slice(number_ends[polygons.start], number_ends[polygons.stop])
            records.append(
                Record(
                    int(self.heights[image]),
                    int(self.widths[image]),
                    self.categories[objects],
                    self.crowds[objects],
                    self.boxes[objects],
                    self.polygon_counts[objects],
                    self.polygon_sizes[polygons],
                    self.coordinates[numbers],
                )
            )
        return records


_LAYOUT = (
    ("heights", np.int64, 1),
    ("widths", np.int64, 1),
    ("object_counts", np.int64, 1),
    ("categories", np.int64, 1),
    ("crowds", np.bool_, 1),
    ("boxes", np.float64, 2),
    ("polygon_counts", np.int64, 1),
    ("polygon_sizes", np.int64, 1),
    ("coordinates", np.float64, 1),
)


def empty_record(height: int, width: int) -> Record:
    """A record without objects."""
    none = np.zeros(0, np.int64)
    return Record(height, width, none, np.zeros(0, bool), np.zeros((0, 4)), none, none, np.zeros(0))


def join_records(records: Sequence[Record]) -> Table:
    """Put records one after another into a table; the inverse of :meth:`Table.records`."""
    empty = empty_record(0, 0)  # gives the right shapes and types where there are no records
    return Table(
        np.array([record.height for record in records], np.int64),
        np.array([record.width for record in records], np.int64),
        np.array([len(record.categories) for record in records], np.int64),
        *(
            np.concatenate([record[field] for record in [empty, *records]])
            for field in range(2, len(Record._fields))
        ),
    )


def load_table(
    path: Path,
    folder: str | os.PathLike[str],
    sources: Sequence[Source],
    read: Callable[[str], Record],
    signature: str,
    description: str,
    num_workers: int | None = None,
) -> Table:
    """Read annotation files through a cache file.

    Any number of processes may call this at once: the first one parses, the others wait for it. If
    the cache file cannot be written, that is logged and every call parses again.

    Args:
        path: the cache file; see :func:`cache_file`.
        folder: what the sources' names are relative to.
        sources: the files to read; those that did not change since the cache file was written are
            not parsed again.
        read: parses the file at a path; a module-level function.
        signature: names whatever else the result depends on; another signature empties the cache.
        description: shown before the progress bar of the first build.
        num_workers: processes for parsing; default one per core.

    Returns:
        The records of ``sources``, in their order.
    """
    signature = f"{FORMAT_VERSION} {signature}"
    cached = _read(path, signature, warn=False)
    if cached is not None and cached[0] == sources:
        return cached[1]
    with build_lock(path):
        cached = _read(path, signature, warn=True)
        if cached is not None and cached[0] == sources:
            return cached[1]
        known = dict(zip(cached[0], cached[1].records(), strict=True)) if cached else {}
        changed = [source for source in sources if source not in known]
        parsed = map_in_parallel(
            read,
            [str(Path(folder) / source.name) for source in changed],
            description,
            num_workers,
        )
        known.update(zip(changed, parsed, strict=True))
        table = join_records([known[source] for source in sources])
        _write(path, signature, sources, table)
    return table


def _running_sum(counts: IntArray) -> IntArray:
    """(0, a, a + b, ...) for counts (a, b, ...)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _read(path: Path, signature: str, warn: bool) -> tuple[list[Source], Table] | None:
    """Content of a cache file, or None if it is missing, outdated or damaged."""

    def convert(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[list[Source], Table]:
        names = unpack_names(arrays["names"])
        stamps = arrays["stamps"].tolist()
        table = Table(**{field.name: arrays[field.name] for field in fields(Table)})
        if len(stamps) != len(names) or len(table.heights) != len(names):
            raise ValueError("it lists other files than it has records for")
        if not table.is_consistent():
            raise ValueError("its arrays do not fit together")
        return [Source(name, *stamp) for name, stamp in zip(names, stamps, strict=True)], table

    return read_arrays(path, signature, convert, warn)


def _write(path: Path, signature: str, sources: Sequence[Source], table: Table) -> None:
    """Write a cache file; a failure is only logged."""
    arrays = {
        "names": pack_names([source.name for source in sources]),
        "stamps": np.array([source[1:] for source in sources], np.int64).reshape(-1, 2),
        **{field.name: getattr(table, field.name) for field in fields(Table)},
    }
    write_arrays(path, signature, arrays)
