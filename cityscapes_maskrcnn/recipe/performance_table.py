"""The performance table: scores and cost of each stage, beside published results.

Official and COCO-style numbers differ a lot on the same predictions: every column names its
protocol.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml
from tabulate import tabulate

from cityscapes_maskrcnn.engine.outcome import short_name, short_names
from cityscapes_maskrcnn.recipe.stage_table import STAGES
from cityscapes_maskrcnn.utils.files import csv_text, read_json
from cityscapes_maskrcnn.utils.text import printable

COCO_SCORES: Final = ("AP", "AP50", "APs", "APm", "APl", "AR100")
THIS_RUN: Final = "this run"
REFERENCE: Final = "reference study"
PUBLISHED: Final = "published"
GENERATED: Final = (
    "Scores on generated scenes cannot be compared with published ones on Cityscapes."
)

_MAYBE: Final = (float, None)
_SUMMARY: Final = {
    "images": _MAYBE,
    "epochs": _MAYBE,
    "trainable_parameters": _MAYBE,
    "seconds": _MAYBE,
    "peak_memory_bytes": _MAYBE,
    "memory": str,
    "generated?": bool,
}
_SCORES: Final = {
    "datasets": {
        "*": {
            "images": _MAYBE,
            # Other tasks have other metrics.
            "results": {"segm?": {"*": _MAYBE}, "coco_segm?": {"*": _MAYBE}},
            "generated?": bool,
        }
    },
    "seen?": [str],
}
_COCO_COLUMNS: Final = tuple(f"COCO-style {name}" for name in COCO_SCORES)
OUR_COLUMNS: Final = (
    "stage",
    "scored on",
    "official AP",
    "official AP50",
    *_COCO_COLUMNS,
    "images",
    "epochs",
    "parameters trained",
    "time",
    "peak memory",
)
_REFERENCE_COLUMNS: Final = ("stage", "split", *_COCO_COLUMNS, "source")
_PUBLISHED_COLUMNS: Final = ("method", "split", "official AP", "official AP50", "source")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table. Scores are in percent; None is unknown or does not exist.

    Attributes:
        group: ``"this run"``, ``"reference study"`` or ``"published"``.
        name: the stage or the method.
        split: what was scored, in short.
        dataset: its name in Detectron2's catalog, of rows of this run.
        official: ``AP`` and ``AP50`` of the official protocol.
        coco: :data:`COCO_SCORES` of the COCO-style protocol, for masks.
        scored_images: number of images of ``split``.
        trained_on: names of the datasets of training.
        trained_images: number of images of an epoch of training.
        epochs: length of training.
        trainable: number of parameters that were trained.
        seconds: wall time of training, with its evaluations.
        memory_bytes: peak memory of training.
        memory: which: ``"GPU"`` or ``"RAM"``.
        source: where the numbers are from.
        note: a warning or remark about them.
        generated: whether the images of ``split``, or of the training of a stage without scores,
            are generated scenes.
    """

    group: str
    name: str
    split: str = ""
    dataset: str = ""
    official: Mapping[str, float] = field(default_factory=dict)
    coco: Mapping[str, float] = field(default_factory=dict)
    scored_images: int | None = None
    trained_on: str = ""
    trained_images: int | None = None
    epochs: float | None = None
    trainable: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    memory: str = ""
    source: str = ""
    note: str = ""
    generated: bool = False


def stage_rows(output: Path) -> list[Row]:
    """Read the summaries and scores of a chain of stages.

    Args:
        output: holds ``stage_N/summary.json`` and ``scores/stage_N/scores.json``. A stage without
            a summary has no row.

    Returns:
        One row a stage and dataset it was scored on.

    Raises:
        InputError: a file is damaged.
    """
    rows = []
    for stage, name in STAGES.items():
        summary = _read(output / stage / "summary.json", _SUMMARY)
        if not summary:
            continue
        cost = {
            "trained_on": short_names(summary.get("train", ())),
            "trained_images": summary["images"],
            "epochs": summary["epochs"],
            "trainable": summary["trainable_parameters"],
            "seconds": summary["seconds"],
            "memory_bytes": summary["peak_memory_bytes"],
            "memory": summary["memory"],
            "source": str(output / stage),
        }
        scores = _read(output / "scores" / stage / "scores.json", _SCORES)
        seen = "; ".join(scores.get("seen", []))
        for split, scored in scores.get("datasets", {"": {"images": None, "results": {}}}).items():
            results = scored["results"]
            rows.append(
                Row(
                    group=THIS_RUN,
                    name=name,
                    split=short_name(split),
                    dataset=split,
                    official=_chosen(results.get("segm", {}), ("AP", "AP50")),
                    coco=_chosen(results.get("coco_segm", {}), COCO_SCORES),
                    scored_images=scored["images"],
                    **cost,
                    note=f"not honest: {seen}" if seen else "",
                    # Files of earlier versions do not have it.
                    generated=scored.get("generated", summary.get("generated", False)),
                )
            )
    return rows


def other_rows() -> list[Row]:
    """The reference study's and published results, with their sources."""
    file = resources.files("cityscapes_maskrcnn.recipe") / "published_scores.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    reference = content["reference_study"]
    rows = [
        Row(
            group=REFERENCE,
            name=name,
            split=reference["split"],
            coco=scores,
            source=reference["source"],
        )
        for name, scores in reference["coco"].items()
    ]
    rows += [
        Row(
            group=PUBLISHED,
            name=method["name"],
            split=split,
            official=method[split],
            source=method["source"],
        )
        for method in content["published"]
        for split in ("val", "test")
        if split in method
    ]
    return rows


def caution(rows: Iterable[Row]) -> str:
    """The warning that belongs to all scores of this run; empty for none."""
    return GENERATED if any(row.generated for row in rows) else ""


def to_markdown(rows: Sequence[Row]) -> str:
    """Write the table for people: a section a group, and the notes below."""
    sections = ["# Performance", "Scores in percent; - is not known or does not exist."]
    for group, title, columns in [
        (THIS_RUN, "This run", OUR_COLUMNS),
        (REFERENCE, "The reference study, COCO-style protocol", _REFERENCE_COLUMNS),
        (
            PUBLISHED,
            "Published, official protocol, on Cityscapes val (500 images) or test (1,525)",
            _PUBLISHED_COLUMNS,
        ),
    ]:
        chosen = [row for row in rows if row.group == group]
        if not chosen:
            continue
        sections.append(f"## {title}")
        if caution(chosen):
            sections.append(f"**{caution(chosen)}**")
        cells = [[cell(row, column) for column in columns] for row in chosen]
        sections.append(tabulate(cells, columns, tablefmt="github", disable_numparse=True))
        sections += [
            printable(f"**{', '.join(filter(None, (row.name, row.split)))}**: {row.note}", 10_000)
            for row in chosen
            if row.note
        ]
    return "\n\n".join(sections) + "\n"


def to_terminal(rows: Sequence[Row]) -> str:
    """Write the main scores of this run's stages for a terminal of 80 columns, and the notes."""
    columns = ["stage", "official AP", "official AP50", "COCO-style AP", "time"]
    places = dict.fromkeys(cell(row, "scored on") for row in rows if row.split)
    if len(places) > 1:
        columns.insert(1, "scored on")
    where = f", on {next(iter(places))}" if len(places) == 1 else ""
    table = tabulate(
        [[cell(row, column) for column in columns] for row in rows],
        [column.replace("official AP50", "AP50") for column in columns],
        disable_numparse=True,
        maxcolwidths=[16 if column == "scored on" else None for column in columns],
    )
    notes = [printable(f"{row.name}: {row.note}", 10_000) for row in rows if row.note]
    below = [*notes, *filter(None, [caution(rows)])]
    lines = [line for text in below for line in textwrap.wrap(text, 80)]
    return "\n".join([f"Scores in percent{where}", "", table, "", *lines]).rstrip() + "\n"


def to_csv(rows: Iterable[Row]) -> str:
    """Write the table for programs: one line a row, raw numbers, empty where nothing is known."""
    lines: list[dict[str, Any]] = [
        {
            "group": row.group,
            "name": row.name,
            "split": row.split,
            "scored_images": row.scored_images,
            **{f"official_{name}": row.official.get(name) for name in ("AP", "AP50")},
            **{f"coco_{name}": row.coco.get(name) for name in COCO_SCORES},
            "trained_images": row.trained_images,
            "epochs": row.epochs,
            "trainable_parameters": row.trainable,
            "seconds": row.seconds,
            "peak_memory_bytes": row.memory_bytes,
            "memory": row.memory,
            "source": row.source,
            "note": "; ".join(filter(None, (row.note, caution([row])))),
        }
        for row in rows
    ]
    return csv_text(lines[0], (line.values() for line in lines)) if lines else ""


def cell(row: Row, column: str) -> str:
    """Format one value of a row for people.

    Args:
        row: of the table.
        column: its heading, such as ``"COCO-style APs"``, ``"parameters trained"``, ``"time"``.
    """
    protocol, _, name = column.rpartition(" ")
    if protocol in ("official", "COCO-style"):
        score = (row.official if protocol == "official" else row.coco).get(name)
        return "-" if score is None else f"{score:.1f}"
    generated = "generated " * row.generated
    formats: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "stage": (row.name, str),
        "method": (row.name, str),
        "split": (row.split, str),
        "scored on": (row.split, f"{{}} ({row.scored_images} {generated}images)".format),
        "images": (row.trained_images, "{:,}".format),
        "epochs": (row.epochs, "{:.3g}".format),
        "parameters trained": (row.trainable, lambda count: f"{count / 1e6:.1f} M"),
        "time": (row.seconds, _time),
        "peak memory": (row.memory_bytes, lambda size: f"{size / 2**30:.1f} GiB {row.memory}"),
        "source": (row.source, str),
    }
    value, text = formats[column]
    return "-" if value in (None, "") else printable(text(value))


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _chosen(scores: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    # Without any ground truth a score is null.
    return {name: float(scores[name]) for name in names if scores.get(name) is not None}


def _read(path: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON object of a form; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    return read_json(path, form=form, advice="another program or version wrote it")
