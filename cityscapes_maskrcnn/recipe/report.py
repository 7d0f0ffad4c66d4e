"""The report at the end of the recipe: performance table, overfitting, list of all files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cityscapes_maskrcnn.engine.outcome import short_names
from cityscapes_maskrcnn.modeling.model_kind import known_model_kind
from cityscapes_maskrcnn.recipe.performance_table import (
    OUR_COLUMNS,
    REFERENCE,
    THIS_RUN,
    Row,
    caution,
    cell,
    other_rows,
    stage_rows,
    to_csv,
    to_markdown,
    to_terminal,
)
from cityscapes_maskrcnn.recipe.stage_table import GALLERY_FOLDER, STAGES
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_text
from cityscapes_maskrcnn.utils.training_metrics import (
    METRICS_FILE,
    VALIDATION_LOSS,
    measured_on,
    read_curves,
)
from cityscapes_maskrcnn.utils.yaml_files import read_yaml
from cityscapes_maskrcnn.visualization.overfitting import plot_overfitting
from cityscapes_maskrcnn.visualization.performance_chart import Bar, plot_performance
from cityscapes_maskrcnn.visualization.style import About, name_images


def write_recipe_report(output: Path) -> str:
    """Write ``performance.md``, ``.csv``, ``.png`` and ``overfitting.png`` for a chain of stages.

    Args:
        output: of :func:`.chain.run_chain`.

    Returns:
        For a terminal: the main scores of this run, and a line for every file and folder.

    Raises:
        InputError: no stage is complete, or a file is damaged or cannot be written.
    """
    ours = stage_rows(output)
    if not ours:
        raise InputError(f"{output}: no stage has ended, so there is nothing to report")
    ours = [_with_semantic_score(row, output) for row in ours]
    rows = ours + other_rows()
    write_text(output / "performance.md", to_markdown(rows))
    write_text(output / "performance.csv", to_csv(rows))
    remarks = [f"{row.name}: {row.note}" for row in ours if row.note and row.coco]
    by_size, without = _size_bars(ours)
    if without:
        remarks.append(f"There are no {' and no '.join(without)} objects in the scored images.")
    stages = [stage for stage in STAGES if (output / stage / METRICS_FILE).is_file()]
    configs = {stage: _config(output / stage / "config.yaml") for stage in stages}
    # Of networks each once.
    kinds = filter(None, dict.fromkeys(map(known_model_kind, configs.values())))
    dataset, num_images = name_images(
        (row.split, row.scored_images) for row in ours if row.official or row.coco
    )
    about = About(
        dataset=dataset,
        num_images=num_images,
        generated=bool(caution(ours)),
        model=", ".join([*kinds, f"stages in {output}"]),
        protocol="official and COCO-style mask AP",
    )
    plot_performance(
        output / "performance.png",
        headings=OUR_COLUMNS,
        cells=[[cell(row, column) for column in OUR_COLUMNS] for row in ours],
        official=_bars(rows, "official"),
        coco_style=_bars(rows, "COCO-style"),
        by_size=by_size,
        caution=caution(ours),
        remark="\n".join(remarks),
        about=about,
    )
    dataset, num_images = name_images((row.trained_on, row.trained_images) for row in ours)
    panels = {}
    for stage, config in configs.items():
        curves = read_curves(output / stage / METRICS_FILE)
        validated_on = measured_on(config) if VALIDATION_LOSS in curves else []
        panels[_panel_title(ours, stage, validated_on)] = curves
    plot_overfitting(
        panels,
        output / "overfitting.png",
        replace(
            about,
            dataset=dataset,
            num_images=num_images,
            protocol="training loss of the batches, smoothed; validation loss without augmentation",
        ),
    )
    places = [
        ("Whole table", "performance.md"),
        ("  as a picture", "performance.png"),
        ("  for programs", "performance.csv"),
        ("Overfitting", "overfitting.png"),
        ("Gallery", f"{GALLERY_FOLDER}/index.md"),
        ("Anchors", "anchors"),
        ("Search", "search"),
    ]
    places += [(f"Stage {STAGES[stage]}", stage) for stage in stages]
    found = [f"{what:<18} {output / name}" for what, name in places if (output / name).exists()]
    return "\n".join([to_terminal(ours), *found])


def _with_semantic_score(row: Row, output: Path) -> Row:
    """Give stage 0, which has no masks to score, its mean IoU as a note."""
    if row.name != STAGES["stage_0"]:
        return row
    curve = read_curves(output / "stage_0" / METRICS_FILE).get("sem_seg/IoU", {})
    if not curve:
        return row
    note = f"no masks; mean IoU {list(curve.values())[-1]:.1f} % on its validation images"
    return replace(row, note=note)


def _config(file: Path) -> Any:
    """What the config of a stage holds; nothing without one that can be read."""
    with suppress(InputError):
        return read_yaml(file) if file.is_file() else {}
    return {}


def _panel_title(ours: list[Row], stage: str, validated_on: Sequence[str]) -> str:
    """Name a stage, the images that it is trained on, and those of its validation loss, if any."""
    trained = [row for row in ours if row.name == STAGES[stage] and row.trained_images]
    texts = [f"{row.trained_images:,} images of {row.trained_on}" for row in trained[:1]]
    if validated_on:
        texts.append(f"validation: {short_names(validated_on)}")
    return "\n".join([STAGES[stage], *(line for text in texts for line in textwrap.wrap(text, 36))])


def _bars(rows: list[Row], protocol: str) -> list[Bar]:
    """Bars for the picture: this run's stages in their order, then others.

    Beside scores on generated scenes there are no others, which could not be compared.
    """
    shown = [row for row in rows if row.group == THIS_RUN] if caution(rows) else rows
    splits = {row.split for row in rows if row.group == THIS_RUN and (row.official or row.coco)}
    bars: list[Bar] = []
    for row in shown:
        scores = row.official if protocol == "official" else row.coco
        if "AP" not in scores:
            continue
        where = f"reference study, {row.split}" if row.group == REFERENCE else row.split
        if row.group == THIS_RUN:
            where = cell(row, "scored on") * (len(splits) > 1)
        name = ", ".join(filter(None, (row.name, where)))
        bars.append((name, scores["AP"], row.group == THIS_RUN))
    published = [bar for bar in bars if not bar[2]]
    if protocol == "official":
        published.sort(key=lambda bar: -(bar[1] or 0.0))
    return [*(bar for bar in bars if bar[2]), *published]


def _size_bars(ours: list[Row]) -> tuple[list[Bar], list[str]]:
    """Bars for the picture: small, medium and large objects, in each the stages of this run.

    Returns:
        The bars, and the sizes of which there are no objects, which have no bars.
    """
    scored = [row for row in ours if row.coco]
    bars: list[Bar] = []
    without = []
    for name, size in {"APs": "small", "APm": "medium", "APl": "large"}.items():
        # A size without objects has no score.
        of_size = [(f"{size}: {row.name}", row.coco.get(name), True) for row in scored]
        if any(score is not None for _, score, _ in of_size):
            bars += of_size
        elif scored:
            without.append(size)
    return bars, without
