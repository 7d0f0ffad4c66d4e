"""The plan and the status of the recipe's steps as tables of text, with the remaining time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO

from tabulate import tabulate

from cityscapes_maskrcnn.engine.outcome import (
    SCORES_FILE,
    SUMMARY_FILE,
    describe_run,
    outcome,
    short_name,
    short_names,
)
from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.search.trial import CONFIRMATION_FOLDER, CONSOLE_FILE, TRIALS_FOLDER
from cityscapes_maskrcnn.utils.progress import (
    LiveLine,
    Progress,
    fit,
    format_time,
    read_progress,
)

LOG_FILE: Final = "steps.log"

# Columns of a terminal that the plan should fit into.
_WIDTH: Final = 80


def format_plan(steps: Sequence[Step], states: Mapping[str, StepState]) -> str:
    """Draw the plan: a row a step, and below it a line for all that is missing.

    Datasets have their short names.
    """
    without = steps_without_inputs(steps, states)
    rows = [
        (
            step.name,
            " -> ".join(short_names(side.split()) for side in step.data.split("->")),
            f"{step.images:,}" if step.images else "-",
            f"{step.iterations:,}" if step.iterations else "-",
            f"{' and '.join(step.missing)} missing" if step in without else states[step.name].value,
        )
        for step in steps
    ]
    table = _table(rows, ["step", "data", "images", "iterations", "state"])
    problems = [(step.name, problem) for step in without for problem in step.missing.values()]
    lines = [f"{names}: {problem}" for problem, names in group_by_text(problems)]
    return "\n".join([table, "", *lines] if lines else [table])


def steps_without_inputs(steps: Sequence[Step], states: Mapping[str, StepState]) -> list[Step]:
    """List the steps whose data or weights are missing; a complete one needs none."""
    return [step for step in steps if step.missing and states[step.name] != StepState.COMPLETE]


def group_by_text(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turn pairs of a name and a text into pairs of a text and all its names."""
    names: dict[str, list[str]] = {}
    for name, text in pairs:
        names.setdefault(text, []).append(name)
    return [(text, ", ".join(alike)) for text, alike in names.items()]


class ChainStatus:
    """A line when a step begins, lines when it ends, and between them one that is kept up to date.

    What a step still needs is its trainings' iterations and evaluations, and their starting up,
    each as long as in the training under way or else in the last complete one.

    Args:
        steps: all of them.
        states: of the steps at the start; edited.
        stream: where to write; on a terminal a line lives, elsewhere one comes once a minute.
        progress_file: in which the processes of a step note their progress.
        clock: seconds, growing.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        states: dict[str, StepState],
        stream: TextIO,
        progress_file: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = list(steps)
        self._states = states
        self._line = LiveLine(stream, clock)
        self._progress_file = progress_file
        self._progress: Progress | None = None
        self._now = clock
        self._next_line = 0.0
        self._begin = clock()
        # The step in progress, when it began in this call, and how long it took to start up.
        self._running: Step | None = None
        self._start = 0.0
        self._startup: float | None = None
        # Which of its commands is under way; how many of its trainings had begun at the last look.
        self._command = 0
        self._trainings = 0
        self._seconds: dict[str, float] = {}

    def kept(self, step: Step) -> None:
        """Note that a step needs not be run."""
        self._states[step.name] = StepState.COMPLETE

    def set_aside(self, step: Step, place: Path) -> None:
        """Write where the outputs of a step went that is remade."""
        self._line.write(
            f"{step.name}: made from outputs that have changed since; moved to {place}"
        )

    def began(self, step: Step) -> None:
        """Write what starts now, and what it is expected to take."""
        self._states[step.name] = StepState.RUNNING
        self._running, self._start, self._progress = step, self._now(), None
        self._progress_file.unlink(missing_ok=True)
        self._command, self._trainings = 0, self._begun(step)
        self._next_line = self._start + 60
        number = 1 + self._steps.index(step)
        amount = f"{step.iterations:,} iterations on " if step.iterations else ""
        images = f": {amount}{step.images:,} images" if step.images else ""
        expected = self.remaining(step)
        about = f", about {format_time(expected)}" if expected else ""
        self._line.write(f"[{number}/{len(self._steps)}] {step.name}{images}{about}")

    def command(self, number: int) -> None:
        """Note which command of the step starts now, counted from 0."""
        self._command, self._progress = number, None
        # What is noted there is of the command before.
        self._progress_file.unlink(missing_ok=True)

    def ended(self, step: Step) -> None:
        """Write what a step took, and what came of it."""
        self._seconds[step.name] = self._now() - self._start
        self._states[step.name] = StepState.COMPLETE
        self._running = None
        self.pause()
        lines = [f"complete after {format_time(self._seconds[step.name])}", *_results(step)]
        self._line.write("\n".join(f"{step.name}: {line}" for line in lines))

    def finished(self) -> None:
        """Write what all steps of this call took."""
        if self._seconds:
            self._line.write(f"all steps complete after {format_time(self._now() - self._begin)}")

    def pause(self) -> None:
        """Remove what a process that has ended left behind."""
        self._line.clear()
        self._progress_file.unlink(missing_ok=True)

    def tick(self) -> None:
        """Write the live line, or a plain one, if it is time."""
        if self._running is None:
            return
        if self._begun(self._running) != self._trainings:
            # What is noted there is of the training before.
            self._trainings = self._begun(self._running)
            self._progress_file.unlink(missing_ok=True)
        self._progress = read_progress(self._progress_file)
        if self._progress and self._startup is None:
            self._startup = self._now() - self._start
        self._line.show(self.parts(self._running))
        if not self._line.is_terminal and self._now() >= self._next_line:
            self._next_line = self._now() + 60
            self._line.write(fit(self.parts(self._running), _WIDTH))

    def parts(self, step: Step) -> list[str]:
        """Build the parts of the line: step, progress, remaining times, details."""
        activity = step.activities[self._command] if step.activities else ""
        progress = self._progress or Progress(done=activity or "starting up")
        # What earlier steps took tells what evaluations will take.
        partial = progress.is_partial and self._image_seconds() is None
        eta = replace(progress, eta=self.remaining(step), is_partial=partial).eta_text()
        is_search = step.iterations and step.processes > 1 and not activity
        done = f"training {self._begun(step)}/{step.processes}" if is_search else ""
        rest = self.remaining_of_all()
        more = "+" if rest is not None and self._image_seconds() is None else ""
        return [
            step.name,
            *filter(None, (done, progress.done)),
            eta,
            f"all {format_time(rest)}{more}",
            *progress.details,
        ]

    def remaining(self, step: Step) -> float | None:
        """Seconds that a step still needs; None if nothing is known yet, or it takes longer."""
        if self._states[step.name] == StepState.COMPLETE:
            return 0.0
        expected = self._expected(step)
        if step is not self._running:
            return expected
        eta = self._progress.eta if self._progress else None
        if step.processes > 1 and expected is not None and eta is not None:
            return eta + expected * (1 - self._begun(step) / step.processes)
        if eta is not None and self._progress and not self._progress.is_partial:
            return eta
        left = None if expected is None else expected - (self._now() - self._start)
        known = [each for each in (left, eta) if each is not None and each > 0]
        return max(known, default=None)

    def remaining_of_all(self) -> float | None:
        """Seconds that all steps still need; None if nothing is known yet of one that trains."""
        left = [self.remaining(step) for step in self._steps]
        unknown = [step for step, seconds in zip(self._steps, left, strict=True) if seconds is None]
        if any(step.iterations for step in unknown):
            return None
        return sum(filter(None, left))

    def _expected(self, step: Step) -> float | None:
        """Seconds of a whole step; None if no training has shown yet what one takes."""
        alike = [each for each in self._steps if each.name in self._seconds and _only_scores(each)]
        if _only_scores(step) and alike:
            # Its own kind tells more than the evaluations of a training do.
            images = max(1, alike[-1].evaluated_images)
            return self._seconds[alike[-1].name] * step.evaluated_images / images
        pace = self._pace()
        if pace is None:
            return None
        evaluation = step.evaluated_images * (self._image_seconds() or 0.0)
        startup = self._startup or self._summary("startup_seconds") or 0.0
        return step.processes * startup + step.iterations * pace + evaluation

    def _pace(self) -> float | None:
        """Seconds an iteration, of the training in progress or else of the last complete one."""
        if self._progress and self._progress.pace:
            return self._progress.pace
        seconds, iterations = self._summary("seconds"), self._summary("iterations")
        if not seconds or not iterations:
            return None
        return (seconds - (self._summary("evaluation_seconds") or 0.0)) / iterations

    def _image_seconds(self) -> float | None:
        """Seconds of evaluation an image, as :meth:`_pace`."""
        step = self._running
        if self._progress and self._progress.evaluation and step and step.evaluated_images:
            return self._progress.evaluation * step.evaluations / step.evaluated_images
        last = self._last_training()
        seconds = self._summary("evaluation_seconds")
        return seconds / last.evaluated_images if seconds and last else None

    def _last_training(self) -> Step | None:
        # A search has other work: its trials start anew again and again.
        done = [
            step
            for step in self._steps
            if self._states[step.name] == StepState.COMPLETE
            and step.iterations
            and not step.amounts
        ]
        return done[-1] if done else None

    def _summary(self, name: str) -> float | None:
        """Look up an entry of the last complete training's summary."""
        step = self._last_training()
        value = _read_summary(step).get(name) if step else None
        return float(value) if isinstance(value, int | float) else None

    def _begun(self, step: Step) -> int:
        """Count the trainings of a search, or the commands of a scoring, that have begun."""
        if _only_scores(step):
            return 1 + self._command
        begun = sum(
            len(list((step.folder / folder).glob(f"*/{CONSOLE_FILE}")))
            for folder in (TRIALS_FOLDER, CONFIRMATION_FOLDER)
        )
        return min(step.processes, max(1, begun))


def _only_scores(step: Step) -> bool:
    return bool(step.evaluated_images) and not step.iterations


def _read_summary(step: Step) -> dict[str, Any]:
    """Read what a training has left; empty if it is damaged or of an earlier version."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        return dict(json.loads((step.folder / SUMMARY_FILE).read_text(encoding="utf-8")))
    return {}


def _results(step: Step) -> list[str]:
    """Describe in a few short lines what came of a complete step."""
    # What is damaged, or of an earlier version, is named where it is needed.
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if step.iterations and not step.amounts:
            return describe_run(_read_summary(step))
        if _only_scores(step):
            content = json.loads((step.folder / SCORES_FILE).read_text(encoding="utf-8"))
            ((name, scored),) = content["datasets"].items()
            scores = {
                f"{task}/{metric}": value
                for task, values in scored["results"].items()
                for metric, value in values.items()
            }
            return [f"{', '.join(outcome(scores))} on {short_name(name)}"]
    return []


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Draw a table, its second column so narrow that all fits into a terminal."""
    # tabulate makes a column two characters wider than its header, and leaves two between columns.
    others = sum(
        2 + max(len(headers[column]) + 2, *(len(row[column]) for row in rows))
        for column in range(len(headers))
        if column != 1
    )
    widths = [None, max(20, _WIDTH - others), *[None] * (len(headers) - 2)]
    return str(
        tabulate(
            rows,
            headers,
            disable_numparse=True,
            colalign=("left",) * len(headers),
            maxcolwidths=widths,
        )
    )
