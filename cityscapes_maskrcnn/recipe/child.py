"""Running one command as a child process that never outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cityscapes_maskrcnn.utils.errors import InputError

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        with _stop_requests() as requests:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                pass_fds=keep_open,
                # Ctrl-C in the terminal reaches this process only, which passes it on.
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),
            )
            answered = 0
            while child.poll() is None:
                while_running()
                try:
                    child.wait(interval)
                except subprocess.TimeoutExpired:
                    if len(requests) > answered:
                        answered = len(requests)
                        _stop(child, answered)
    if requests:
        raise Stopped(requests[0])
    if child.returncode:
        raise InputError(_failure(command, child.returncode, log_file, start))


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the signals that ask to stop, instead of dying of them."""
    requests: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        requests.append(number)

    before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(child: subprocess.Popen[bytes], times: int) -> None:
    """Ask the child to stop; if asked again, kill its whole process group."""
    if times == 1:
        child.terminate()
    else:
        os.killpg(child.pid, signal.SIGKILL)


def _end_with(parent: int) -> Callable[[], None]:
    """Make what a child runs before its program: let the kernel kill it when its parent dies."""
    # Looked up here: between fork and exec as little as possible may happen.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        if prctl is None:
            return
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        # The parent may have died before the kernel was told.
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _failure(command: Sequence[str], status: int, log_file: Path, start: int) -> str:
    """Say in one line why a command failed: its own words, and where to read more."""
    with log_file.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if errors:
        return f"{errors[-1]} (log: {log_file})"
    name = Path(command[1] if len(command) > 1 else command[0]).name
    end = (
        f"was killed by {signal.Signals(-status).name}, for instance for want of memory"
        if status < 0
        else f"ended with status {status}"
    )
    last = f"; its last line: {said[-1]}" if said else ""
    return f"{name} {end}{last} (log: {log_file})"
