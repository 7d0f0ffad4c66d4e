"""Ctrl-C and SIGTERM at random moments, from the first import on.

The command ends within seconds, with status 130 or 143, without a traceback, leaves no process
behind, and once it trains it saves the step it was in.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from harness import (
    HANGS,
    PROJECT,
    STAGE_1,
    Context,
    Job,
    adopt_orphans,
    last_line,
    orphans,
    slowness,
    tiny,
)

from cityscapes_maskrcnn.utils.child import end_with_parent

# Seconds from the signal to the end, beside those of a step; two jobs share the cores.
PROMPT = 5.0
STEP = 3.0

# Most of the time goes into measurements, one of which follows every second step.
ENDLESS = """
SOLVER.MAX_ITER 100000 SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.CHECKPOINT_PERIOD 3 TEST.EVAL_EPOCHS 0
TEST.EVAL_PERIOD 2 TEST.VALIDATION_LOSS True
"""
ONE_STEP = """
SOLVER.MAX_ITER 1 TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False DATASETS.TEST ()
"""


def jobs(size: str) -> list[Job]:
    """Build the jobs; at full size they interrupt 60 times."""
    kinds = {
        # name: tries in the full and in the short campaign, seconds a try
        "training": (24, 1, 9.0, partial(interrupt_training, processes=1, workers=2)),
        "training_on_two": (24, 0, 12.0, partial(interrupt_training, processes=2, workers=1)),
        "scoring_on_two": (12, 0, 12.0, interrupt_scoring),
    }
    return [
        Job(f"interruptions/{name}", tries := full if size == "full" else short, tries * each, run)
        for name, (full, short, each, run) in kinds.items()
        if size == "full" or short
    ]


def interrupt_training(context: Context, processes: int, workers: int) -> Iterator[str]:
    """Training that does not end by itself, with loading workers."""
    adopt_orphans()
    for number in context.numbers:
        rng, folder = context.random(number), context.folder / str(number)
        words = ["--config-file", STAGE_1, "--num-gpus", processes, *tiny(ENDLESS)]
        words += ["DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", folder]

        def trains(folder: Path = folder) -> bool:
            return any(folder.glob("model_*.pth"))

        # In the start, which lasts about so long, or in training.
        after = rng.uniform(0, 9) if rng.random() < 0.4 else None
        pause = rng.uniform(0, 3)
        fault, saves = interrupt(words, context, rng=rng, trains=trains, after=after, pause=pause)
        yield fault or (saved(folder) if saves else "")


def interrupt_scoring(context: Context) -> Iterator[str]:
    """Scoring of a model on two processes."""
    adopt_orphans()
    trained = context.folder / "trained"
    words = ["--config-file", STAGE_1, *tiny(ONE_STEP), "OUTPUT_DIR", trained]
    process, log = start(words, context)
    if process.wait(HANGS):
        raise RuntimeError(f"training: {last_line(log.read_text())}")
    words = ["--config-file", trained / "config.yaml", "--eval-only", "--num-gpus", 2]
    words += ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", context.folder / "scored"]
    words += ["DATASETS.TEST", "('cityscapes_instance_val',)", "DATALOADER.NUM_WORKERS", 1]
    begun = time.monotonic()
    process, log = start(words, context)
    if process.wait(HANGS):
        raise RuntimeError(f"scoring: {last_line(log.read_text())}")
    length = time.monotonic() - begun
    for number in context.numbers:
        rng = context.random(number)
        after = rng.uniform(0, 0.9 * length)
        yield interrupt(words, context, rng=rng, after=after)[0]


def start(words: Sequence[object], context: Context) -> tuple[subprocess.Popen[bytes], Path]:
    """Start train_net.py in a session of its own; its output goes to a file."""
    log = context.folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, PROJECT / "tools/train_net.py", *map(str, words)],
            env={
                **os.environ,
                "DETECTRON2_DATASETS": str(context.data),
                "PYTHONPATH": str(PROJECT),
            },
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            # It would train for ever if the campaign were killed.
            preexec_fn=partial(end_with_parent, signal.SIGKILL),
        )
    return process, log


def interrupt(
    words: Sequence[object],
    context: Context,
    *,
    rng: random.Random,
    trains: Callable[[], bool] = lambda: False,
    after: float | None,
    pause: float = 0.0,
) -> tuple[str, bool]:
    """Start a command and interrupt it.

    Args:
        words: of train_net.py.
        context: of the job.
        rng: chooses the signal, and who gets it: as a terminal sends it to the whole group, a
            user to the command alone, or a scheduler to every process of the job.
        trains: whether the command trains.
        after: seconds to the signal, from when the command has its own handlers (before, Python
            itself starts and has others); None: the signal comes in training.
        pause: seconds into training at which it comes at the latest.

    Returns:
        The fault in words; and whether it trained when the signal came.
    """
    number = rng.choice([signal.SIGINT, signal.SIGTERM])
    to = rng.choice(["group", "command", "all"])
    twice = number == signal.SIGINT and rng.random() < 0.3
    begun = time.monotonic()
    process, log = start(words, context)
    handled: float | None = None
    while not trains():
        if handled is None and catches_sigterm(process.pid):
            handled = time.monotonic()
        if None not in (after, handled) and time.monotonic() >= handled + after:
            break
        if process.poll() is not None or time.monotonic() > begun + HANGS:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"ended, or hung, before the signal: {last_line(log.read_text())}", False
        time.sleep(0.01)
    if trained := trains():
        time.sleep(pause)
    sent = time.monotonic()
    send(process.pid, number, to)
    late = PROMPT + STEP
    if twice:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.5)
        send(process.pid, number, to)
        late = 1.5 + PROMPT
    where = f"{signal.Signals(number).name} to {to}{' twice' * twice} at {sent - begun:.2f} s"
    try:
        status = process.wait(HANGS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"goes on after {where}: {last_line(log.read_text())}", trained
    took, printed = time.monotonic() - sent, log.read_text(errors="replace")
    fault = ""
    if status != 128 + number:
        fault = f"status {status}: {last_line(printed)}"
    elif "Traceback" in printed:
        fault = f"traceback: {last_line(printed)}"
    elif took > late * slowness():
        fault = f"ended after {took:.1f} s"
    fault = fault or orphans()
    if fault:
        log.rename(log.with_name(f"log_{sent:.0f}"))
    # A second Ctrl-C may end it before it has saved.
    return f"{fault} ({where})" if fault else "", trained and not twice


def send(pid: int, number: int, to: str) -> None:
    """Send a signal to a command, to its process group, or to all processes that it has started."""
    targets = [pid, *descendants(pid)] if to == "all" else [pid]
    with suppress(ProcessLookupError):
        if to == "group":
            os.killpg(pid, number)
            return
        for target in targets:
            os.kill(target, number)


def catches_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; see "SigCgt" in the manual page proc(5)."""
    with suppress(OSError):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and theirs."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def saved(folder: Path) -> str:
    """Verify that the last step is in a checkpoint: the fault in words."""
    log = (folder / "log.txt").read_text()
    stopped = re.search(r"stopping after iteration (\d+)", log)
    if not stopped:
        return "training ended without a word"
    last = folder / (folder / "last_checkpoint").read_text()
    iteration = torch.load(last, weights_only=True)["iteration"]
    return "" if iteration == int(stopped[1]) else f"stopped after {stopped[1]}, saved {iteration}"
