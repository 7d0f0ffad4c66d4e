#!/usr/bin/env python
"""Kill, interrupt, fill disks and feed damaged files to this project, and count how it holds.

Two jobs run at a time. With --table the result becomes the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

# Read when torch and NumPy are imported: many processes of one thread share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
PARTS = ("kills", "disks", "together", "fuzz", "interruptions")

EXAMPLES = """
examples:
  what `make test` runs, in a minute, and `make faults`, in 30 to 75 minutes:
    tests/faults/run.py --size short
    tests/faults/run.py --table docs/reliability.md
  a part, a job, one try of a job, as the list of faults names it:
    tests/faults/run.py --only kills fuzz/image
    tests/faults/run.py --only fuzz/image --try 17 --seed 3
"""


@dataclass
class Row:
    """What came of a job."""

    name: str
    tried: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)

    def alike(self) -> dict[str, list[tuple[int, str]]]:
        """Group the faults by the words of their verdicts, without numbers and paths."""
        groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for number, verdict in self.faults:
            groups[re.sub(r"\d+|/\S+", "#", verdict)[:60]].append((number, verdict))
        return groups


def find_jobs(size: str, only: Sequence[str]) -> list:
    """List the jobs of all parts, or those that are named."""
    here = [part for part in PARTS if Path(__file__).with_name(f"{part}.py").exists()]
    jobs = [job for part in here for job in importlib.import_module(part).jobs(size)]
    chosen = [job for job in jobs if not only or {job.name, job.name.partition("/")[0]} & set(only)]
    known = {name for job in jobs for name in (job.name, job.name.partition("/")[0])}
    if unknown := set(only) - known:
        sys.exit(f"error: --only {min(unknown)}: it must be one of {', '.join(sorted(known))}")
    return chosen


def run_job(job, context, sender: Connection) -> None:
    """Run in a process of its own: send every try's number and verdict."""
    from cityscapes_maskrcnn.utils.child import end_with_parent

    end_with_parent(signal.SIGKILL)
    with (context.folder / "log").open("w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    os.chdir(context.folder)
    try:
        verdicts: Iterator[str] = job.run(context)
        for number, verdict in zip(context.numbers, verdicts, strict=True):
            sender.send((number, verdict))
    except BaseException:
        sender.send((-1, f"the job itself failed: {traceback.format_exc()}"))
    finally:
        sender.close()


def run_jobs(jobs: Sequence, seed: int, folder: Path, only_try: int | None) -> list[Row]:
    """Run jobs, two at a time, the longest first, showing progress and the remaining time."""
    from harness import Context
    from tqdm import tqdm

    from cityscapes_maskrcnn.synthetic.dataset import generate_dataset

    data = folder / "data"
    counts = {"train": 8, "val": 6, "test": 6}
    generate_dataset(data, counts, height=96, width=192, seed=3, num_workers=1)
    rows = {job.name: Row(job.name) for job in jobs}
    left = deque(sorted(jobs, key=lambda job: -job.seconds))
    running: dict[Connection, tuple] = {}
    bar = tqdm(
        total=round(sum(job.seconds for job in jobs)),
        bar_format="{l_bar}{bar}| {elapsed} of about {elapsed}+{remaining}{postfix}",
        mininterval=1 if sys.stderr.isatty() else 20,
        ncols=100,
    )
    while left or running:
        while left and len(running) < 2:
            job = left.popleft()
            own = folder / job.name
            own.mkdir(parents=True)
            numbers = range(job.tries) if only_try is None else [only_try]
            receiver, sender = multiprocessing.Pipe(duplex=False)
            context = Context(job.name, seed, own, data, numbers)
            process = ForkProcess(target=run_job, args=(job, context, sender))
            process.start()
            sender.close()
            running[receiver] = job, process
        bar.set_postfix_str(" ".join(job.name for job, _ in running.values()), refresh=False)
        for receiver in wait(list(running), timeout=1):
            job, process = running[receiver]
            row = rows[job.name]
            try:
                number, verdict = receiver.recv()
            except EOFError:
                process.join()
                del running[receiver]
                if process.exitcode and not any(number < 0 for number, _ in row.faults):
                    row.faults.append((-1, f"the job itself died: {process.exitcode}"))
                continue
            row.tried += number >= 0
            bar.update(job.seconds / job.tries)
            if verdict:
                before = len(row.alike())
                row.faults.append((number, verdict))
                if len(row.alike()) > before:
                    bar.write(f"{job.name}, try {number}: {verdict}")
    bar.close()
    return list(rows.values())


def list_faults(row: Row, size: str, seed: int) -> str:
    """Describe the faults of a job, of many alike the first, and how to repeat each."""
    text = ""
    for (number, verdict), *others in row.alike().values():
        more = f" (and {len(others)} tries alike: {', '.join(str(n) for n, _ in others[:9])})"
        words = ["tests/faults/run.py", "--size", size, "--seed", str(seed), "--only", row.name]
        words += ["--try", str(number)] * row.name.startswith("fuzz")
        text += f"\n{row.name}, try {number}: {verdict}{more * bool(others)}\n"
        text += f"  again: {shlex.join(words)}\n"
    return text


def table(rows: Sequence[Row], seed: int, seconds: float) -> str:
    """Lay out what came of the jobs as Markdown."""
    lines = ["| what | tried | survived | faults |", "|---|---:|---:|---:|"]
    cells = [(row.name, row.tried, len(row.faults)) for row in rows]
    total = sum(tried for _, tried, _ in cells), sum(faults for *_, faults in cells)
    for name, tried, faults in [*cells, ("all", *total)]:
        lines.append(f"| {name} | {tried:,} | {tried - faults:,} | {faults:,} |")
    machine = f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}"
    date = f"{datetime.date.today()}, {seconds / 60:.0f} minutes"
    return "\n".join([*lines, "", f"Seed {seed}; {date}; {machine}."])


def write_table(file: Path, text: str) -> None:
    """Put the table between the markers of a Markdown file."""
    begin, end = "<!-- campaign -->\n", "<!-- end of campaign -->"
    before, _, rest = file.read_text().partition(begin)
    _, _, after = rest.partition(end)
    file.write_text(f"{before}{begin}{text}\n{end}{after}")


@contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    """Make a folder for all jobs; it is removed at the end unless it is to be kept."""
    if keep:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the chosen jobs, print the table and every fault; the status is 1 if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=("short", "full"), default="full", help="default: full")
    add("--seed", type=int, default=0, metavar="S", help="of all random choices (default: 0)")
    add("--only", nargs="+", default=[], metavar="JOB", help=f"of {', '.join(PARTS)}, or PART/JOB")
    add("--try", type=int, dest="number", metavar="N", help="this try of the job only")
    add("--table", type=Path, metavar="FILE", help="write the table between this file's markers")
    add("--keep", type=Path, metavar="DIR", help="a new folder for what is tried, which then stays")
    args = parser.parse_args()

    jobs = find_jobs(args.size, args.only)
    begin = time.monotonic()
    with working_folder(args.keep) as folder:
        os.environ["CITYSCAPES_MASKRCNN_CACHE"] = str(folder / "cache")
        rows = run_jobs(jobs, args.seed, folder, args.number)
    text = table(rows, args.seed, time.monotonic() - begin)
    print(text)
    for row in rows:
        print(list_faults(row, args.size, args.seed), end="")
    if args.table:
        write_table(args.table, text)
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
