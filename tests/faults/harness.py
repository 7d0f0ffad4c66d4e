"""What the parts of the campaign share: tries and their verdicts, and commands in forked processes.

A part is a module with ``jobs(size)``. A job yields a verdict after every try: an empty text where
the project held, else the fault in words. Commands run in processes forked from one that has
imported everything, so that a try costs a fraction of a second instead of the seconds of imports.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

import torch
import torch.utils.tensorboard  # a try that trains would import it, in the time that is judged

from cityscapes_maskrcnn.utils.child import end_with_parent
from cityscapes_maskrcnn.utils.tool import run_tool

PROJECT = Path(__file__).parents[2]
STAGE_1 = PROJECT / "configs" / "stage_1_heads.yaml"
HANGS = 240  # seconds after which a command counts as one that never ends

# A ResNet-50 with narrow layers, on images of 96x192: an iteration takes a fraction of a second.
TINY = (PROJECT / "tests" / "tiny_network.txt").read_text().split()


def tiny(more: str = "") -> list[str]:
    """KEY VALUE pairs of a network that starts from random weights, and more of them."""
    return [*TINY, "MODEL.WEIGHTS", "", *more.split()]


class Context(NamedTuple):
    """What a job works with.

    Attributes:
        name: of the job, ``part/job``.
        seed: of the campaign.
        folder: the job's own, empty.
        data: a DETECTRON2_DATASETS folder with a small generated set; never written to.
        numbers: of the tries to make.
    """

    name: str
    seed: int
    folder: Path
    data: Path
    numbers: Sequence[int]

    def random(self, number: int) -> random.Random:
        """Random numbers of a try, which depend on nothing but the seed, the job and its number."""
        return random.Random(f"{self.seed} {self.name} {number}")


class Job(NamedTuple):
    """One row of the table.

    Attributes:
        name: ``part/job``.
        tries: how many.
        seconds: of all tries, roughly, for the remaining time.
        run: yields a verdict after every try.
    """

    name: str
    tries: int
    seconds: float
    run: Callable[[Context], Iterator[str]]


class Command:
    """A function in a forked process, in a session of its own, what it prints in a file.

    Args:
        main: returns an exit status as the ``main`` of a tool does; errors are reported as there.
        log: the file.
        environment: further environment variables.
    """

    def __init__(self, main: Callable[[], int | None], log: Path, **environment: object) -> None:
        self.log = log
        self.begin = time.monotonic()
        self.process = ForkProcess(target=_run, args=(main, log, environment))
        self.process.start()

    def wait(self, seconds: float = HANGS) -> int | None:
        """Wait for the end; the exit status, as a shell names it, or None if it goes on."""
        self.process.join(seconds)
        status = self.process.exitcode
        return 128 - status if status is not None and status < 0 else status

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.join()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self, seconds: float = HANGS) -> str:
        """Wait for a regular end: the fault in words, empty with status 0."""
        status = self.wait(seconds)
        if status is None:
            self.kill()
            return f"did not end within {seconds} s"
        return f"status {status}: {last_line(self.printed())}" if status else ""


def _run(main: Callable[[], int | None], log: Path, environment: dict[str, object]) -> None:
    os.setsid()
    end_with_parent(signal.SIGKILL)
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    # The runner ignores what its user types to it no more than other programs do.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_tool(main))


def tool(script: str, *arguments: object) -> Callable[[], int | None]:
    """Make a function that runs a tool in its process as the shell would, for :class:`Command`."""

    def main() -> int | None:
        sys.argv = [str(PROJECT / script), *map(str, arguments)]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0

    return main


def last_line(printed: str) -> str:
    """The line of an output that says most, shortened."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["nothing printed"]
    errors = [line for line in lines if re.match(r"error: |[\w.]+(Error|Exception)\b", line)]
    return (errors or lines)[-1][:300]


def one_clear_line(status: int, printed: str) -> str:
    """Judge how a tool refused bad input: the fault in words, empty if it did so in one line."""
    lines = printed.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback (most recent call last)" in printed:
        return f"traceback: {last_line(printed)}"
    if status != 1:
        return f"status {status}: {last_line(printed)}"
    if len(errors) != 1 or lines[-1] != errors[0]:
        return f"no single line of error: {last_line(printed)!r}"
    if not errors[0].isprintable():
        return f"raw control characters in the line: {errors[0][:300]!r}"
    if len(errors[0]) > 5000:
        return f"a line of {len(errors[0])} characters: {errors[0][:100]!r}..."
    return ""


def adopt_orphans() -> None:
    """Become the parent of processes that outlive theirs, so that :func:`orphans` finds them."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def children() -> set[int]:
    """The processes that have this one as their parent."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def orphans(known: Set[int] = frozenset(), seconds: float = 10) -> str:
    """Wait until no other child than the known ones is left; else the fault in words."""
    end = time.monotonic() + seconds
    while left := children() - known:
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > end:
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return f"outlived its parent: {[line[:120].decode() for line in lines]}"
        time.sleep(0.02)
    return ""


def slowness() -> float:
    """How much longer things take than on a machine with nothing else to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def limit_memory(more: int) -> None:
    """Let this process have ``more`` bytes of address space beside those it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def same_tensors(first: object, second: object) -> bool:
    """Whether two nested containers of tensors and values are equal, bit by bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            same_tensors(first[key], second[key]) for key in first
        )
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same_tensors, first, second))
    if torch.is_tensor(first) and torch.is_tensor(second):
        return torch.equal(first, second)
    return bool(first == second)
