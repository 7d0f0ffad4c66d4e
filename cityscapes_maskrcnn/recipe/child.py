"""Running one command as a child process that never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cityscapes_maskrcnn.recipe.trial import StopRequests, failure_reason
from cityscapes_maskrcnn.utils.end_with_parent import bound_to_this_process
from cityscapes_maskrcnn.utils.errors import InputError


class Stopped(Exception):  # noqa: N818 - not an error
    """The chain was asked to stop, and its child has stopped.

    Attributes:
        status: exit status to end with: 128 plus the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def run_child(
    command: Sequence[str],
    log_file: Path,
    while_running: Callable[[], None],
    keep_open: Sequence[int] = (),
    interval: float = 1.0,
) -> None:
    """Run a command to its end; its output is appended to a file.

    On Ctrl-C or SIGTERM the child gets one SIGTERM, on which this project's tools save their work;
    on a second signal the child and what it started are killed. If this process is killed, the
    kernel kills the child.

    Args:
        command: program and arguments.
        log_file: appended to; its folder is made.
        while_running: called every ``interval`` seconds.
        keep_open: file descriptors the child inherits, such as that of a lock it shall hold.
        interval: seconds.

    Raises:
        InputError: the command failed; the message has its last line.
        Stopped: this process was asked to stop, and the child has ended.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        start = log.tell()
        with StopRequests().listening() as stop:
            child = subprocess.Popen(
                bound_to_this_process(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                pass_fds=keep_open,
                # Ctrl-C in the terminal reaches this process only, which passes it on.
                start_new_session=True,
            )
            answered = 0
            while child.poll() is None:
                while_running()
                try:
                    child.wait(interval)
                except subprocess.TimeoutExpired:
                    if len(stop.signals) > answered:
                        answered = len(stop.signals)
                        _stop(child, answered)
    if stop.signals:
        raise Stopped(stop.signals[0])
    if child.returncode:
        raise InputError(_failure(command, child.returncode, log_file, start))


def _stop(child: subprocess.Popen[bytes], times: int) -> None:
    """Ask the child to stop; if asked again, kill its whole process group."""
    if times == 1:
        child.terminate()
    else:
        os.killpg(child.pid, signal.SIGKILL)


def _failure(command: Sequence[str], status: int, log_file: Path, start: int) -> str:
    """Say in one line why a command failed: its own words, and where to read more."""
    with log_file.open("rb") as log:
        log.seek(start)
        reason = failure_reason(status, log.read().decode(errors="replace"))
    name = Path(command[1] if len(command) > 1 else command[0]).name
    return f"{name}: {reason} (log: {log_file})"
