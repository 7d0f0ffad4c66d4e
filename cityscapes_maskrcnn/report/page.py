"""The report of a run as one page, which needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from functools import cache, partial
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cityscapes_maskrcnn.recipe.performance_table import other_rows, to_csv
from cityscapes_maskrcnn.report import findings, report_tables
from cityscapes_maskrcnn.report.inline_pictures import inline_picture
from cityscapes_maskrcnn.report.line_chart import FRAME, LineChart, line_chart
from cityscapes_maskrcnn.report.run_folder import (
    RunFolder,
    TextRow,
    TrainedStage,
    numbers_of,
    read_run,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_text
from cityscapes_maskrcnn.utils.object_limits import MIN_REGION_PIXELS
from cityscapes_maskrcnn.utils.text import printable
from cityscapes_maskrcnn.utils.training_metrics import VALIDATION_LOSS, without_imitation
from cityscapes_maskrcnn.visualization.outcome_legend import GROUND_TRUTH_EDGES, PREDICTION_EDGES
from cityscapes_maskrcnn.visualization.style import GENERATED_SCENE

MAX_BYTES: Final = 8_000_000
#: Of the examples, and of the pictures where there are none, so many are shown.
MAX_EXAMPLES: Final = 16

# Pixels: what a large screen shows, and most charts have; and what nothing can be seen on.
_PICTURE_WIDTH: Final = 1440
_LEAST_WIDTH: Final = 100

_LOSS: Final = "Total loss"


def write_report(folder: Path, output: Path) -> None:
    """Write the report of a run of the recipe.

    Args:
        folder: the ``--output`` of ``tools/train_stages.py``.
        output: the HTML file, of at most :data:`MAX_BYTES`.

    Raises:
        InputError: ``folder`` is no run, a file in it is damaged, or ``output`` cannot be written.
    """
    run = read_run(folder)
    width = _PICTURE_WIDTH
    while width >= _LEAST_WIDTH:
        page = render_page(run, width)
        size = len(page.encode("utf-8"))
        if size <= MAX_BYTES:
            write_text(output, page)
            return
        # Bytes grow with the area.
        width = int(0.9 * width * math.sqrt(MAX_BYTES / size))
    raise InputError(f"{folder}: its report is larger than {MAX_BYTES:,} bytes")


def render_page(run: RunFolder, picture_width: int) -> str:
    """Fill in the page.

    Args:
        run: what to report.
        picture_width: pixels, which no picture exceeds.
    """
    environment = Environment(
        loader=PackageLoader("cityscapes_maskrcnn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.globals |= {
        "frame": FRAME,
        "min_pixels": MIN_REGION_PIXELS,
        "generated_scene": GENERATED_SCENE,
    }
    environment.filters["preformatted"] = _preformatted
    environment.filters["breakable"] = _breakable
    style, script = _static("page.css"), _static("page.js")
    objective, others = _objective(run), other_rows()
    return environment.get_template("page.html").render(
        run=run,
        find=findings,
        tables=report_tables,
        style=style,
        script=script,
        policy=_policy(style, script),
        picture=cache(partial(inline_picture, max_width=picture_width)),
        outlines={"Ground truth": GROUND_TRUTH_EDGES, "Prediction": PREDICTION_EDGES},
        charts={stage.name: _stage_charts(stage) for stage in run.stages},
        history=_search_history(run.trials, objective),
        objective=objective,
        others=others,
        performance_csv=_data_address(to_csv([*run.rows, *others])),
        max_examples=MAX_EXAMPLES,
    )


def _visible(value: Any) -> Any:
    """Show invisible characters of a text as escapes, before the template escapes the others."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, max_length=len(value))
    return value


def _preformatted(text: str) -> Markup:
    """The lines of a text for ``<pre>``: spaces as they are, invisible characters as escapes."""
    lines = (
        " ".join(printable(word, max_length=len(word)) for word in line.split(" "))
        for line in text.split("\n")
    )
    return Markup("\n").join(lines)


def _breakable(text: str) -> Markup:
    """Let a line break within names of files and datasets: after ``/`` and ``_``."""
    escaped = str(escape(_visible(text)))
    return Markup(re.sub(r"(?<=[/_])(?=\w)", "<wbr>", escaped))


def _static(name: str) -> Markup:
    file = resources.files("cityscapes_maskrcnn.report") / "static" / name
    return Markup(file.read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """What the page may load and run: nothing but what was written into it."""

    def digest(text: str) -> str:
        sha256 = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(sha256).decode('ascii')}'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; "
        f"script-src {digest(script)}; base-uri 'none'; form-action 'none'"
    )


def _data_address(text: str) -> str:
    encoded = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return f"data:text/csv;base64,{encoded}"


def _stage_charts(stage: TrainedStage) -> list[LineChart]:
    curves = stage.curves
    groups: list[tuple[str, Mapping[str, Any]]] = [
        (
            _LOSS,
            {
                "training": without_imitation(curves),
                "validation": curves.get(VALIDATION_LOSS, {}),
            },
        ),
        (
            "Mask AP, %",
            {
                "official": curves.get("segm/AP", {}),
                "COCO-style": curves.get("coco_segm/AP", {}),
            },
        ),
        ("Mean IoU, %", {"mean IoU": curves.get("sem_seg/IoU", {})}),
    ]
    charts = (line_chart(title, lines, clip=title == _LOSS) for title, lines in groups)
    return [chart for chart in charts if chart]


def _objective(run: RunFolder) -> str:
    """What the search maximises, for people."""
    name = run.step("search").settings.get("SEARCH.OBJECTIVE", "")
    known = {"segm/AP": "Official mask AP, %", "coco_segm/AP": "COCO-style mask AP, %"}
    return known.get(name, name or "Score")


def _search_history(trials: list[TextRow], label: str) -> LineChart | None:
    """Every trial's score, and the best one so far."""
    with numbers_of("trials.csv"):
        scores = {int(row["trial"]): float(row["value"]) for row in trials if row["value"]}
    numbers = sorted(scores)
    best = dict(zip(numbers, accumulate((scores[each] for each in numbers), max), strict=True))
    return line_chart(
        label, {"best so far": best, "trial": scores}, kinds=("first", "dots"), x_label="trial"
    )
