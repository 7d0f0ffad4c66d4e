"""Statistics of a dataset: number, size, position and visibility of the objects of each class.

Words are those of :mod:`.evaluation.error_analysis`: sizes and occlusion have the same limits, so
that what a model misses can be set against what there is. Areas are those of the annotated polygons
less what hides them, in pixels of the image; an object's *visible share* is what closer annotated
things leave of its box: 1 - its occlusion. Groups, which are no single objects, are counted apart;
they hide others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from tabulate import tabulate

from cityscapes_maskrcnn.utils.files import csv_text
from cityscapes_maskrcnn.utils.object_limits import (
    MIN_REGION_PIXELS,
    OCCLUSION_LIMITS,
    SIZE_LIMITS,
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Cells of :attr:`DatasetStatistics.coverage`.
GRID: Final = (64, 128)


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """The objects of a dataset, N of them in M images; groups are no objects.

    Attributes:
        classes: names by contiguous class id, K of them.
        images: shape (N,), dtype int64: index of the object's image.
        categories: shape (N,), dtype int64: contiguous class ids.
        boxes: shape (N, 4), dtype float64: x0, y0, x1, y1 in absolute pixels of the image.
        areas: shape (N,), dtype float64: visible pixels.
        visible: shape (N,), dtype float64: share of the box that no closer thing takes, 0 to 1.
        objects_per_image: shape (M, K), dtype int64.
        groups: shape (K,), dtype int64: number of groups.
        coverage: shape (K + 1, 64, 128), dtype int64: number of images that have an object of the
            class, last of any class, in a cell of :data:`GRID`, which spans an image of any size.
        file_names: M paths.
    """

    classes: Sequence[str]
    images: IntArray
    categories: IntArray
    boxes: FloatArray
    areas: FloatArray
    visible: FloatArray
    objects_per_image: IntArray
    groups: IntArray
    coverage: IntArray
    file_names: Sequence[str]

    @property
    def num_images(self) -> int:
        """The number of images, with those without objects."""
        return len(self.objects_per_image)

    @property
    def sides(self) -> FloatArray:
        """Square roots of the areas, shape (N,), in pixels."""
        return np.sqrt(self.areas)

    @property
    def aspect_ratios(self) -> FloatArray:
        """Height / width of the boxes, shape (N,)."""
        return (self.boxes[:, 3] - self.boxes[:, 1]) / (self.boxes[:, 2] - self.boxes[:, 0])

    def count(self, values: FloatArray, limits: Sequence[float]) -> IntArray:
        """Count objects by class and bin.

        Args:
            values: shape (N,).
            limits: lower ends of L bins, ascending; the first is below all values.

        Returns:
            Shape (K, L).
        """
        counts = np.zeros((len(self.classes), len(limits)), np.int64)
        np.add.at(counts, (self.categories, np.digitize(values, limits) - 1), 1)
        return counts

    def by_size(self) -> IntArray:
        """Objects by class and :data:`SIZE_LIMITS`, shape (K, 3)."""
        return self.count(self.areas, list(SIZE_LIMITS.values()))

    def by_occlusion(self) -> IntArray:
        """Objects by class and :data:`OCCLUSION_LIMITS`, shape (K, 3)."""
        return self.count(1 - self.visible, list(OCCLUSION_LIMITS.values()))


def measure_dataset(
    images: Iterable[Mapping[str, Any]], classes: Sequence[str]
) -> DatasetStatistics:
    """Measure the objects of a dataset.

    Args:
        images: dataset dicts of :func:`.annotations.load_instances`: valid polygons, boxes XYXY.
        classes: names by contiguous class id.
    """
    found: list[tuple[IntArray, FloatArray, FloatArray, FloatArray]] = []
    groups = np.zeros(len(classes), np.int64)
    coverage = np.zeros((len(classes) + 1, *GRID), np.int64)
    per_image, file_names = [], []
    for image in images:
        annotations = image["annotations"]
        is_group = np.array([each["iscrowd"] for each in annotations], bool)
        categories = np.array([each["category_id"] for each in annotations], np.int64)
        boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
        areas, hidden = _areas_and_occlusions([each["segmentation"] for each in annotations], boxes)
        coverage += _coverage(image, len(classes))
        groups += np.bincount(categories[is_group], minlength=len(classes))
        per_image.append(np.bincount(categories[~is_group], minlength=len(classes)))
        file_names.append(image["file_name"])
        found.append(
            (categories[~is_group], boxes[~is_group], areas[~is_group], 1 - hidden[~is_group])
        )
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return DatasetStatistics(
        classes=tuple(classes),
        images=np.repeat(np.arange(len(found)), [len(part[0]) for part in found]),
        categories=columns[0],
        boxes=columns[1],
        areas=columns[2],
        visible=columns[3],
        objects_per_image=np.array(per_image),
        groups=groups,
        coverage=coverage,
        file_names=file_names,
    )


def _areas_and_occlusions(
    outlines: Sequence[Sequence[Sequence[float]]], boxes: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Get area and occlusion of every annotation of an image, shape (n,) each."""
    rings = [np.reshape(polygon, (-1, 2)) for polygons in outlines for polygon in polygons]
    if not rings:
        return np.zeros(0), np.zeros(0)
    owners = np.repeat(np.arange(len(outlines)), [len(polygons) for polygons in outlines])
    lengths = [len(ring) for ring in rings]
    parts = shapely.polygons(
        shapely.linearrings(
            np.concatenate(rings), indices=np.repeat(np.arange(len(rings)), lengths)
        )
    )
    areas = np.bincount(owners, shapely.area(parts)).astype(np.float64)
    # Pairs of a box and a part of a closer thing; visible parts do not overlap each other.
    bounds = shapely.bounds(parts)
    is_closer = boxes[owners, 3] > boxes[:, 3, None]
    is_closer &= (bounds[:, :2] < boxes[:, None, 2:]).all(axis=2)
    is_closer &= (bounds[:, 2:] > boxes[:, None, :2]).all(axis=2)
    hidden, closer = np.nonzero(is_closer)
    frames = shapely.box(*boxes.T)
    common = shapely.area(shapely.intersection(frames[hidden], parts[closer]))
    taken = np.bincount(hidden, common, minlength=len(boxes)) / shapely.area(frames)
    return areas, np.clip(taken, 0, 1)


def _coverage(image: Mapping[str, Any], num_classes: int) -> IntArray:
    """Find the cells of :data:`GRID` that objects of every class, and of any, touch: 0 or 1."""
    touched = np.zeros((num_classes + 1, *GRID), np.uint8)
    cells = GRID[1] / image["width"], GRID[0] / image["height"]
    for each in image["annotations"]:
        if not each["iscrowd"]:
            outlines = [
                np.floor(np.reshape(polygon, (-1, 2)) * cells).astype(np.int32)
                for polygon in each["segmentation"]
            ]
            cv2.fillPoly(touched[each["category_id"]], outlines, 1)
    touched[-1] = touched[:-1].max(axis=0)
    return touched.astype(np.int64)


def class_rows(datasets: Mapping[str, DatasetStatistics]) -> list[dict[str, Any]]:
    """Tabulate the classes of every dataset, and all of them together.

    Returns:
        A row a dataset and class with the same keys: counts, and medians in pixels, which are NaN
        without objects.
    """
    rows = []
    for dataset, stats in datasets.items():
        by_size, by_occlusion = stats.by_size(), stats.by_occlusion()
        members = {"all classes": list(range(len(stats.classes)))}
        members |= {name: [index] for index, name in enumerate(stats.classes)}
        for name, categories in members.items():
            of_class = np.isin(stats.categories, categories)
            counts = stats.objects_per_image[:, categories].sum(axis=1)
            rows.append(
                {
                    "dataset": dataset,
                    "class": name,
                    "objects": int(counts.sum()),
                    "groups": int(stats.groups[categories].sum()),
                    "images": int(np.count_nonzero(counts)),
                    "of images": stats.num_images,
                    "most in an image": int(counts.max()),
                    **_by_name(SIZE_LIMITS, by_size[categories]),
                    f"below {MIN_REGION_PIXELS} px": int(
                        np.sum(stats.areas[of_class] < MIN_REGION_PIXELS)
                    ),
                    "median root area": _median(stats.sides[of_class]),
                    "median height/width": _median(stats.aspect_ratios[of_class]),
                    **{
                        f"{group} occlusion": count
                        for group, count in _by_name(
                            OCCLUSION_LIMITS, by_occlusion[categories]
                        ).items()
                    },
                }
            )
    return rows


def _by_name(groups: Iterable[str], counts: IntArray) -> dict[str, int]:
    """The sums over classes, shape (classes, groups), by the group's name."""
    return dict(zip(groups, counts.sum(axis=0).tolist(), strict=True))


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def differences(datasets: Mapping[str, DatasetStatistics]) -> list[dict[str, Any]]:
    """Compare every two datasets.

    Returns:
        A row a pair: for classes, sizes, occlusion and objects in an image the total variation
        distance of the two distributions in percent: which share of one would have to move to give
        the other; 0 for equal ones. Then the class whose share differs most, in percentage points.
    """
    rows = []
    for (first, one), (second, other) in combinations(datasets.items(), 2):
        in_one, in_other = (stats.objects_per_image.sum(axis=1) for stats in (one, other))
        most = 1 + int(max(in_one.max(), in_other.max()))
        counts = {
            "classes": (one.objects_per_image.sum(axis=0), other.objects_per_image.sum(axis=0)),
            "sizes": (one.by_size().sum(axis=0), other.by_size().sum(axis=0)),
            "occlusion": (one.by_occlusion().sum(axis=0), other.by_occlusion().sum(axis=0)),
            "objects in an image": (
                np.bincount(in_one, minlength=most),
                np.bincount(in_other, minlength=most),
            ),
        }
        changes = {name: _shares(after) - _shares(now) for name, (now, after) in counts.items()}
        largest = int(np.argmax(np.abs(changes["classes"])))
        rows.append(
            {
                "from": first,
                "to": second,
                **{
                    f"{name} (%)": 100 * float(np.abs(change).sum()) / 2
                    for name, change in changes.items()
                },
                "largest change of a class": (
                    f"{one.classes[largest]} {100 * changes['classes'][largest]:+.1f} points"
                ),
            }
        )
    return rows


def _shares(counts: IntArray) -> FloatArray:
    return counts / max(1, int(counts.sum()))


def classes_to_csv(datasets: Mapping[str, DatasetStatistics]) -> str:
    """Write :func:`class_rows` for programs: raw numbers, empty where there is none."""
    rows = class_rows(datasets)
    return csv_text(rows[0], (row.values() for row in rows))


def objects_to_csv(datasets: Mapping[str, DatasetStatistics]) -> str:
    """Write a line an object: dataset, image, class, box and area in pixels, visible share."""
    header = ["dataset", "image", "class", "x0", "y0", "x1", "y1", "area", "visible_share"]
    rows: list[list[Any]] = []
    for dataset, stats in datasets.items():
        for image, category, box, area, visible in zip(
            stats.images.tolist(),
            stats.categories.tolist(),
            stats.boxes.tolist(),
            stats.areas.tolist(),
            stats.visible.tolist(),
            strict=True,
        ):
            corners = [f"{corner:.1f}" for corner in box]
            rows.append(
                [
                    dataset,
                    stats.file_names[image],
                    stats.classes[category],
                    *corners,
                    f"{area:.1f}",
                    f"{visible:.4f}",
                ]
            )
    return csv_text(header, rows)


def overview(datasets: Mapping[str, DatasetStatistics]) -> str:
    """Write a Markdown table with a line a dataset."""
    return _table(
        [
            {
                "dataset": row["dataset"],
                "images": row["of images"],
                "without objects": row["of images"] - row["images"],
                "objects": row["objects"],
                "groups": row["groups"],
                "an image": f"{row['objects'] / row['of images']:.1f}",
                "most": row["most in an image"],
                **{name: _percent(row[name], row["objects"]) for name in SIZE_LIMITS},
                "heavily occluded": _percent(row["heavy occlusion"], row["objects"]),
            }
            for row in class_rows(datasets)
            if row["class"] == "all classes"
        ]
    )


def to_markdown(
    datasets: Mapping[str, DatasetStatistics], generated: Iterable[str], pictures: Iterable[str]
) -> str:
    """Write the report for people.

    Args:
        datasets: by name.
        generated: names of those that are generated scenes.
        pictures: names of files beside the report.
    """
    rows = class_rows(datasets)
    parts = ["# What is in the data"]
    parts += [f"**{name}: generated scenes, not Cityscapes.**" for name in generated]
    parts += [
        overview(datasets),
        "Small objects are below 32² pixels of the image, large ones at least 96² (COCO's limits). "
        "Objects that reach lower in the image count as closer and hide others. Occlusion is heavy "
        "from 35 % of the box on, partial from 1 %. Objects below "
        f"{MIN_REGION_PIXELS} pixels are not counted in the official score. Groups are counted "
        "separately.",
    ]
    for dataset in datasets:
        own = [
            {key: value for key, value in row.items() if key not in ("dataset", "of images")}
            for row in rows
            if row["dataset"] == dataset
        ]
        parts += [f"## {dataset}", _table(own)]
    if len(datasets) > 1:
        parts += [
            "## Differences",
            _table(differences(datasets)),
            "Which share of the objects (or images) of one would have to move to give the other's "
            "distribution; 0 is equal.",
        ]
    parts += ["## Pictures", *(f"![{name}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [{key: "-" if value != value else value for key, value in row.items()} for row in rows]
    table: str = tabulate(cells, headers="keys", tablefmt="github", floatfmt=".3g")
    return table
