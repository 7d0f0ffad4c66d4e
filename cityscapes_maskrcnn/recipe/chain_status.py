"""How far the steps of the recipe are, and how long the rest will take: as tables of text."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from tabulate import tabulate

from cityscapes_maskrcnn.recipe.step_state import COMPLETE, NEW, Step

LOG_FILE: Final = "steps.log"
RUNNING: Final = "running"

# "[11/24 15:37:16 cm.recipe.study]: " before a line of Detectron2's logger.
_LOG_PREFIX: Final = re.compile(r"^\[\d\d/\d\d [^\]]*\]: ")
_TAIL: Final = 8192  # bytes from the end of a file that are looked at


def format_plan(steps: Sequence[Step], states: Mapping[str, str]) -> str:
    """Draw the plan: a row a step, and below it a line for all that they lack.

    Names of datasets go without their common beginning.
    """
    lacking = find_lacking(steps, states)
    rows = [
        (
            step.name,
            step.data.replace("cityscapes_", ""),
            f"{step.images:,}" if step.images else "-",
            f"{step.iterations:,}" if step.iterations else "-",
            str(step.folder),
            f"{' and '.join(step.lacking)} missing" if step in lacking else states[step.name],
        )
        for step in steps
    ]
    headers = ["step", "data", "images", "iterations", "folder", "state"]
    table = tabulate(rows, headers, disable_numparse=True, colalign=("left",) * 6)
    names: dict[str, list[str]] = {}
    for step in lacking:
        for problem in step.lacking.values():
            names.setdefault(problem, []).append(step.name)
    lines = [f"{', '.join(alike)}: {problem}" for problem, alike in names.items()]
    return "\n".join([table, "", *lines] if lines else [table])


def find_lacking(steps: Sequence[Step], states: Mapping[str, str]) -> list[Step]:
    """The steps that cannot start for want of data or weights; what is complete needs none."""
    return [step for step in steps if step.lacking and states[step.name] != COMPLETE]


def format_time(seconds: float | None) -> str:
    """``1:02:03``; ``-`` for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def last_metrics(folder: Path) -> dict[str, Any]:
    """Read the newest complete line of Detectron2's ``metrics.json``; empty if there is none."""
    for line in reversed(_tail(folder / "metrics.json")):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and "iteration" in content:
            return content
    return {}


def _tail(path: Path) -> list[str]:
    """The last lines of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


@dataclass
class _Clock:
    """When a step began in this session, and where it was then."""

    start: float
    start_iteration: int


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
        states: dict[str, str],
        stream: TextIO,
        clock: Any = time.monotonic,
    ) -> None:
        self._steps = list(steps)
        self._states = states
        self._stream = stream
        self._now = clock
        self._live = stream.isatty()
        self._next_line = 0.0
        self._running: _Clock | None = None
        self._seconds: dict[str, float] = {}

    def began(self, step: Step) -> None:
        """Show the table with a step that starts now."""
        self._states[step.name] = RUNNING
        self._running = _Clock(self._now(), self._iteration(step) or 0)
        self._next_line = self._now() + (0 if self._live else 60)
        self._write(f"\n{self.table()}\n")

    def ended(self, step: Step) -> None:
        """Note the time that a step took."""
        assert self._running is not None  # began() comes first
        self._seconds[step.name] = self._now() - self._running.start
        self._states[step.name] = COMPLETE
        self._running = None
        took = format_time(self._seconds[step.name])
        self._write(f"{self._clear()}{step.name}: complete after {took}\n")

    def tick(self, step: Step) -> None:
        """Show the live line, if it is time."""
        if self._now() < self._next_line:
            return
        self._next_line = self._now() + (2 if self._live else 60)
        line = self.line(step)
        self._write(f"{self._clear()}{line[:150]}" if self._live else f"{line}\n")

    def line(self, step: Step) -> str:
        """The live line: step, progress, what it says, time left for it and for all."""
        iteration, metrics = self._iteration(step), last_metrics(step.folder)
        parts = [step.name]
        if iteration is not None and step.iterations:
            share = 100 * iteration / step.iterations
            parts.append(f"{iteration:,} of {step.iterations:,} iterations ({share:.0f} %)")
            if "total_loss" in metrics:
                parts.append(f"loss {metrics['total_loss']:.3g}")
        else:
            said = [line.strip() for line in _tail(step.folder / LOG_FILE) if line.strip()]
            parts += [_LOG_PREFIX.sub("", said[-1])[:80]] if said else []
        parts.append(f"ETA {format_time(self.remaining(step))}")
        parts.append(f"of all about {format_time(self.remaining_of_all())}")
        return "  ".join(parts)

    def table(self) -> str:
        """Draw a row a step: state, iterations, time taken, time left."""
        rows = []
        for step in self._steps:
            state = self._states[step.name]
            done = self._iteration(step) if state not in (NEW, COMPLETE) else None
            progress = f"{step.iterations:,}" if step.iterations else "-"
            progress = f"{done:,} of {progress}" if done is not None else progress
            taken = self._taken(step) if state == COMPLETE else None
            left = 0.0 if state == COMPLETE else self.remaining(step)
            rows.append(
                (
                    step.name,
                    state,
                    progress,
                    format_time(taken),
                    format_time(left if left else None),
                )
            )
        total = format_time(self.remaining_of_all())
        rows.append(("all", "", "", "", total))
        headers = ["step", "state", "iterations", "time", "ETA (about)"]
        return tabulate(rows, headers, disable_numparse=True, colalign=("left",) * 5)

    def remaining(self, step: Step) -> float | None:
        """Seconds that a step still needs; None if nothing is known yet."""
        if self._states[step.name] == COMPLETE:
            return 0.0
        rate = self._own_rate(step) or self._other_rate()
        if rate is None or not step.iterations:
            return None
        iteration = self._iteration(step)
        if iteration is None and self._states[step.name] == RUNNING and self._running:
            # A search says nothing about iterations; its time does, until it takes longer.
            iteration = round((self._now() - self._running.start) / rate)
            if iteration >= step.iterations:
                return None
        return rate * max(0, step.iterations - (iteration or 0))

    def remaining_of_all(self) -> float | None:
        """Seconds that all steps still need; steps that train nothing count as none."""
        left = [self.remaining(step) for step in self._steps if step.iterations]
        known = [each for each in left if each is not None]
        rest = sum(known) if len(known) == len(left) else None
        # When only scoring is left there is something to do all the same.
        return rest or None

    def _own_rate(self, step: Step) -> float | None:
        """Seconds an iteration of this step, if it is running and has done some."""
        iteration = self._iteration(step)
        if self._states[step.name] != RUNNING or self._running is None or iteration is None:
            return None
        done = iteration - self._running.start_iteration
        return (self._now() - self._running.start) / done if done > 0 else None

    def _other_rate(self) -> float | None:
        """Seconds an iteration of the latest stage that is known."""
        rates = []
        for step in self._steps:
            taken = self._taken(step) if self._states[step.name] == COMPLETE else None
            # A search has other work: its trials start anew again and again.
            if taken and step.iterations and not step.amount:
                rates.append(taken / step.iterations)
            elif rate := self._own_rate(step):
                rates.append(rate)
        return rates[-1] if rates else None

    def _taken(self, step: Step) -> float | None:
        """Seconds that a complete step took, over all its interruptions if it says so."""
        try:
            content = json.loads((step.folder / "summary.json").read_text(encoding="utf-8"))
            return float(content["seconds"])
        except (OSError, ValueError, KeyError):
            return self._seconds.get(step.name)

    def _iteration(self, step: Step) -> int | None:
        """Iterations that a training has done; None for what is no training."""
        if step.amount or not step.iterations:
            return None
        metrics = last_metrics(step.folder)
        return min(int(metrics["iteration"]) + 1, step.iterations) if metrics else None

    def _clear(self) -> str:
        return "\r\x1b[K" if self._live else ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
