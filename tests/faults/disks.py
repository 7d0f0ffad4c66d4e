"""Disks that fill: one line that names the file, and with more room the same command goes on.

As root each try has a tiny file system of its own; else the size of each file is limited.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import works
from harness import Context, Job, one_clear_line, same_tensors


def jobs(size: str) -> list[Job]:
    """Build the jobs."""
    kinds = {
        # tries in the full and in the short campaign, seconds a try
        works.training: (24, 1, 6.0),
        works.cache: (24, 1, 1.0),
        works.search: (16, 0, 2.0),
        works.submission: (16, 1, 2.5),
    }
    return works.jobs_of_works("disks", fill, kinds, size)


def fill(prepare: works.Prepare, context: Context) -> Iterator[str]:
    """Do a work on disks of random sizes, each smaller than it needs, then with more room."""
    work, whole, expected, _ = works.run_undisturbed(prepare, context)
    sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
    for number in context.numbers:
        share = context.random(number).uniform(0, 0.95)
        folder = context.folder / str(number)
        with small_disk(folder, sizes, share) as (start, make_room):
            command = start(work)
            status = command.wait()
            printed = command.printed()
            if status is None:
                command.kill()
                fault = "hangs"
            elif prepare is works.cache:
                # It only warns.
                fault = "" if status == 0 else one_clear_line(status, printed) or "refused"
            else:
                fault = "" if status == 0 else one_clear_line(status, printed)
                if status and not fault and str(folder) not in printed.splitlines()[-1]:
                    fault = f"the file is not named: {printed.splitlines()[-1]}"
            if not fault:
                make_room()
                fault = work.start(folder).end()
                fault = fault and f"with more room: {fault}"
            if not fault and not same_tensors(work.result(folder), expected):
                fault = "with more room the end differs from that of an undisturbed run"
        yield fault and f"{fault} (a disk of {share:.1%} of what is needed)"


@contextmanager
def small_disk(
    folder: Path, sizes: list[int], share: float
) -> Iterator[tuple[Callable[[works.Work], works.Command], Callable[[], None]]]:
    """Make a folder with too little room.

    Args:
        folder: it.
        sizes: of the files that the work writes, in bytes.
        share: of the room that these need.

    Yields:
        What starts a work there, and what gives it room.
    """
    folder.mkdir()
    room = max(4096, int(share * sum(sizes)))

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if mount(f"size={room}"):
        try:
            yield lambda work: work.start(folder), lambda: mount("remount,size=1g") or None
        finally:
            # A process that ends takes a moment to let go.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def start(work: works.Work) -> works.Command:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * max(sizes)), limits[1]))
        try:
            return work.start(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield start, lambda: None
