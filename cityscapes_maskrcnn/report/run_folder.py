"""Read the folder of a recipe run for its report; what is missing is empty or None."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.data.tree import MANIFEST
from cityscapes_maskrcnn.engine.checkpoint_origin import describe_checkpoint
from cityscapes_maskrcnn.evaluation.error_analysis import PER_CLASS_FILE
from cityscapes_maskrcnn.evaluation.telling_examples import GALLERY_FILE
from cityscapes_maskrcnn.recipe.chain import COMMAND_FILE, COMMAND_FORM
from cityscapes_maskrcnn.recipe.performance_table import Row, stage_rows
from cityscapes_maskrcnn.recipe.stage_table import GALLERY_FOLDER, STAGES, STEPS
from cityscapes_maskrcnn.recipe.step import COMPLETE_FILE, INPUTS_FILE, StepState
from cityscapes_maskrcnn.utils.config_keys import names_at, value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_file, read_json
from cityscapes_maskrcnn.utils.training_metrics import METRICS_FILE, Curve, read_curves
from cityscapes_maskrcnn.utils.yaml_files import read_yaml

_ADVICE: Final = "another program or version wrote it; move it away to report the rest"
_MAX_TABLE_BYTES: Final = 50_000_000
# Of steps that were run by hand; that of a training is its checkpoint.
_LAST_FILES: Final = {"anchors": "anchors.yaml", "search": "best.yaml"}
_FIT: Final = {
    "sizes": [float],
    "ratios": [float],
    "fit": [
        {"group": str, "boxes": int, "mean_iou": float, "above_50": float, "above_70": float},
    ],
}
_GALLERY: Final = {
    "model": str,
    "dataset": str,
    "images": int,
    "examples": [
        {
            "image": str,
            "caption": str,
            "gt": str,
            "pred": str,
        }
    ],
}

TextRow = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StepFolder:
    """A step of the recipe, as far as it got.

    Attributes:
        name: of :data:`.STEPS`, or ``scores/stage_N``.
        title: for people.
        folder: of its outputs.
        state: how far it is.
        selected: whether it was asked for; so is every step of a run that did not record it, but
            none of trainings that the recipe did not start.
        commands: that ran, as a shell takes them.
        settings: config keys that define it, as text.
    """

    name: str
    title: str
    folder: Path
    state: StepState
    selected: bool = True
    commands: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainedStage:
    """A stage that was trained, or is being trained.

    Attributes:
        name: ``stage_1``.
        title: ``1 heads``.
        config: content of its ``config.yaml``.
        curves: of its ``metrics.json``.
        drift: rows of its ``drift.csv``.
        drift_picture: its ``drift.png``, if it has a meaning.
        checkpoint: what its last checkpoint says of itself, see :func:`.describe_checkpoint`.
    """

    name: str
    title: str
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    drift: list[TextRow]
    drift_picture: Path | None
    checkpoint: Mapping[str, Any] | None

    def setting(self, key: str) -> Any:
        """Look up ``SOLVER.BASE_LR``; None for a key that the config does not have."""
        return value_at(self.config, key)


@dataclass(frozen=True, kw_only=True)
class ErrorTables:
    """The tables of :func:`.write_error_tables` for one model and dataset.

    Attributes:
        stage: title of the stage whose model was scored.
        per_class: rows of the table of this name; so are the next three.
        confusion: see there.
        false_positives: see there.
        misses: see there.
        pictures: of these tables.
    """

    stage: str
    per_class: list[TextRow]
    confusion: list[TextRow]
    false_positives: list[TextRow]
    misses: list[TextRow]
    pictures: list[Path]


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image of the gallery.

    Attributes:
        image: its name.
        captions: why it was chosen, and what is to be seen.
        gt: picture of the ground truth.
        pred: picture of the predictions, of the same size.
    """

    image: str
    captions: list[str]
    gt: Path
    pred: Path


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Chosen examples: ``gallery/gallery.json``.

    Attributes:
        model: that predicted.
        dataset: that the images are from.
        images: number of images that were chosen from.
        examples: the chosen ones.
    """

    model: str
    dataset: str
    images: int
    examples: list[Example]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run of the recipe.

    Attributes:
        folder: the output folder of ``tools/train_stages.py``.
        steps: all of the recipe.
        rows: of the performance table.
        stages: those that have begun to train.
        anchors: content of ``anchors.json``; None if no anchors were fitted.
        anchors_picture: of the fit.
        trials: rows of the search's ``trials.csv``, the best first.
        best: text of the search's ``best.yaml``.
        tuned_on: names of the datasets that its values, and those of the anchors, were chosen by.
        search_pictures: of the search.
        errors: of :func:`main_row`; None without an analysis.
        gallery: None if none was made.
        pictures: of predictions, beside the ground truth.
        commands: that ran the recipe or parts of it; empty if they were not recorded.
        data_root: ``DETECTRON2_DATASETS``; empty if it was not recorded.
        generator: arguments of the generated data; empty for other data, or if they are gone.
    """

    folder: Path
    steps: list[StepFolder]
    rows: list[Row]
    stages: list[TrainedStage]
    anchors: Mapping[str, Any] | None
    anchors_picture: Path | None
    trials: list[TextRow]
    best: str
    tuned_on: list[str]
    search_pictures: list[Path]
    errors: ErrorTables | None
    gallery: Gallery | None
    pictures: list[Path]
    commands: list[str]
    data_root: str
    generator: Mapping[str, Any]

    def step(self, name: str) -> StepFolder:
        """The step of this name."""
        return next(step for step in self.steps if step.name == name)

    @property
    def unfinished(self) -> list[StepFolder]:
        """The steps that were asked for and are not complete."""
        return [step for step in self.steps if step.selected and step.state != StepState.COMPLETE]


def read_run(folder: Path) -> RunFolder:
    """Read what a run has written so far.

    Raises:
        InputError: it is no run of the recipe, or a file in it is damaged.
    """
    if not any((folder / name).is_dir() for name in STEPS):
        raise InputError(
            f"{folder}: no run of the recipe, which has folders such as stage_1; name the --output "
            f"of tools/train_stages.py{_advice_for_one_training(folder)}"
        )
    recipe = _optional_json(folder / COMMAND_FILE, COMMAND_FORM)
    data_root = recipe.get("datasets", "")
    rows = stage_rows(folder)
    return RunFolder(
        folder=folder,
        steps=list(_steps(folder, recipe.get("selected", ()))),
        rows=rows,
        stages=[_stage(folder, name) for name in STAGES if (folder / name).is_dir()],
        anchors=_optional_json(
            folder / "anchors" / "anchors.json", {"boxes": str, "default": _FIT, "fitted": _FIT}
        )
        or None,
        anchors_picture=_optional(folder / "anchors" / "anchors.png"),
        trials=read_table(folder / "search" / "trials.csv", ("trial", "state", "value")),
        best=_optional_text(folder / "search" / "best.yaml"),
        tuned_on=_tuned_on(folder / "search" / "best.yaml"),
        # The page draws the history itself.
        search_pictures=[
            path for path in sorted((folder / "search").glob("*.png")) if path.stem != "history"
        ],
        errors=_errors(folder, rows),
        gallery=_gallery(folder / GALLERY_FOLDER),
        pictures=sorted((folder / "pictures").glob("*.png")),
        commands=recipe.get("commands", []),
        data_root=data_root,
        generator=_generator(Path(data_root) if data_root else folder / "datasets"),
    )


def _advice_for_one_training(folder: Path) -> str:
    if not (folder / METRICS_FILE).is_file():
        return ""
    return "; it is a single training, whose curves tools/plot_training.py draws"


def read_table(path: Path, columns: Iterable[str]) -> list[TextRow]:
    """Read a CSV file as texts by column; empty if there is no such file.

    Raises:
        InputError: the file cannot be read, or lacks one of ``columns``.
    """
    if not path.is_file():
        return []
    text = read_file(path, max_bytes=_MAX_TABLE_BYTES).decode("utf-8", errors="replace")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read: {error}; {_ADVICE}") from error
    for row in rows:
        # Too short a line has None, and too long a one has None among its names.
        if None in row:
            raise InputError(f"{path}: a line has more columns than the first; {_ADVICE}")
        missing = [name for name in {**dict.fromkeys(columns), **row} if row.get(name) is None]
        if missing:
            raise InputError(f"{path}: a line without {' and '.join(missing)}; {_ADVICE}")
    return rows


@contextmanager
def numbers_of(path: str) -> Iterator[None]:
    """In this block a text that is no number belongs to a damaged table.

    Raises:
        InputError: a ``KeyError`` or ``ValueError`` was raised.
    """
    try:
        yield
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged, {error!r}; {_ADVICE}") from error


def _steps(run: Path, selected: Collection[str]) -> Iterator[StepFolder]:
    is_recipe = (run / COMMAND_FILE).is_file() or any(
        (run / name / file).is_file() for name in STEPS for file in (INPUTS_FILE, COMPLETE_FILE)
    )
    titles = {"anchors": "anchors", "search": "search"} | {
        name: f"stage {title}" for name, title in STAGES.items()
    }
    names = [(name, titles[name]) for name in STEPS]
    names += [
        (f"scores/{name}", f"scores of stage {row.title}")
        for name, row in STEPS.items()
        if row.masks
    ]
    for name, title in names:
        folder = run / name
        inputs = _optional_json(folder / INPUTS_FILE, {"settings": {"*": str}, "commands?": [str]})
        state = StepState.NEW
        last = COMPLETE_FILE if is_recipe else _LAST_FILES.get(name, "model_final.pth")
        if (folder / last).is_file():
            state = StepState.COMPLETE
        elif folder.is_dir():
            state = StepState.UNFINISHED
        yield StepFolder(
            name=name,
            title=title,
            folder=folder,
            state=state,
            selected=is_recipe and (not selected or name in selected),
            commands=tuple(inputs.get("commands", ())),
            settings=inputs.get("settings", {}),
        )


def _stage(run: Path, name: str) -> TrainedStage:
    folder = run / name
    metrics, config = folder / METRICS_FILE, folder / "config.yaml"
    weights = folder / "model_final.pth"
    content = read_yaml(config) if config.is_file() else {}
    return TrainedStage(
        name=name,
        title=STAGES[name],
        config=content if isinstance(content, dict) else {},
        curves=read_curves(metrics) if metrics.is_file() else {},
        drift=read_table(folder / "drift.csv", ("group", "parameters", "statistics")),
        drift_picture=_optional(folder / "drift.png"),
        checkpoint=describe_checkpoint(weights) if weights.is_file() else None,
    )


def main_row(rows: Sequence[Row]) -> Row | None:
    """The row that a report is of: the last stage with an official score, its first dataset.

    Args:
        rows: of the performance table.

    Returns:
        None if nothing is scored.
    """
    scored = [row for row in rows if "AP" in row.official]
    return next((row for row in scored if row.name == scored[-1].name), None)


def _errors(run: Path, rows: Sequence[Row]) -> ErrorTables | None:
    """The errors of the main row or, if they were not analysed, of the last stage with some."""
    main = main_row(rows)
    analysed = [
        (STAGES[name], path)
        for name in reversed(STAGES)
        for path in sorted((run / "scores" / name / "inference").rglob(PER_CLASS_FILE))
    ]
    # Of several datasets each has a folder of its name.
    of_main = (
        each for each in analysed if main and each[0] == main.name and main.dataset in each[1].parts
    )
    found = next(of_main, None) or next(iter(analysed), None)
    if found is None:
        return None
    stage, path = found
    folder = path.parent
    counted = ("objects", "found", "missed", "false_positives")
    return ErrorTables(
        stage=stage,
        per_class=read_table(path, ("class", "AP", "AP50", "confidence_threshold", *counted)),
        confusion=read_table(folder / "confusion.csv", ("truth", "unmatched")),
        false_positives=read_table(folder / "false_positives.csv", ("class",)),
        misses=read_table(folder / "misses.csv", ("class", "by", "group", "objects", "missed")),
        pictures=sorted(folder.glob("*.png")),
    )


def _gallery(folder: Path) -> Gallery | None:
    content = _optional_json(folder / GALLERY_FILE, _GALLERY)
    if not content:
        return None
    # Examples of one image share its pictures.
    examples: dict[str, Example] = {}
    for each in content["examples"]:
        for name in (each["gt"], each["pred"]):
            if Path(name).name != name or not (folder / name).is_file():
                problem = f"{name} is not a file beside it"
                raise InputError(f"{folder / GALLERY_FILE}: {problem}; {_ADVICE}")
        example = Example(
            image=each["image"], captions=[], gt=folder / each["gt"], pred=folder / each["pred"]
        )
        examples.setdefault(each["gt"], example).captions.append(each["caption"])
    return Gallery(
        model=content["model"],
        dataset=content["dataset"],
        images=content["images"],
        examples=list(examples.values()),
    )


def _generator(root: Path) -> Mapping[str, Any]:
    form = {"arguments": {"counts": {"*": int}, "height": int, "width": int, "seed": int}}
    return _optional_json(root / "cityscapes" / MANIFEST, form).get("arguments", {})


def _tuned_on(path: Path) -> list[str]:
    return names_at(read_yaml(path), "DATASETS.TUNED_ON") if path.is_file() else []


def _optional(path: Path) -> Path | None:
    return path if path.is_file() else None


def _optional_text(path: Path) -> str:
    if not path.is_file():
        return ""
    return read_file(path, max_bytes=1_000_000).decode("utf-8", errors="replace")


def _optional_json(path: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    return read_json(path, form=form, advice=_ADVICE) if path.is_file() else {}
