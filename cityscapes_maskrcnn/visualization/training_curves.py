"""The curves of one or several training runs in one picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cityscapes_maskrcnn.modeling.model_kind import known_model_kind
from cityscapes_maskrcnn.utils.config_keys import names_at, value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_json
from cityscapes_maskrcnn.utils.training_metrics import (
    METRICS_FILE,
    TOTAL_LOSS,
    Curve,
    measured_on,
    read_curves,
    without_imitation,
)
from cityscapes_maskrcnn.utils.yaml_files import read_yaml
from cityscapes_maskrcnn.visualization.style import (
    BLUE,
    MARKERS,
    MIN_FONT,
    MUTED,
    PALETTE,
    RED,
    About,
    name_images,
    new_figure,
    save_figure,
    style_axes,
)

# Runs in one picture: as many as there are colours and markers.
MAX_RUNS: Final = min(len(PALETTE), len(MARKERS))

# This project's name for the mean over the classes, and that of Detectron2's own evaluator.
_MEAN_IOUS: Final = ("IoU", "mIoU")
_TOTAL_TITLE, _PARTS_TITLE, _RATE_TITLE = "total loss", "parts of the loss", "learning rate"
_AP_TITLE, _IOU_TITLE = "average precision, %", "mean IoU, %"
_SPEED_TITLE, _WAITING_TITLE = "throughput, images/s", "waiting for data, % of an iteration"
_HEIGHTS: Final = {
    _TOTAL_TITLE: 2.4,
    _PARTS_TITLE: 2.2,
    _AP_TITLE: 2.0,
    _IOU_TITLE: 2.0,
}
# How titles begin -> what the dashed lines are.
_DASHED: Final = {
    _TOTAL_TITLE: "dashed, hollow: validation",
    _PARTS_TITLE: "dashed, hollow: validation",
    "average precision": "dashed, hollow: AP50",
}
# Percent that a row reaches at least: waiting, or scores, of no account must not fill it.
_LEAST: Final = {_WAITING_TITLE: 10.0, _IOU_TITLE: 1.0, "average precision": 1.0}
# What is computed here from Detectron2's seconds of an iteration and seconds of waiting in it.
_SPEED, _WAITING = "images per second", "waiting"
# What Detectron2's keys stand for.
_LOSSES: Final = {
    "loss_cls": "box class",
    "loss_box_reg": "box position",
    "loss_mask": "mask",
    "loss_mask_point": "mask points",
    "loss_rpn_cls": "RPN objectness",
    "loss_rpn_loc": "RPN box position",
    "loss_sem_seg": "semantic labels",
}
_TASKS: Final = {
    "segm": "official masks",
    "coco_segm": "COCO-style masks",
    "coco_bbox": "COCO-style boxes",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, for a picture of it.

    Attributes:
        name: in the legend.
        curves: of :func:`.training_metrics.read_curves`.
        batch_size: images an iteration; None, if it is unknown: no throughput is drawn.
        about: the run.
        kind: its architecture; empty, if it is unknown.
        measured_on: the datasets of its validation loss and scores.
    """

    name: str
    curves: Mapping[str, Curve]
    batch_size: int | None = None
    about: About = field(default_factory=About)
    kind: str = ""
    measured_on: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A curve as it is drawn.

    Lines of one label have one colour and marker, and one entry in the legend.
    """

    label: str
    curve: Curve
    color: str
    is_dashed: bool = False
    marker: str = "o"


def plot_training_curves(
    metrics_json: str | os.PathLike[str],
    output: str | os.PathLike[str],
    about: About | None = None,
    batch_size: int | None = None,
) -> None:
    """Draw losses, scores, learning rate and speed of one run over its iterations.

    Args:
        metrics_json: what Detectron2 writes while it trains: a JSON object a line.
        output: the PNG file; it appears only when it is complete.
        about: the run.
        batch_size: images an iteration, for the throughput.

    Raises:
        InputError: ``metrics_json`` cannot be read or holds no metrics, or ``output`` cannot be
            written.
    """
    run = Run(
        name="",
        curves=_curves_to_draw(metrics_json),
        batch_size=batch_size,
        about=about or About(),
    )
    plot_runs([run], output)


def plot_runs(runs: Sequence[Run], output: str | os.PathLike[str]) -> None:
    """Draw losses, scores, learning rate and speed: of one run in detail, of several in colours.

    Args:
        runs: at most :data:`MAX_RUNS`, each with something to draw.
        output: the PNG file; it appears only when it is complete.

    Raises:
        InputError: there are too many runs, or ``output`` cannot be written.
    """
    if len(runs) > MAX_RUNS:
        raise InputError(
            f"{len(runs)} runs: at most {MAX_RUNS} can be told apart in one picture; name fewer"
        )
    rows = _rows_of_one(runs[0]) if len(runs) == 1 else _rows_of_several(runs)
    heights = [_HEIGHTS.get(title, 1.5) for title in rows]
    title = "Training curves" + f" of {len(runs)} runs" * (len(runs) > 1)
    figure = new_figure(10, sum(heights) + 0.8, title, about_runs(runs))
    axes = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for number, (axis, (title, lines)) in enumerate(zip(axes, rows.items(), strict=True)):
        _plot(axis, title, lines, is_alone=len(runs) == 1)
        _note(axis, title, lines)
        labels = {line.label for line in lines}
        # Colours of runs are the same in all rows.
        if len(labels) > 1 if len(runs) == 1 else number == 0:
            axis.legend(
                loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=MIN_FONT
            )
    # Of a training of one iteration too, whose ticks would be fractions.
    axes[-1].set_xlim(0, max(1, axes[-1].get_xlim()[1]))
    axes[-1].set_xlabel("iteration")
    save_figure(figure, output)


def plot_each_run(runs: Sequence[Run], folder: Path) -> Iterator[Path]:
    """Draw a picture of every run and, of several, ``comparison.png`` of all.

    Args:
        runs: see :func:`plot_runs`.
        folder: for the pictures, which have the runs' names; ``-`` stands for a ``/`` in them.

    Yields:
        A file when it is written.

    Raises:
        InputError: two pictures would have one name, as of a run of several that is called
            comparison, or see :func:`plot_runs`.
    """
    pictures: dict[Path, list[Run]] = {}
    for run in runs:
        file = folder / f"{run.name.replace('/', '-')}.png"
        if file in pictures:
            raise InputError(
                f"{pictures[file][0].name} and {run.name}: their pictures would have one name; "
                "name a PNG file with --output"
            )
        pictures[file] = [run]
    if len(runs) > 1:
        comparison = folder / "comparison.png"
        if comparison in pictures:
            raise InputError(
                "a run called comparison: its picture would have the name of the one of all runs; "
                "name a PNG file with --output"
            )
        pictures[comparison] = list(runs)
    for file, drawn in pictures.items():
        plot_runs(drawn, file)
        yield file


def find_runs(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Read the runs in output folders.

    Args:
        folders: an ``OUTPUT_DIR`` of a training, or a folder of the whole recipe, which stands for
            its stages.

    Returns:
        The runs, each once, named by their folders. Those whose folders have one name are named by
        their paths below the folder that holds them all.

    Raises:
        InputError: a folder holds no run, or a run has nothing that could be drawn.
    """
    # A run may be named twice, by itself and by its recipe.
    places: dict[Path, Path] = {}
    parents: dict[str, list[Path]] = {}
    for folder in map(Path, folders):
        for place in _run_folders(folder):
            resolved = place.resolve()
            if resolved not in places:
                places[resolved] = place
                parents.setdefault(resolved.name, []).append(resolved.parent)
    return [
        _read_run(place, str(resolved.relative_to(os.path.commonpath(parents[resolved.name]))))
        for resolved, place in places.items()
    ]


def _run_folders(folder: Path) -> list[Path]:
    """List a folder, or those of the stages in it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; name the output folder of a training")
    if (folder / METRICS_FILE).exists():
        return [folder]
    stages = [path.parent for path in sorted(folder.glob(f"stage_*/{METRICS_FILE}"))]
    # One that has only just begun would hide the others.
    stages = [stage for stage in stages if (stage / METRICS_FILE).stat().st_size] or stages
    if not stages:
        what = f"holds no {METRICS_FILE} and no stage_*" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; name the output folder of a training")
    return stages


def _read_run(folder: Path, name: str) -> Run:
    """Read a run, as far as its training got; its config and summary may be missing."""
    curves = _curves_to_draw(folder / METRICS_FILE)
    config = folder / "config.yaml"
    content = read_yaml(config) if config.is_file() else {}
    summary: Mapping[str, Any] = {}
    if (folder / "summary.json").is_file():
        form = {"images?": (int, None), "generated?": bool}
        summary = read_json(folder / "summary.json", form=form, advice="remove it")
    batch_size = value_at(content, "SOLVER.IMS_PER_BATCH")
    kind = known_model_kind(content)
    about = About(
        dataset=", ".join(names_at(content, "DATASETS.TRAIN")),
        num_images=summary.get("images"),
        generated=bool(summary.get("generated")),
        model=", ".join(filter(None, (kind, str(folder)))),
        protocol=training_protocol(measured_on(content)),
    )
    return Run(
        name=name,
        curves=curves,
        batch_size=batch_size if isinstance(batch_size, int) else None,
        about=about,
        kind=kind,
        measured_on=measured_on(content),
    )


def training_protocol(measured: Sequence[str]) -> str:
    """Say how the numbers of a training are measured.

    Args:
        measured: the datasets of its validation loss and scores; empty for none.
    """
    text = "training loss of the batches"
    return f"{text}, evaluated on {', '.join(measured)}" if measured else text


def about_runs(runs: Sequence[Run]) -> About:
    """Describe one or several runs for a picture of all of them."""
    if len(runs) == 1:
        return runs[0].about
    dataset, num_images = name_images((run.about.dataset, run.about.num_images) for run in runs)
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(run.kind, []).append(run.name)
    models = (f"{kind} ({', '.join(of_kind)})" for kind, of_kind in names.items() if kind)
    measured = dict.fromkeys(name for run in runs for name in run.measured_on)
    return About(
        dataset=dataset,
        num_images=num_images,
        generated=any(run.about.generated for run in runs),
        model=", ".join(models),
        protocol=training_protocol(list(measured)),
    )


def _curves_to_draw(metrics_json: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read the file of a training that has got somewhere."""
    curves = read_curves(metrics_json)
    if not _rows_of_one(Run(name="", curves=curves)):
        raise InputError(
            f"{metrics_json}: no loss, score or learning rate in it; did training start?"
        )
    return curves


def _rows_of_one(run: Run) -> dict[str, list[_Line]]:
    """Get the rows of the picture of a run: title -> lines, the most important first."""
    rows = {}
    for title, curves in _select(run).items():
        labels = list(dict.fromkeys(map(_label, curves)))
        colors = dict(zip(labels, PALETTE * (1 + len(labels) // len(PALETTE)), strict=False))
        if title == _TOTAL_TITLE:
            colors = dict(zip(labels, (BLUE, RED), strict=False))
        rows[title] = [
            _Line(
                label=_label(name),
                curve=curve,
                color=colors[_label(name)],
                is_dashed=title != _TOTAL_TITLE and _is_dashed(name),
            )
            for name, curve in curves.items()
        ]
    return rows


def _rows_of_several(runs: Sequence[Run]) -> dict[str, list[_Line]]:
    """Get the rows of the picture of several runs: title -> lines, a colour and marker a run."""
    selected = [_select(run) for run in runs]
    tasks = [_task(name) for rows in selected for name in rows.get(_AP_TITLE, ())]
    # One score of each run: of the most important protocol that any of them has.
    task = min(tasks, key=lambda each: [*_TASKS, each].index(each), default="")
    rows: dict[str, list[_Line]] = {}
    for title in (
        _TOTAL_TITLE,
        _AP_TITLE,
        _IOU_TITLE,
        _RATE_TITLE,
        _SPEED_TITLE,
        _WAITING_TITLE,
    ):
        lines = [
            _Line(
                label=run.name,
                curve=curve,
                color=color,
                is_dashed=_is_dashed(name),
                marker=marker,
            )
            for run, color, marker, of_run in zip(runs, PALETTE, MARKERS, selected, strict=False)
            for name, curve in of_run.get(title, {}).items()
            if title != _AP_TITLE or _task(name) == task
        ]
        if lines:
            heading = f"average precision of {_TASKS.get(task, task)}, %"
            rows[heading if title == _AP_TITLE and task else title] = lines
    return rows


def _select(run: Run) -> dict[str, dict[str, Curve]]:
    """Get what is drawn: title -> name -> curve; rows without a curve are left out."""
    curves = run.curves
    losses = sorted(
        (name for name in curves if "loss" in _metric(name)),
        key=lambda name: ("/" in name, name),
    )
    parts = [name for name in losses if _metric(name) != TOTAL_LOSS]
    # A single loss, as of stage 0, is the total under another name.
    if len({_metric(name) for name in parts}) == 1 and TOTAL_LOSS in losses:
        parts = []
    precisions = sorted(
        (name for name in curves if _metric(name) in ("AP", "AP50")),
        key=lambda name: ([*_TASKS, _task(name)].index(_task(name)), name),
    )
    names = {
        _TOTAL_TITLE: [name for name in losses if _metric(name) == TOTAL_LOSS],
        _PARTS_TITLE: parts,
        _AP_TITLE: precisions,
        _IOU_TITLE: [name for name in curves if _metric(name) in _MEAN_IOUS],
        _RATE_TITLE: [name for name in curves if name == "lr"],
    }
    rows = {title: {name: curves[name] for name in found} for title, found in names.items()}
    if TOTAL_LOSS in losses:
        rows[_TOTAL_TITLE][TOTAL_LOSS] = without_imitation(curves)
    seconds = {at: value for at, value in curves.get("time", {}).items() if value > 0}
    waited = curves.get("data_time", {})
    if run.batch_size:
        rows[_SPEED_TITLE] = {_SPEED: {at: run.batch_size / value for at, value in seconds.items()}}
    rows[_WAITING_TITLE] = {
        _WAITING: {
            # Medians, which need not be of the same iterations.
            at: min(100.0, 100 * waited[at] / value)
            for at, value in seconds.items()
            if at in waited
        }
    }
    return {title: row for title, row in rows.items() if any(row.values())}


def _metric(name: str) -> str:
    """``loss_mask`` for ``validation/loss_mask``."""
    return name.rpartition("/")[2]


def _task(name: str) -> str:
    """``coco_segm`` for ``cityscapes_instance_val/coco_segm/AP``."""
    return name.rpartition("/")[0].rpartition("/")[2]


def _is_dashed(name: str) -> bool:
    """Whether a curve is the second of its kind: a validation loss, or AP50 beside AP."""
    return "/" in name if "loss" in name else name.endswith("AP50")


def _label(name: str) -> str:
    """Name a curve of a single run for people; curves of one label have one colour."""
    metric, task = _metric(name), _task(name)
    if metric in ("AP", "AP50"):
        dataset = name.rpartition("/")[0].rpartition("/")[0]
        return " ".join(filter(None, (dataset, _TASKS.get(task, task))))
    if metric == TOTAL_LOSS:
        return "validation" if task else "training"
    if "loss" in metric:
        return _LOSSES.get(metric) or metric.removeprefix("loss_").replace("_", " ")
    return "mean" if metric in _MEAN_IOUS else name


def _marked(length: int, is_alone: bool) -> Sequence[int]:
    """Choose the points of a curve that get a marker.

    Few points, as of evaluations, would be invisible as a line. Of many, some tell the runs apart
    without their colours.
    """
    if length <= 30:
        return range(length)
    return [] if is_alone else range(length // 16, length, length // 8)


def _plot(axis: Axes, title: str, lines: Sequence[_Line], is_alone: bool) -> None:
    named = set()
    for line in lines:
        axis.plot(
            list(line.curve),
            list(line.curve.values()),
            # A colour is named once.
            label="_" * (line.label in named) + line.label,
            color=line.color,
            linewidth=2.0 if title != _PARTS_TITLE else 1.5,
            linestyle="--" if line.is_dashed else "-",
            marker=line.marker,
            markevery=_marked(len(line.curve), is_alone),
            markersize=4.5,
            # A single point has no line that could be dashed.
            markerfacecolor="white" if line.is_dashed else line.color,
        )
        named.add(line.label)
    style_axes(axis, title)
    axis.yaxis.set_major_formatter(lambda value, _: _decimal(value))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    highest = [_finite(line.curve).max(initial=0) for line in lines]
    if title == _RATE_TITLE and min(highest) > 0 and max(highest) > 20 * min(highest):
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.set_ylim(min(highest) / 30, 2 * max(highest))
        return
    axis.yaxis.set_major_locator(MaxNLocator(5))
    finite = np.concatenate([_finite(line.curve) for line in lines])
    if len(finite):
        least = next((low for kind, low in _LEAST.items() if title.startswith(kind)), 1e-12)
        axis.set_ylim(min(0.0, finite.min()), 1.08 * max(_top(title, lines), least))


def _top(title: str, lines: Sequence[_Line]) -> float:
    """The highest value that is visible: a few exploding losses must not flatten all others."""
    finite = np.concatenate([_finite(line.curve) for line in lines])
    if not len(finite):
        return 0.0
    if title not in (_TOTAL_TITLE, _PARTS_TITLE):
        return float(finite.max())
    return float(min(finite.max(), 4 * np.percentile(finite, 95)))


def _note(axis: Axes, title: str, lines: Sequence[_Line]) -> None:
    """Write to the right of a title what dashes mean, and in the middle what is not visible."""
    dashed = next((text for kind, text in _DASHED.items() if title.startswith(kind)), "")
    if dashed and any(line.is_dashed for line in lines):
        axis.set_title(dashed, loc="right", fontsize=MIN_FONT, color=MUTED)
    highest = max((_finite(line.curve).max(initial=0) for line in lines), default=0)
    if highest > 1.08 * _top(title, lines):
        axis.set_title(
            f"up to {highest:.3g}, cut off", loc="center", fontsize=MIN_FONT, color=MUTED
        )


def _decimal(value: float) -> str:
    """Write a number with four digits, and without an exponent unless it is very small."""
    if 0 < abs(value) < 1e-6:
        return f"{value:.4g}"
    return np.format_float_positional(float(f"{value:.4g}"), trim="-")


def _finite(curve: Curve) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.array(list(curve.values()), dtype=np.float64)
    return values[np.isfinite(values)]
