"""The tables of the report: the content of their cells, and the values to sort by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.evaluation.error_analysis import UNMATCHED
from cityscapes_maskrcnn.modeling.drift import WHOLE, format_percent
from cityscapes_maskrcnn.recipe.performance_table import (
    COCO_SCORES,
    PUBLISHED,
    REFERENCE,
    THIS_RUN,
    Row,
    cell,
)
from cityscapes_maskrcnn.recipe.step import StepState
from cityscapes_maskrcnn.report.run_folder import (
    ErrorTables,
    RunFolder,
    TextRow,
    TrainedStage,
    numbers_of,
)
from cityscapes_maskrcnn.utils.config_keys import names_at
from cityscapes_maskrcnn.utils.error_summary import CAUSES
from cityscapes_maskrcnn.utils.object_limits import OCCLUSION_NAMES, SIZE_RANGES
from cityscapes_maskrcnn.visualization.style import class_color

#: The most rows of a table that are shown.
MAX_ROWS: Final = 60
UNKNOWN: Final = "-"
_MAX_CONFUSIONS: Final = 5

#: States as worded in a report, which is read later.
STATES: Final = {
    StepState.NEW: "not run",
    StepState.UNFINISHED: "not complete",
    StepState.COMPLETE: "complete",
}

_SIZES: Final = {
    "small": f"small ({SIZE_RANGES['small']})",
    "medium": "medium",
    "large": f"large ({SIZE_RANGES['large']})",
}


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what is shown.
        value: the value by which its column is sorted; None: unknown, which is sorted last.
        share: length of a bar behind the text, 0 to 1; None: no bar.
        color: colour of a swatch before the text, ``#rrggbb``; empty: none.
    """

    text: str
    value: float | str | None = None
    share: float | None = None
    color: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading, whether it holds numbers, and a remark that explains it."""

    label: str
    numeric: bool = True
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def notes(self) -> str:
        """The note, and the remarks of the columns, which a keyboard or a finger does not reach."""
        remarks = (f"{each.label}: {each.remark}." for each in self.columns if each.remark)
        return " ".join(filter(None, (self.note, *remarks)))


def words(text: str) -> Cell:
    """A cell of text."""
    return Cell(text or UNKNOWN, text or None)


def number(value: float | None, text: str = "{:.1f}", *, top: float = 0.0) -> Cell:
    """A cell of a number.

    Args:
        value: None and NaN are not known.
        text: its format.
        top: the value with the longest bar; 0: no bar.
    """
    if value is None or value != value:
        return Cell(UNKNOWN)
    share = min(1.0, max(0.0, value / top)) if top else None
    return Cell(text.format(value), value, share)


def score_table(rows: Sequence[Row], stages: Sequence[TrainedStage]) -> Table:
    """The scores of each stage by both protocols."""
    means = {stage.title: mean_iou(stage) for stage in stages}
    top = max((row.official.get("AP", 0.0) for row in rows), default=0.0)
    coco_top = max((row.coco.get("AP", 0.0) for row in rows), default=0.0)
    notes = [
        f"Stage {title} predicts no masks; its mean IoU is {value:.1f} % on its validation images."
        for title, value in means.items()
        if value is not None
    ]
    columns = [
        Column("Stage", numeric=False),
        Column("Scored on", numeric=False),
        Column("Official AP", remark="mean over IoU 0.50 to 0.95 and classes"),
        Column("Official AP50", remark="at IoU 0.50"),
        Column("COCO-style AP"),
        *(Column(f"COCO-style {name}") for name in COCO_SCORES[1:]),
    ]
    cells = [
        [
            words(row.name),
            words(_where(row)),
            number(row.official.get("AP"), top=top),
            number(row.official.get("AP50")),
            number(row.coco.get("AP"), top=coco_top),
            *(number(row.coco.get(name)) for name in COCO_SCORES[1:]),
        ]
        for row in rows
        if row.official or row.coco
    ]
    return Table("Mask AP in percent, by stage and protocol", columns, cells, " ".join(notes))


def _where(row: Row) -> str:
    kind = " generated" if row.generated else ""
    return f"{row.split}, {scored_images(row)}{kind} images"


def scored_images(row: Row) -> str:
    """How many images a row was scored on."""
    return "an unknown number of" if row.scored_images is None else f"{row.scored_images:,}"


def mean_iou(stage: TrainedStage) -> float | None:
    """The last mean IoU of a stage for semantic segmentation, in percent."""
    curve = stage.curves.get("sem_seg/IoU")
    return list(curve.values())[-1] if curve else None


def published_table(rows: Iterable[Row]) -> Table:
    """What others have published."""
    shown = [row for row in rows if row.group in (REFERENCE, PUBLISHED)]
    columns = [
        Column("Method", numeric=False),
        Column("Split", numeric=False),
        Column("Official AP"),
        Column("Official AP50"),
        Column("COCO-style AP"),
        Column("COCO-style AP50"),
        Column("Source", numeric=False),
    ]
    cells = [
        [
            words(f"reference study, {row.name}" if row.group == REFERENCE else row.name),
            words(row.split),
            number(row.official.get("AP")),
            number(row.official.get("AP50")),
            number(row.coco.get("AP")),
            number(row.coco.get("AP50")),
            words(row.source),
        ]
        for row in shown
    ]
    return Table("Published results on Cityscapes, in percent", columns, cells)


def class_table(errors: ErrorTables) -> Table:
    """Scores and errors by class."""
    with numbers_of("per_class.csv"):
        thresholds = {row["confidence_threshold"] for row in errors.per_class}
        aps = [float(row["AP"]) if row["AP"] else None for row in errors.per_class]
        top = max((ap for ap in aps if ap is not None), default=0.0)
        cells = [
            [
                Cell(row["class"], row["class"], color=class_hex(row["class"])),
                number(ap, top=top),
                number(float(row["AP50"]) if row["AP50"] else None),
                *(
                    number(int(row[name]), "{:,}")
                    for name in ("objects", "found", "missed", "false_positives")
                ),
            ]
            for row, ap in zip(errors.per_class, aps, strict=True)
        ]
    columns = [
        Column("Class", numeric=False),
        Column("Official AP"),
        Column("AP50"),
        Column("Objects", remark="in the ground truth"),
        Column("Found"),
        Column("Missed"),
        Column("False positives"),
    ]
    return Table(
        f"Stage {errors.stage} by class",
        columns,
        cells,
        "Found, missed and false positives are counted at IoU 0.5, with detections whose score is "
        f"at least {', '.join(sorted(thresholds))}. AP uses detections of any score, so a class "
        "may have an AP although none is found.",
    )


def class_hex(name: str) -> str:
    """The official colour of a class, for CSS; empty for a class without one."""
    if name not in THING_CLASSES:
        return ""
    return class_color(THING_COLORS[THING_CLASSES.index(name)])


def cause_table(errors: ErrorTables) -> Table:
    """False positives by class and cause."""
    with numbers_of("false_positives.csv"):
        counts = {
            row["class"]: [int(row[cause]) for cause in CAUSES] for row in errors.false_positives
        }
    cells = [
        [
            Cell(name, name, color=class_hex(name)),
            *(number(count, "{:,}") for count in each),
            number(sum(each), "{:,}"),
        ]
        for name, each in counts.items()
    ]
    columns = [Column("Detected as", numeric=False), *map(Column, CAUSES), Column("all")]
    return Table("False positives by cause", columns, cells)


def miss_table(errors: ErrorTables) -> Table:
    """Missed objects by size and by occlusion."""
    rows = []
    with numbers_of("misses.csv"):
        for kind, names in (("size", _SIZES), ("occlusion", OCCLUSION_NAMES)):
            for group, text in names.items():
                chosen = [
                    (int(row["objects"]), int(row["missed"]))
                    for row in errors.misses
                    if (row["by"], row["group"]) == (kind, group)
                ]
                objects = sum(count for count, _ in chosen)
                missed = sum(count for _, count in chosen)
                share = 100 * missed / objects if objects else None
                rows.append(
                    [
                        words(text),
                        number(objects, "{:,}"),
                        number(missed, "{:,}"),
                        number(share, "{:.0f} %", top=100),
                    ]
                )
    columns = [
        Column("Objects that are", numeric=False),
        Column("Objects"),
        Column("Missed"),
        Column("Share missed"),
    ]
    return Table("Missed objects by size and occlusion", columns, rows)


def confusions(errors: ErrorTables) -> list[str]:
    """The most frequent confusions of two classes, in words."""
    found = []
    with numbers_of("confusion.csv"):
        for row in errors.confusion:
            name = row["truth"]
            counts = {key: int(value) for key, value in row.items() if key != "truth"}
            total = sum(counts.values())
            found += [
                (count, f"{count} of {total} objects of class {name} are detected as {other}")
                for other, count in counts.items()
                if count and UNMATCHED not in (name, other) and other != name
            ]
    return [text for _, text in sorted(found, key=lambda each: -each[0])[:_MAX_CONFUSIONS]]


def training_table(run: RunFolder) -> Table:
    """The training data, settings and cost of every stage."""
    rows = {row.name: row for row in run.rows if row.group == THIS_RUN}
    cells = []
    for stage in run.stages:
        row = rows.get(stage.title, Row(group=THIS_RUN, name=stage.title))
        iterations = stage.setting("SOLVER.MAX_ITER")
        cells.append(
            [
                words(stage.title),
                words(_start(stage, run)),
                words(row.trained_on or ", ".join(names_at(stage.config, "DATASETS.TRAIN"))),
                number(row.trained_images, "{:,}"),
                number(row.epochs, "{:.3g}"),
                number(iterations if isinstance(iterations, int) else None, "{:,}"),
                number(_float(stage.setting("SOLVER.BASE_LR")), "{:g}"),
                number(_float(stage.setting("SOLVER.IMS_PER_BATCH")), "{:g}"),
                Cell(cell(row, "parameters trained"), row.trainable),
                Cell(cell(row, "time"), row.seconds),
                Cell(cell(row, "peak memory"), row.memory_bytes),
                words(STATES[run.step(stage.name).state]),
            ]
        )
    columns = [
        Column("Stage", numeric=False),
        Column("Starts from", numeric=False),
        Column("Trained on", numeric=False),
        Column("Images"),
        Column("Epochs"),
        Column("Iterations"),
        Column("Learning rate"),
        Column("Batch"),
        Column("Parameters trained"),
        Column("Time"),
        Column("Peak memory"),
        Column("State", numeric=False),
    ]
    return Table("Training of each stage", columns, cells)


def _start(stage: TrainedStage, run: RunFolder) -> str:
    """What a stage starts from, in words."""
    weights = stage.setting("MODEL.WEIGHTS")
    if not isinstance(weights, str):
        return ""
    places = {run.folder.resolve()}
    # A run that was moved: where it was trained.
    if isinstance(trained_in := stage.setting("OUTPUT_DIR"), str):
        places.add(Path(trained_in).parent.resolve())
    for other in run.stages:
        if (
            other.name != stage.name
            and weights.endswith(f"{other.name}/model_final.pth")
            and Path(weights).parent.parent.resolve() in places
        ):
            return f"stage {other.title}"
    return weights or "random weights"


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def fit_table(anchors: Mapping[str, Any]) -> Table:
    """How well the default anchors and the fitted ones cover the boxes, by size."""
    before = {each["group"]: each for each in anchors["default"]["fit"]}
    cells = [
        [
            words(f"{after['group']} boxes"),
            number(after["boxes"], "{:,}"),
            *(
                number(each.get(name), "{:.2f}", top=1)
                for name in ("mean_iou", "above_50", "above_70")
                for each in (before.get(after["group"], {}), after)
            ),
        ]
        for after in anchors["fitted"]["fit"]
    ]
    columns = [
        Column("Group", numeric=False),
        Column("Boxes"),
        *(
            Column(f"{what}, {whose}")
            for what in ("Mean best IoU", "Share above IoU 0.5", "Share above IoU 0.7")
            for whose in ("Detectron2's", "fitted")
        ),
    ]
    return Table("Best overlap of an anchor with each box", columns, cells)


def trial_table(trials: Sequence[TextRow], label: str) -> Table:
    """The trials of the search, the best first."""
    fixed = ("trial", "state", "value", "seconds", "iterations", "reason")
    names = [name for name in (trials[0] if trials else ()) if name not in fixed]
    shown = trials[:MAX_ROWS]
    with numbers_of("trials.csv"):
        cells = [
            [
                number(int(row["trial"]), "{}"),
                words(row["state"]),
                number(float(row["value"]) if row["value"] else None, "{:.2f}"),
                *(_parameter(row[name]) for name in names),
                number(float(row["seconds"]) if row.get("seconds") else None, "{:.0f} s"),
                words(row.get("reason", "")),
            ]
            for row in shown
        ]
    if not any(row.get("reason") for row in shown):
        cells = [row[:-1] for row in cells]
    columns = [
        Column("Trial"),
        Column("State", numeric=False),
        Column(label),
        *map(Column, names),
        Column("Time"),
        Column("Reason", numeric=False),
    ]
    rest = len(trials) - len(shown)
    note = f"{rest} more trials are in search/trials.csv." if rest else ""
    return Table(
        "Trials, the best first", columns[: len(cells[0])] if cells else columns, cells, note
    )


def _parameter(text: str) -> Cell:
    try:
        return number(float(text), "{:.4g}")
    except ValueError:
        return words(text)


def drift_table(stage: TrainedStage) -> Table:
    """How far each part of a backbone moved."""
    with numbers_of(f"{stage.name}/drift.csv"):
        moved = [
            (row["group"], float(row["parameters"]), float(row["statistics"]))
            for row in stage.drift
        ]
    top = max((each for name, each, _ in moved if name != WHOLE), default=0.0)
    cells = [
        [
            words(name),
            number(parameters, f"{format_percent(parameters)} %", top=top),
            number(statistics, f"{format_percent(statistics)} %"),
        ]
        for name, parameters, statistics in moved
    ]
    columns = [
        Column("Layers", numeric=False),
        Column("Parameters moved by"),
        Column("BatchNorm statistics moved by"),
    ]
    return Table(f"Stage {stage.title}: distance from its start", columns, cells)


def state_table(run: RunFolder) -> Table:
    """The state of every step of the recipe."""
    cells = [[words(step.title), words(STATES[step.state]), words(step.name)] for step in run.steps]
    columns = [
        Column("Step", numeric=False),
        Column("State", numeric=False),
        Column("Folder", numeric=False),
    ]
    return Table("Steps of the recipe", columns, cells)
