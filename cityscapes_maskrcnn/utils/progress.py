"""Progress as one line of a terminal that is rewritten, and handed on to a parent process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TextIO

# Environment variable: the file in which a process, or one that it starts, notes its progress.
PROGRESS_FILE: Final = "CITYSCAPES_MASKRCNN_PROGRESS"
_CLEAR: Final = "\r\x1b[K"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far something is.

    Attributes:
        done: such as ``280/380``.
        eta: seconds that are left; None: nothing is known yet.
        is_partial: whether evaluations come on top, of which none has been measured yet.
        details: such as ``loss 2.09``, the most important first.
        pace: seconds an iteration of a training; None: not known.
        evaluation: seconds an evaluation of a training; None: not known.
    """

    done: str = ""
    eta: float | None = None
    is_partial: bool = False
    details: tuple[str, ...] = ()
    pace: float | None = None
    evaluation: float | None = None

    def eta_text(self) -> str:
        """``ETA 1:21``; what comes on top is named."""
        text = f"ETA {format_time(self.eta)}"
        return f"{text} + evaluation" if self.is_partial and self.eta is not None else text

    def parts(self) -> list[str]:
        """For a line, the most important first."""
        return [part for part in (self.done, self.eta_text(), *self.details) if part]


def format_time(seconds: float | None) -> str:
    """``1:21`` or ``1:02:03``; ``-`` for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LiveLine:
    """A line at the end of a terminal that is rewritten; other lines come above it.

    Elsewhere there is no such line: who writes plain lines decides how often.

    Args:
        stream: where to write.
        clock: seconds, growing.

    Attributes:
        is_terminal: whether the line is shown.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = clock
        self._next = 0.0
        self._line = ""
        self._lock = threading.RLock()
        self.is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, parts: Iterable[str], at_once: bool = False) -> None:
        """Rewrite the line, at most four times a second.

        Args:
            parts: as many from the first on as fit into the terminal's width.
            at_once: whenever the line was written last.
        """
        if not self.is_terminal or (self._now() < self._next and not at_once):
            return
        with self._lock:
            self._next = self._now() + 0.25
            self._line = fit(parts, self._width())
            self._write(_CLEAR + self._line)

    def write(self, text: str) -> None:
        """Write a line, or several, above the one that is rewritten.

        Args:
            text: without a line break at its end.
        """
        with self._lock:
            self._write(f"{_CLEAR}{text}\n{self._line}" if self._line else f"{text}\n")

    def clear(self) -> None:
        """Remove the line."""
        with self._lock:
            if self._line:
                self._line = ""
                self._write(_CLEAR)

    def _width(self) -> int:
        """Columns that may be used: in the last one some terminals begin a new line."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return (columns or 80) - 1

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def fit(parts: Iterable[str], width: int) -> str:
    """Join parts by two spaces, from the first on, as many as ``width`` characters hold."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part[:width]
        if len(longer) > width:
            break
        line = longer
    return line


def write_progress(path: str | os.PathLike[str], progress: Progress) -> None:
    """Note progress for a parent process, which copes with half a file: it will read again."""
    Path(path).write_text(json.dumps(asdict(progress)), encoding="utf-8")


def read_progress(path: str | os.PathLike[str]) -> Progress | None:
    """Read what :func:`write_progress` wrote; its ETA is counted down since then.

    Returns:
        None if nothing can be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        progress = Progress(
            done=str(content["done"]),
            eta=_number(content["eta"]),
            is_partial=bool(content["is_partial"]),
            details=tuple(map(str, content["details"])),
            pace=_number(content["pace"]),
            evaluation=_number(content["evaluation"]),
        )
        age = time.time() - Path(path).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if progress.eta is None:
        return progress
    return replace(progress, eta=max(0.0, progress.eta - age))


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
