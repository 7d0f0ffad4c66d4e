"""Running one command as a child process that never outlives its parent."""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cityscapes_maskrcnn.utils.stop import StopRequests

# Variables by which torchrun and srun number the processes that they start.
LAUNCHER_VARIABLES: Final = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
)

_PR_SET_PDEATHSIG: Final = 1
# Has the kernel end the process with its parent, then becomes the command. A program of its own
# rather than a function between fork and exec, where Python may deadlock if the parent has threads.
_BIND_AND_RUN: Final = f"""
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})
# The parent may have died before that.
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends (on Linux).

    Args:
        number: of the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def run_child(
    command: Sequence[str],
    log_file: Path,
    *,
    stop: StopRequests,
    watch: Callable[[], float | None],
    grace: float = math.inf,
    keep_open: Sequence[int] = (),
    interval: float = 1.0,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end; its output is appended to a file.

    On Ctrl-C or SIGTERM the child gets one SIGTERM, on which this project's tools save their work;
    on a second signal the child and what it started are killed. If this process is killed, the
    kernel kills the child.

    Args:
        command: program and arguments.
        log_file: appended to; its folder must exist.
        stop: requests to stop this process.
        watch: called every ``interval`` seconds until the child is asked to stop. A number instead
            of None asks it, and kills it after so many seconds.
        grace: seconds after which a child that was asked to stop by a signal is killed.
        keep_open: file descriptors the child inherits, such as that of a lock it shall hold.
        interval: seconds.
        variables: environment variables that the child gets besides this process's.

    Returns:
        Why the command failed, in one line; empty if it ended with status 0.
    """
    # The child is no process of the training that this one may be started as, by srun for instance.
    environment = {
        name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES
    }
    environment |= {"PYTHONUNBUFFERED": "1", **(variables or {})}
    with log_file.open("ab") as log:
        start = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _BIND_AND_RUN, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=keep_open,
            # Ctrl-C in the terminal reaches this process only, which passes it on.
            start_new_session=True,
        )
        deadline: float | None = None
        try:
            while child.poll() is None:
                if deadline is None:
                    patience = grace if stop.signals else watch()
                    if patience is not None:
                        child.terminate()
                        deadline = time.monotonic() + patience
                elif time.monotonic() > deadline or len(stop.signals) > 1:
                    break
                with suppress(subprocess.TimeoutExpired):
                    child.wait(interval)
        finally:
            # Also after an error in watch(): nothing trains on unwatched.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if not child.returncode:
        return ""
    with log_file.open("rb") as file:
        file.seek(start)
        return failure_reason(child.returncode, file.read().decode(errors="replace"))


def failure_reason(status: int, output: str) -> str:
    """Describe in one line why a command failed.

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
    best = errors or raised or lines or ["it printed nothing"]
    return f"exit status {status}: {best[-1]}"[:500]
