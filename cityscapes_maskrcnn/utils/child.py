"""Running one command as a child process that never outlives its parent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cityscapes_maskrcnn.utils.end_with_parent import bound_to_this_process
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.stop import Stopped, StopRequests


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


def failure_reason(status: int, output: str) -> str:
    """Say in one line why a training run failed.

    Args:
        status: its exit status; negative: the signal that killed it.
        output: what it printed.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    memory = [
        line
        for line in lines
        if "out of memory" in line or "can't allocate memory" in line or line == "MemoryError"
    ]
    if memory:
        line = memory[-1].removeprefix("error: ")
        return (line if line.startswith("out of memory") else f"out of memory: {line}")[:500]
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}{', most likely for want of memory' * (name == 'SIGKILL')}"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # CUDA's errors end with lines of advice.
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    said = errors or raised or lines or ["it printed nothing"]
    return f"exit status {status}: {said[-1]}"[:500]
