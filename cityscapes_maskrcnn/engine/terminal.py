"""The part of a run's log that a terminal shows: results, and one line that is updated."""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from typing import Final, TextIO

from cityscapes_maskrcnn.utils.progress import (
    PROGRESS_FILE,
    LiveLine,
    Progress,
    write_progress,
)

# On a terminal this is for the log alone: what the run was started with, which the user knows.
_FOR_LOG: Final = "cityscapes_maskrcnn.engine.run_setup"
# What these write in more than one line, config, model and lists of tensors, is for the log alone.
_ONE_LINE: Final = (
    _FOR_LOG,
    "detectron2.engine.defaults",
    "detectron2.checkpoint",
    "fvcore",
)
# Detectron2's line every 20 iterations, in whose place Progress is shown.
_METRICS: Final = "detectron2.utils.events"
_SHORT_NAMES: Final = {"cityscapes_maskrcnn.": "cm.", "detectron2.": "d2."}
_INFERENCE: Final = re.compile(r"Inference done (\d+)/(\d+)\..* ETA=(\d+):(\d\d):(\d\d)")
_INFERENCE_END: Final = re.compile(r"Total inference time: ")
_INFERENCE_START: Final = re.compile(r"Start inference on (\d+) batches")


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Shows records of the log, and below them the progress.

    On a terminal: warnings, and what this project notes, without time and place; while it trains,
    the progress in its place. Elsewhere: all records, dumps by their first line, and the progress
    as plain lines.

    Args:
        stream: standard output.
        stage: name of the run, at the beginning of its progress.
        has_file: whether ``log.txt`` has what is left out.

    Attributes:
        stage: as above.
        trains: whether a training is under way.
    """

    def __init__(self, stream: TextIO, stage: str, has_file: bool) -> None:
        super().__init__(stream)
        self.stage = stage
        self.trains = False
        self._line = LiveLine(stream)
        self._formatter = logging.Formatter("[%(asctime)s %(name)s]: %(message)s", "%m/%d %H:%M:%S")
        self._where = ", see log.txt" if has_file else ""
        self._progress = Progress()
        self._file = os.environ.get(PROGRESS_FILE)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, or take the progress of an evaluation from it."""
        try:
            if record.name.startswith("detectron2.evaluation"):
                self._follow_inference(record.getMessage())
            if self._is_shown(record):
                self._line.write(self.format(record))
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; of a dump its first line, with the number of the others."""
        if self._line.is_terminal:
            text = record.getMessage()
            is_dump = ".evaluation." not in record.name
        else:
            name = record.name
            for root, short in _SHORT_NAMES.items():
                name = name.replace(root, short)
            # A copy: other handlers write the whole name.
            short_record = logging.makeLogRecord({**record.__dict__, "name": name})
            text = self._formatter.format(short_record)
            is_dump = record.name.startswith(_ONE_LINE)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname}{': ' if self._line.is_terminal else ' '}{text}"
        first, *more = text.split("\n")
        return f"{first} ({len(more)} lines{self._where})" if more and is_dump else text

    def show(self, progress: Progress, at_once: bool = False) -> None:
        """Show the progress where there is a terminal, and note it for a parent process.

        Args:
            progress: of the run.
            at_once: whenever it was shown last.
        """
        self._progress = progress
        self._show(progress, at_once)

    def write(self, parts: list[str], on_terminal: bool) -> None:
        """Write a line that stays.

        Args:
            parts: of the line.
            on_terminal: whether it is for terminals, or for what is none.
        """
        if on_terminal == self._line.is_terminal:
            with suppress(OSError):  # as for records, which complain once
                self._line.write("  ".join(parts))

    def clear(self) -> None:
        """Remove the line that lives."""
        with suppress(OSError):
            self._line.clear()

    def _show(self, progress: Progress, at_once: bool) -> None:
        with suppress(OSError):
            self._line.show(filter(None, [self.stage, *progress.parts()]), at_once)
            if self._file and (at_once or time.monotonic() >= self._next):
                self._next = time.monotonic() + 1
                write_progress(self._file, progress)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        if record.name == _METRICS and self.trains:
            return False
        if not self._line.is_terminal:
            return True
        is_ours = "cityscapes_maskrcnn" in record.name
        return is_ours and not self.trains and not record.name.startswith(_FOR_LOG)

    def _follow_inference(self, message: str) -> None:
        """Show how far an evaluation is, by what Detectron2 logs of it every 5 seconds."""
        start, done = _INFERENCE_START.match(message), _INFERENCE.match(message)
        if _INFERENCE_END.match(message) and not self.trains:
            self.clear()
        if start:
            count = f"scoring 0/{start[1]}"
        elif done:
            count = f"scoring {done[1]}/{done[2]}"
        else:
            return
        if self.trains:
            progress = replace(self._progress, done=f"{self._progress.done.split()[0]} {count}")
        else:
            hours, minutes, seconds = map(int, done.groups()[2:]) if done else (0, 0, 0)
            eta = 3600 * hours + 60 * minutes + seconds if done else None
            progress = Progress(done=count, eta=eta)
        self._show(progress, at_once=True)


def find_terminal() -> TerminalHandler | None:
    """Get the handler that :func:`.run_setup.start_logs` has set up in this process."""
    handlers = logging.getLogger("cityscapes_maskrcnn").handlers
    return next((each for each in handlers if isinstance(each, TerminalHandler)), None)
