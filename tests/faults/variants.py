"""Read a malformed file in a forked process, and judge how that ended.

A file survives if the reader ends with one line of error, or accepts it and agrees with the
official script where there is one, within two seconds and 500 MB. Where a training follows, the two
seconds are above what it takes with an undamaged file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness import last_line, limit_memory, one_clear_line

from cityscapes_maskrcnn.utils.tool import run_tool

SECONDS, MEGABYTES = 2.0, 500


class Kind(NamedTuple):
    """How one kind of input is damaged, read and compared.

    Attributes:
        write: writes a damaged file.
        read: reads it as a tool does; runs in a forked process.
        compare: gets what was read; the fault in words where the official script differs.
        may_refuse: whether an error is a good end; a damaged cache is none of the user's business.
        may_be_large: whether running out of memory may be that error.
        begins_whole: before ``write`` is first called, what is read is undamaged.
        seconds: of the processor, at most.
    """

    write: Callable[[random.Random], object]
    read: Callable[[], Any]
    compare: Callable[[Any], str] = lambda _: ""
    may_refuse: bool = True
    may_be_large: bool = False
    begins_whole: bool = False
    seconds: float = SECONDS


def usual_seconds(kind: Kind, log: Path) -> float:
    """Measure what reading takes where nothing is damaged.

    Args:
        kind: begins whole, and nothing was written yet.
        log: see :func:`attempt`.
    """
    attempt(kind, log)
    code, seconds, *_ = pickle.loads(log.with_name("outcome").read_bytes())
    assert code == 0, f"the undamaged file is not read: {log.read_text(errors='replace')}"
    return seconds


def attempt(kind: Kind, log: Path) -> str:
    """Read a variant in a forked process and judge how that ended."""
    outcome = log.with_name("outcome")
    outcome.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        try:
            _read(kind, log, outcome)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not outcome.exists():
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "no outcome"
        return "it hangs" if name == "SIGALRM" else f"the process died: {name}"
    code, seconds, megabytes, verdict = pickle.loads(outcome.read_bytes())
    printed = log.read_text(errors="replace")
    if code or "Traceback" in printed:
        verdict = one_clear_line(code, printed)
        if not verdict and not kind.may_refuse:
            verdict = f"refused: {last_line(printed)}"
        if not verdict and not kind.may_be_large and "memory" in printed.lower():
            verdict = f"memory ran out: {last_line(printed)}"
    if not verdict and seconds > kind.seconds:
        verdict = f"{seconds:.1f} seconds; {last_line(printed)}"
    if not verdict and megabytes > MEGABYTES:
        verdict = f"{megabytes:.0f} MB; {last_line(printed)}"
    return verdict


def _read(kind: Kind, log: Path, outcome: Path) -> None:
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    signal.alarm(60)
    limit_memory(3 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: list[Any] = []
    # Of the processor: the machine may be busy.
    begin = time.process_time()
    try:
        code = run_tool(lambda: found.append(kind.read()))
    except BaseException:
        traceback.print_exc()
        code = 1
    seconds = time.process_time() - begin
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    verdict = ""
    if code == 0:
        signal.alarm(60)
        with log.with_name("official").open("w") as file, contextlib.redirect_stdout(file):
            try:
                verdict = kind.compare(found[0])
            except BaseException:
                verdict = f"the comparison failed: {traceback.format_exc()}"
    outcome.with_suffix(".part").write_bytes(pickle.dumps((code, seconds, megabytes, verdict)))
    outcome.with_suffix(".part").rename(outcome)
