"""SIGKILL at random moments: nothing is left running, and the same command ends as if unharmed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import works
from harness import Context, Job, adopt_orphans, children, orphans, same_tensors

# A folder is killed in so often before it may end. A trial of a search is taken up three times.
KILLS_A_FOLDER = 3


def jobs(size: str) -> list[Job]:
    """Build the jobs; at full size there are more than 100 kills."""
    kinds = {
        # tries in the full and in the short campaign, seconds a try
        works.training: (30, 1, 4.0),
        works.cache: (30, 1, 0.7),
        works.search: (30, 1, 2.0),
        works.submission: (24, 1, 1.5),
        works.chain: (18, 0, 1.0),
    }
    return works.jobs_of_works("kills", kill, kinds, size)


def kill(prepare: works.Prepare, context: Context) -> Iterator[str]:
    """Do a work undisturbed; then kill it in other folders, and compare how these end.

    Every other kill waits for a file that is just being written, if one comes.
    """
    adopt_orphans()
    work, _, expected, length = works.run_undisturbed(prepare, context)
    known = children()

    def compare(folder: Path) -> str:
        if not same_tensors(work.result(folder), expected):
            return "the end differs from that of an undisturbed run"
        # Not the small ones: whoever writes a checkpoint or a cache removes what a kill has left.
        left = [path.name for path in folder.rglob("*.tmp") if path.stat().st_size > 4096]
        return f"left behind: {left}" if left else ""

    folder, killed = context.folder / "0", []
    for number in context.numbers:
        rng = context.random(number)
        fault, alive = "", False
        while not fault and not alive:
            folder.mkdir(exist_ok=True)
            command = work.start(folder)
            alive = command.wait(rng.uniform(0, length)) is None
            if alive and rng.random() < 0.5:
                end = time.monotonic() + length / 4
                while time.monotonic() < end and not any(folder.rglob("*.tmp")):
                    time.sleep(0.0005)
                alive = command.wait(rng.uniform(0, 0.003)) is None
            if alive:
                killed.append(f"{time.monotonic() - command.begin:.2f}")
                command.kill()
                fault = orphans(known)
            enough = len(killed) == KILLS_A_FOLDER or number == context.numbers[-1]
            if not fault and (not alive or enough):
                # What it was killed in, if at all, must not show.
                command = work.start(folder) if alive else command
                fault = command.end() or orphans(known) or compare(folder)
                if not fault:
                    shutil.rmtree(folder)
                    killed = []
        if fault:
            fault += f" ({folder}, killed after {', '.join(killed)} s of {length:.2f})"
            folder, killed = context.folder / str(number + 1), []
        yield fault
