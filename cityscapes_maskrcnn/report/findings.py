"""The texts of the report: results of a run, their limitations, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.modeling.model_kind import known_model_kind
from cityscapes_maskrcnn.recipe.performance_table import Row, caution, cell
from cityscapes_maskrcnn.recipe.stage_table import GALLERY_FOLDER, STAGES
from cityscapes_maskrcnn.recipe.step import StepState
from cityscapes_maskrcnn.report.report_tables import mean_iou, scored_images
from cityscapes_maskrcnn.report.run_folder import (
    ErrorTables,
    RunFolder,
    StepFolder,
    TrainedStage,
    main_row,
    numbers_of,
)
from cityscapes_maskrcnn.utils.config_keys import names_at
from cityscapes_maskrcnn.utils.text import counted
from cityscapes_maskrcnn.utils.training_metrics import VALIDATION_LOSS, find_gap, without_imitation

# Of Cityscapes val, which published scores are of.
_VAL_IMAGES: Final = 500
_FEW_IMAGES: Final = 100
_FEW_TRIALS: Final = 10
_DONE: Final = {
    "stage_0": "the backbone was trained on semantic labels",
    "stage_1": "the instance heads were trained",
    "anchors": "anchors were fitted to the data",
    "search": "thresholds were searched",
    "stage_2": "the heads were trained with tuned settings",
    "stage_3": "the whole network was fine-tuned",
}


@dataclass(frozen=True)
class Figure:
    """A number that is shown in large type, with a label and a remark."""

    value: str
    label: str
    remark: str = ""


@dataclass(frozen=True)
class Advice:
    """A suggestion: its purpose, and the command."""

    text: str
    command: str


def headline_row(run: RunFolder) -> Row | None:
    """The row that the headline is of, see :func:`.run_folder.main_row`."""
    return main_row(run.rows)


def is_generated(run: RunFolder) -> bool:
    """Whether scores or trainings of the run are of generated scenes."""
    return bool(caution(run.rows) or run.generator)


def data_name(run: RunFolder) -> str:
    """What the run is of, in a word or two."""
    if is_generated(run):
        return "generated streets"
    for stage in run.stages:
        own = stage.setting("DATASETS.OWN")
        for name in names_at(stage.config, "DATASETS.TRAIN"):
            if not name.startswith("cityscapes_") or (isinstance(own, Mapping) and name in own):
                return "own data"
    return "Cityscapes"


def model_name(run: RunFolder) -> str:
    """The network of the last stage that has a config."""
    kinds = (known_model_kind(stage.config) for stage in reversed(run.stages))
    return next(filter(None, kinds), "Mask R-CNN")


def summary(run: RunFolder) -> str:
    """What was run, and the result, in two sentences."""
    selected = [step for step in run.steps if step.selected]
    what = "A run of the recipe" if selected == run.steps else "A run of part of the recipe"
    if not selected:
        what = "Stages that were trained without tools/train_stages.py"
    done = [_DONE[step.name] for step in run.steps if _is_done(step) and step.name in _DONE]
    if done:
        what += f": {', '.join(done[:-1])}{' and ' * (len(done) > 1)}{done[-1]}"
    row = headline_row(run)
    if row is None:
        if not selected:
            return f"{what}. Nothing is scored yet."
        number = len(selected) - len(run.unfinished)
        return f"{what}. {number} of its {len(selected)} steps are done; nothing is scored yet."
    kind = "generated images" if row.generated else "images"
    honest = "which the model had seen before" if row.note else "none of which it had seen before"
    return (
        f"{what}. The {_which_model(run, row)}, stage {row.name}, reaches an official mask AP of "
        f"{row.official['AP']:.1f} % on {scored_images(row)} {kind}, {honest}."
    )


def _which_model(run: RunFolder, row: Row) -> str:
    """Whether a row is of the last stage of a run, or only the last that has a score."""
    asked = [step.name for step in run.steps if step.selected and step.name in STAGES]
    names = asked or [stage.name for stage in run.stages]
    return "final model" if names and STAGES[names[-1]] == row.name else "last scored model"


def _is_done(step: StepFolder) -> bool:
    return step.state == StepState.COMPLETE


def figures(run: RunFolder) -> list[Figure]:
    """The numbers that matter most."""
    found = []
    row = headline_row(run)
    if row is not None:
        where = f"{row.split}, {scored_images(row)} images"
        found.append(Figure(f"{row.official['AP']:.1f} %", "official mask AP", where))
        if "AP50" in row.official:
            found.append(Figure(f"{row.official['AP50']:.1f} %", "official AP50", "at IoU 0.50"))
        if "AP" in row.coco:
            found.append(
                Figure(f"{row.coco['AP']:.1f} %", "COCO-style AP", "same masks, another protocol")
            )
    seconds = [each for each in {row.name: row.seconds for row in run.rows}.values() if each]
    if seconds:
        total = Row(group="", name="", seconds=sum(seconds))
        stages = f"{counted(len(seconds), 'stage')} with their evaluations, without the search"
        found.append(Figure(cell(total, "time"), "of training", stages))
    return found


def warnings(run: RunFolder) -> list[str]:
    """What a reader has to know before using the numbers."""
    found = []
    row = headline_row(run)
    if is_generated(run):
        found.append(
            "The images are generated drawings of streets, not Cityscapes. The scores show that "
            "every part works; they cannot be compared with published ones."
        )
    found += [
        f"Stage {each.name} was scored on images that it had seen, so its score is too high: "
        f"{each.note.removeprefix('not honest: ')}."
        for each in run.rows
        if each.note
    ]
    if row is not None:
        if row.scored_images is not None and row.scored_images < _VAL_IMAGES:
            few = "which is not many: other images would change"
            if row.scored_images < _FEW_IMAGES:
                few = "which is few: one object more or less changes"
            elif row.dataset.startswith("cityscapes_instance_val") and not row.generated:
                few = "not on all 500 as published scores are: other images would change"
            found.append(
                f"The model was scored on {row.scored_images:,} images, {few} the AP. Differences "
                "of a point between stages may be chance."
            )
        found += _better_before(run, row)
    if run.tuned_on:
        found.append(
            f"Anchors or thresholds were tuned on {', '.join(run.tuned_on)}; these images no "
            "longer count as unseen."
        )
    complete = [trial for trial in run.trials if trial["state"] == "complete"]
    if run.trials and len(complete) < _FEW_TRIALS:
        found.append(
            f"The search completed {counted(len(complete), 'trial')}, too few to tell a good "
            "setting from a lucky one."
        )
    if any(stage.setting("MODEL.WEIGHTS") == "" for stage in run.stages):
        found.append(
            "Training started from random weights, not from weights pretrained on millions of "
            "photographs, so the scores are far below what this network can reach."
        )
    if run.unfinished:
        missing = [step.title for step in run.unfinished]
        found.append(f"The run is not complete. Not done: {', '.join(missing)}.")
    if not is_generated(run) and (run.gallery or run.pictures):
        found.append(
            "This page contains photographs from the dataset: read its licence before you share it."
        )
    if row is not None:
        found.append("The scores are of one training with one seed; another seed gives others.")
    return found


def _better_before(run: RunFolder, last: Row) -> list[str]:
    """Whether an earlier stage scored higher on the same images."""
    same = [row for row in run.rows if row.split == last.split and "AP" in row.official]
    best = max(same, key=lambda row: row.official["AP"])
    if best.official["AP"] <= last.official["AP"]:
        return []
    return [
        f"The last stage is not the best: stage {best.name} has an official AP of "
        f"{best.official['AP']:.1f} %, stage {last.name} only {last.official['AP']:.1f} %."
    ]


def data_summary(run: RunFolder) -> str:
    """Describe generated data; empty for other data."""
    if not run.generator:
        return ""
    arguments = run.generator
    counts = [f"{split} {count:,}" for split, count in arguments["counts"].items() if count]
    return (
        f"The data are generated streets of {arguments['height']} x {arguments['width']} pixels, "
        f"seed {arguments['seed']}: {', '.join(counts)} images."
    )


def error_summary(errors: ErrorTables) -> str:
    """How many objects were found and missed, and how many detections are false."""
    with numbers_of("per_class.csv"):
        objects, found, false = (
            sum(int(row[name]) for row in errors.per_class)
            for name in ("objects", "found", "false_positives")
        )
        threshold = errors.per_class[0]["confidence_threshold"] if errors.per_class else "?"
    if not objects:
        return "There are no objects to find in the scored images."
    share = f"{100 * found / objects:.0f} %"
    return (
        f"Of {objects:,} objects, stage {errors.stage} finds {found:,} ({share}) with a score of "
        f"at least {threshold} and misses {objects - found:,}. Of its {found + false:,} "
        f"detections {false:,} are false."
    )


def loss_summary(stage: TrainedStage) -> str:
    """How training and validation loss ended; empty without them."""
    gap = find_gap(without_imitation(stage.curves), stage.curves.get(VALIDATION_LOSS, {}))
    if gap is None:
        return ""
    lowest = f"; the validation loss was lowest {gap.lowest_when}" if gap.lowest_when else ""
    return (
        f"The loss ended at {gap.training:.3g} in training and {gap.validation:.3g} in validation "
        f"({gap.percent:+.0f} %){lowest}."
    )


def stage_summary(stage: TrainedStage) -> str:
    """Describe the score of a stage without masks."""
    value = mean_iou(stage)
    return "" if value is None else f"Mean IoU {value:.1f} % on its validation images."


def from_random_weights(stage: TrainedStage) -> bool:
    """Whether a stage started from random weights, so that its drift has no meaning."""
    return stage.setting("MODEL.WEIGHTS") == ""


def anchors_summary(anchors: Mapping[str, Any]) -> str:
    """The fitted shapes in words, and whether they fit better than the default ones."""
    fitted = anchors["fitted"]
    sizes, ratios = (", ".join(f"{x:g}" for x in fitted[key]) for key in ("sizes", "ratios"))
    before = {each["group"]: each["mean_iou"] for each in anchors["default"]["fit"]}
    after = {each["group"]: each["mean_iou"] for each in fitted["fit"]}
    better = ""
    if "all" in before and "all" in after:
        better = f" The mean best IoU changes from {before['all']:.2f} to {after['all']:.2f}"
        worse = [name for name in after if name in before and after[name] < before[name]]
        better += f"; it decreases for {' and '.join(worse)} boxes." if worse else "."
    return (
        f"Sizes {sizes} px at the network's scale, one per pyramid level; height / width {ratios}. "
        f"Fitted by k-means to {anchors['boxes']}.{better}"
    )


def repeat_commands(run: RunFolder) -> list[Advice]:
    """The commands that make the run again, in order."""
    found = []
    python = _python(run)
    root = shlex.quote(run.data_root or str(run.folder / "datasets"))
    if run.generator:
        arguments = run.generator
        flags = {
            **{split.replace("_", "-"): count for split, count in arguments["counts"].items()},
            **{key: arguments[key] for key in ("height", "width", "seed")},
        }
        words = " ".join(f"--{name} {value}" for name, value in flags.items())
        command = f"{python} datasets/make_synthetic_cityscapes.py {root} {words}"
        found.append(Advice("Generate the data", command))
    if run.data_root:
        found.append(Advice("Set the location of the data", f"export DETECTRON2_DATASETS={root}"))
    return found + [Advice("Run the recipe", command) for command in _recipe_commands(run)]


def step_commands(run: RunFolder) -> list[Advice]:
    """The command of each step, as far as they were recorded, for a shell in the project."""
    by_stage = {stage.name: stage.checkpoint for stage in run.stages}
    found = []
    for step in run.steps:
        commands = list(step.commands)
        # A stage that was not trained by the recipe has it in its checkpoint only.
        if not commands and (description := by_stage.get(step.name)) and description["command"]:
            commands = [description["command"]]
        found += [Advice(step.title, _in_project(command)) for command in commands]
    return found


def _in_project(command: str) -> str:
    """Write a command for people: paths as seen from the project, plain quotes."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    tools = (Path(word).parent for word in words if word.endswith(".py"))
    project = next((f"{tool.parent}/" for tool in tools if tool.is_absolute()), "")
    return " ".join(_quoted(word.removeprefix(project)) for word in words)


def _quoted(word: str) -> str:
    """Quote a word for a shell, with double quotes if it has single ones."""
    if "'" in word and not {*'"$`\\!'} & {*word}:
        return f'"{word}"'
    return shlex.quote(word)


def _python(run: RunFolder) -> str:
    """The interpreter of the run's steps if it is one of the project, such as .venv/bin/python."""
    first = next((command for step in run.steps for command in step.commands), "")
    interpreter = _in_project(first).partition(" ")[0]
    is_inside = interpreter.endswith("/bin/python") and not interpreter.startswith("/")
    return interpreter if is_inside else "python"


def _recipe_commands(run: RunFolder) -> list[str]:
    """The commands of the recipe, with the interpreter of its steps."""
    python = _python(run)
    return [
        f"{python} {command.removeprefix('python ')}" if command.startswith("python ") else command
        for command in run.commands
    ]


def next_steps(run: RunFolder) -> list[Advice]:
    """What to do with the run."""
    quoted = shlex.quote(str(run.folder))
    python = _python(run)
    found = []
    if run.unfinished:
        text = "Finish the run: the same command continues where it stopped"
        commands = _recipe_commands(run) or [f"{python} tools/train_stages.py --output {quoted}"]
        found += [Advice(text, command) for command in commands]
    trained = [stage.name for stage in run.stages if stage.checkpoint and stage.name != "stage_0"]
    if trained:
        config = shlex.quote(str(run.folder / trained[-1] / "config.yaml"))
        weights = shlex.quote(str(run.folder / trained[-1] / "model_final.pth"))
        gallery = shlex.quote(str(run.folder / GALLERY_FOLDER))
        exported = shlex.quote(str(run.folder / "onnx"))
        found += [
            Advice(
                "Try the model on your own photographs",
                f"{python} tools/predict.py --model {weights} --input FOLDER --output drawn",
            ),
            Advice(
                "Export it for ONNX Runtime",
                f"{python} tools/export_model.py --config-file {config} --output {exported} "
                f"MODEL.WEIGHTS {weights}",
            ),
        ]
        if not run.gallery:
            found.append(
                Advice(
                    "Draw its most informative images, such as the best and the worst",
                    f"{python} tools/make_gallery.py --config-file {config} --output {gallery} "
                    f"MODEL.WEIGHTS {weights}",
                )
            )
    found.append(
        Advice(
            "View the curves of all stages in TensorBoard",
            f"{python} -m tensorboard.main --logdir {quoted}",
        )
    )
    if is_generated(run):
        found.append(
            Advice(
                "Train on real streets (datasets/README.md explains how to get the data)",
                f"DETECTRON2_DATASETS=/data {python} tools/train_stages.py --output output/recipe",
            )
        )
    return found
