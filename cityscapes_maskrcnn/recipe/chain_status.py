"""The plan and the status of the recipe's steps as tables of text, with the remaining time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TextIO

from tabulate import tabulate

from cityscapes_maskrcnn.recipe.step import Step, StepState

LOG_FILE: Final = "steps.log"

# "[11/24 15:37:16 cm.search.worker]: " before a line of Detectron2's logger.
_LOG_PREFIX: Final = re.compile(r"^\[\d\d/\d\d [^\]]*\]: ")
_TAIL: Final = 8192  # bytes that are read at the end of a file


def format_plan(steps: Sequence[Step], states: Mapping[str, StepState]) -> str:
    """Draw the plan: a row a step, and below it a line for all that is missing.

    Names of datasets go without their common beginning.
    """
    without = steps_without_inputs(steps, states)
    rows = [
        (
            step.name,
            step.data.replace("cityscapes_", ""),
            f"{step.images:,}" if step.images else "-",
            f"{step.iterations:,}" if step.iterations else "-",
            str(step.folder),
            f"{' and '.join(step.missing)} missing" if step in without else states[step.name].value,
        )
        for step in steps
    ]
    table = _table(rows, ["step", "data", "images", "iterations", "folder", "state"])
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


def last_metrics(folder: Path) -> dict[str, Any]:
    """Read the newest complete line of Detectron2's ``metrics.json``; empty if there is none."""
    for line in reversed(_tail(folder / "metrics.json")):
        with suppress(ValueError, TypeError, RecursionError):
            return dict(json.loads(line))
    return {}


class ChainStatus:
    """A status table at every change of a step, and in between one line that is kept up to date.

    Args:
        steps: all of them.
        states: of the steps at the start; edited.
        stream: where to write; on a terminal the line is rewritten, elsewhere it comes once a
            minute.
        clock: seconds, growing.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        states: dict[str, StepState],
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = list(steps)
        self._states = states
        self._stream = stream
        self._now = clock
        self._live = stream.isatty()
        self._next_line = 0.0
        # The step in progress, when it began in this call, and at which iteration.
        self._running: Step | None = None
        self._start = 0.0
        self._first_iteration = 0
        self._seconds: dict[str, float] = {}

    def kept(self, step: Step) -> None:
        """Note that a step needs not be run."""
        self._states[step.name] = StepState.COMPLETE

    def set_aside(self, step: Step, place: Path) -> None:
        """Write where the outputs of a step went that is remade."""
        self._write(f"\n{step.name}: made from outputs that have changed since; moved to {place}\n")

    def began(self, step: Step) -> None:
        """Write the table with a step that starts now."""
        self._states[step.name] = StepState.RUNNING
        self._running, self._start = step, self._now()
        self._first_iteration = self._iteration(step) or 0
        self._next_line = self._start + (0 if self._live else 60)
        self._write(f"\n{self.table()}\n")

    def ended(self, step: Step) -> None:
        """Note the time that a step took."""
        self._seconds[step.name] = self._now() - self._start
        self._states[step.name] = StepState.COMPLETE
        self._running = None
        took = _format_time(self._seconds[step.name])
        self._write(f"{self._clear()}{step.name}: complete after {took}\n")

    def tick(self) -> None:
        """Write the live line, if it is time."""
        if self._running is None or self._now() < self._next_line:
            return
        self._next_line = self._now() + (2 if self._live else 60)
        line = self.line(self._running)
        self._write(f"{self._clear()}{line[:150]}" if self._live else f"{line}\n")

    def line(self, step: Step) -> str:
        """Build the live line: step, progress or newest line of its log, remaining times."""
        iteration, parts = self._iteration(step), [step.name]
        if iteration is None:
            log = [line.strip() for line in _tail(step.folder / LOG_FILE) if line.strip()]
            parts += [_LOG_PREFIX.sub("", line)[:80] for line in log[-1:]]
        else:
            share = 100 * iteration / step.iterations
            parts.append(f"{iteration:,} of {step.iterations:,} iterations ({share:.0f} %)")
            metrics = last_metrics(step.folder)
            if "total_loss" in metrics:
                parts.append(f"loss {metrics['total_loss']:.3g}")
        parts.append(f"ETA {_format_time(self.remaining(step))}")
        parts.append(f"of all about {_format_time(self.remaining_of_all())}")
        return "  ".join(parts)

    def table(self) -> str:
        """Draw a row a step: state, iterations, time taken, time left."""
        rows = []
        for step in self._steps:
            state, done = self._states[step.name], self._iteration(step)
            progress = f"{step.iterations:,}" if step.iterations else "-"
            if done is not None and state in (StepState.RUNNING, StepState.UNFINISHED):
                progress = f"{done:,} of {progress}"
            taken = _format_time(self._taken(step) if state == StepState.COMPLETE else None)
            left = _format_time(self.remaining(step))
            rows.append((step.name, state.value, progress, taken, left))
        rows.append(("all", "", "", "", _format_time(self.remaining_of_all())))
        return _table(rows, ["step", "state", "iterations", "time", "ETA (about)"])

    def remaining(self, step: Step) -> float | None:
        """Seconds that a step still needs; None if nothing is known yet."""
        if self._states[step.name] == StepState.COMPLETE:
            return 0.0
        rate = self._rate()
        if rate is None or not step.iterations:
            return None
        left = rate * (step.iterations - (self._iteration(step) or 0))
        if step.amounts and step is self._running:
            # A search logs no iterations; its time counts, until it takes longer.
            left -= self._now() - self._start
        return left if left >= 0 else None

    def remaining_of_all(self) -> float | None:
        """Seconds that all steps still need; steps that train nothing count as none."""
        left = [self.remaining(step) for step in self._steps if step.iterations]
        return None if None in left else sum(filter(None, left))

    def _rate(self) -> float | None:
        """Seconds an iteration, of the training in progress or else of the last complete one."""
        if self._running is not None:
            done = (self._iteration(self._running) or 0) - self._first_iteration
            if done > 0:
                return (self._now() - self._start) / done
        for step in reversed(self._steps):
            # A search has other work: its trials start anew again and again.
            if self._states[step.name] == StepState.COMPLETE and self._is_training(step):
                taken = self._taken(step)
                if taken:
                    return taken / step.iterations
        return None

    def _taken(self, step: Step) -> float | None:
        """Seconds of a complete step: over all its interruptions if its summary has them."""
        try:
            content = json.loads((step.folder / "summary.json").read_text(encoding="utf-8"))
            return float(content["seconds"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return self._seconds.get(step.name)

    def _iteration(self, step: Step) -> int | None:
        """Iterations that a training has done; None if none are known."""
        metrics = last_metrics(step.folder) if self._is_training(step) else {}
        iteration = metrics.get("iteration")
        return min(iteration + 1, step.iterations) if isinstance(iteration, int) else None

    @staticmethod
    def _is_training(step: Step) -> bool:
        return bool(step.iterations) and not step.amounts

    def _clear(self) -> str:
        return "\r\x1b[K" if self._live else ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _format_time(seconds: float | None) -> str:
    """``1:02:03``; ``-`` for no time and for None."""
    return str(timedelta(seconds=round(seconds))) if seconds else "-"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return str(tabulate(rows, headers, disable_numparse=True, colalign=("left",) * len(headers)))


def _tail(path: Path) -> list[str]:
    """The last lines of a file; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
