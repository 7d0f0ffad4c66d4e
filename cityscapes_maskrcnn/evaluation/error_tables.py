"""The error analysis as CSV files, for spreadsheets and for the pictures."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.error_analysis import (
    CAUSES,
    OCCLUSION_LIMITS,
    SIZE_LIMITS,
    ErrorSummary,
)
from cityscapes_maskrcnn.evaluation.instance_ap import IntArray
from cityscapes_maskrcnn.utils.files import atomic_write

PER_CLASS_FILE: Final = "per_class.csv"
# Not "missed" or "background", which look at the classes.
UNMATCHED: Final = "unmatched"


def write_error_tables(
    folder: str | os.PathLike[str], summary: ErrorSummary, ap: npt.NDArray[np.float64]
) -> None:
    """Write the tables; words are as in :mod:`.error_analysis`.

    * ``per_class.csv``: official AP and AP50 in percent, and at ``confidence_threshold`` the
      objects that are found and missed, false positives, precision and recall.
    * ``precision_recall.csv``: the curves, a line per class and point.
    * ``confusion.csv``: rows truth, columns prediction; ``unmatched`` are objects that nothing
      covers, and predictions that cover nothing, of whatever class.
    * ``false_positives.csv``: by predicted class and cause.
    * ``misses.csv``: objects and missed ones by class and size, by class and occlusion.

    Args:
        folder: made when missing; each file appears only when it is complete.
        summary: the errors of all images.
        ap: of the same images, from :func:`.instance_ap.average_precision`.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    _write(folder / PER_CLASS_FILE, _per_class(summary, ap))
    _write(folder / "precision_recall.csv", _curves(summary))
    columns = ["truth", *THING_CLASSES, UNMATCHED]
    rows = zip([*THING_CLASSES, UNMATCHED], summary.confusion.tolist(), strict=True)
    _write(folder / "confusion.csv", [columns, *([name, *counts] for name, counts in rows)])
    rows = zip(THING_CLASSES, summary.false_positives.tolist(), strict=True)
    _write(
        folder / "false_positives.csv",
        [["class", *CAUSES], *([name, *counts] for name, counts in rows)],
    )
    _write(folder / "misses.csv", _misses(summary))


def _per_class(summary: ErrorSummary, ap: npt.NDArray[np.float64]) -> list[list[Any]]:
    rows: list[list[Any]] = [
        [
            *("class", "AP", "AP50", "confidence_threshold", "objects", "found", "missed"),
            *("false_positives", "precision", "recall"),
        ]
    ]
    objects, missed = summary.by_size.sum(axis=1).T.tolist()
    false = summary.false_positives.sum(axis=1).tolist()
    for index, name in enumerate(THING_CLASSES):
        found = objects[index] - missed[index]
        percent = [_number(100 * value) for value in (ap[index].mean(), ap[index, 0])]
        shown = found + false[index]
        rows.append(
            [
                *(name, *percent, summary.confidence_threshold),
                *(objects[index], found, missed[index], false[index]),
                _number(found / shown if shown else math.nan),
                _number(found / objects[index] if objects[index] else math.nan),
            ]
        )
    return rows


def _curves(summary: ErrorSummary) -> Iterable[Sequence[Any]]:
    yield ["class", "confidence", "recall", "precision"]
    for name, curve in zip(THING_CLASSES, summary.curves, strict=True):
        if curve is not None:
            for point in zip(
                curve.confidences.tolist(),
                curve.recall.tolist(),
                curve.precision.tolist(),
                strict=True,
            ):
                yield [name, *point]


def _misses(summary: ErrorSummary) -> Iterable[Sequence[Any]]:
    yield ["class", "by", "group", "objects", "missed"]
    tables: list[tuple[str, Mapping[str, float], IntArray]] = [
        ("size", SIZE_LIMITS, summary.by_size),
        ("occlusion", OCCLUSION_LIMITS, summary.by_occlusion),
    ]
    for kind, limits, table in tables:
        for name, groups in zip(THING_CLASSES, table.tolist(), strict=True):
            for group, counts in zip(limits, groups, strict=True):
                yield [name, kind, group, *counts]


def _number(value: float) -> float | str:
    """An empty cell for NaN, which spreadsheets take for text."""
    return "" if math.isnan(value) else float(value)


def _write(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path, "w") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
