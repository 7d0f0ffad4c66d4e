"""Six processes that start at once on an empty, or a damaged, shared folder."""

from __future__ import annotations

from collections.abc import Iterator

import works
from harness import Context, Job, same_tensors
from mutators import mutate_bytes

PROCESSES = 6


def jobs(size: str) -> list[Job]:
    """Build the jobs."""
    kinds = {
        # tries in the full and in the short campaign, seconds a try
        works.cache: (20, 1, 3.0),
        works.search: (8, 0, 5.0),
    }
    return works.jobs_of_works("together", start_together, kinds, size)


def start_together(prepare: works.Prepare, context: Context) -> Iterator[str]:
    """Start six processes at once: each ends well, and all together as one alone."""
    work, whole, expected, _ = works.run_undisturbed(prepare, context)
    for number in context.numbers:
        folder = context.folder / str(number)
        folder.mkdir()
        if prepare is works.cache and number % 2:
            for file in whole.glob("*.cache"):
                damaged = mutate_bytes(context.random(number), file.read_bytes())
                (folder / file.name).write_bytes(damaged)
        commands = [work.start(folder) for _ in range(PROCESSES)]
        faults = list(filter(None, [command.end() for command in commands]))
        if not faults and not same_tensors(work.result(folder), expected):
            faults = ["the end differs from that of one process alone"]
        yield "; ".join(faults)
