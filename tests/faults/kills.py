"""SIGKILL at random moments: nothing is left running, and the same command ends as if unharmed."""

from __future__ import annotations

import hashlib
import pickle
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from harness import (
    PROJECT,
    STAGE_1,
    Command,
    Context,
    Job,
    adopt_orphans,
    orphans,
    same_tensors,
    tiny,
    tool,
)

from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.search import worker
from cityscapes_maskrcnn.search.study import counting_trials
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset

# A folder is killed in so often before it may end. A trial of a search is taken up three times.
KILLS_A_FOLDER = 3

TRAINING = """
SOLVER.MAX_ITER 12 SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_EPOCHS 0
TEST.EVAL_PERIOD 6 TEST.VALIDATION_LOSS True
"""

Start = Callable[[Path], Command]


def jobs(size: str) -> list[Job]:
    """Build the jobs; at full size there are more than 100 kills."""
    kinds = {
        # name: tries in the full and in the short campaign, seconds a try
        "training": (30, 3, 6.0, kill_training),
        "cache": (30, 6, 0.4, kill_cache),
        "search": (30, 3, 3.0, kill_search),
        "submission": (24, 3, 2.0, kill_submission),
        "chain": (18, 3, 1.5, kill_chain),
    }
    return [
        Job(f"kills/{name}", tries := full if size == "full" else short, tries * seconds, run)
        for name, (full, short, seconds, run) in kinds.items()
    ]


def kill_again_and_again(
    context: Context, start: Start, result: Callable[[Path], Any]
) -> Iterator[str]:
    """Run a command undisturbed; then kill it in other folders, and compare how these end.

    Every other kill waits for a file that is just being written, if one comes.

    Args:
        context: of the job.
        start: starts the command on a folder, or goes on there.
        result: what a folder ends with.
    """
    adopt_orphans()
    whole = context.folder / "whole"
    whole.mkdir()
    command = start(whole)
    if fault := command.end():
        raise RuntimeError(f"undisturbed: {fault}")
    length = time.monotonic() - command.begin
    expected = result(whole)

    def compare(folder: Path) -> str:
        if not same_tensors(result(folder), expected):
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
            command = start(folder)
            alive = command.wait(rng.uniform(0, length)) is None
            if alive and rng.random() < 0.5:
                end = time.monotonic() + length / 4
                while time.monotonic() < end and not any(folder.rglob("*.tmp")):
                    time.sleep(0.0005)
                alive = command.wait(rng.uniform(0, 0.003)) is None
            if alive:
                killed.append(f"{time.monotonic() - command.begin:.2f}")
                command.kill()
                fault = orphans()
            if not fault and (not alive or len(killed) == KILLS_A_FOLDER):
                # What it was killed in, if at all, must not show.
                fault = (start(folder) if alive else command).end() or orphans() or compare(folder)
                if not fault:
                    shutil.rmtree(folder)
                    killed = []
        if fault:
            fault += f" ({folder}, killed after {', '.join(killed)} s of {length:.2f})"
            folder, killed = context.folder / str(number + 1), []
        yield fault


def kill_training(context: Context) -> Iterator[str]:
    """Training with checkpoints, validation and evaluations on the way."""
    cache = context.folder / "cache"

    def start(folder: Path) -> Command:
        words = ["--config-file", STAGE_1, "--resume", *tiny(TRAINING), "OUTPUT_DIR", folder / "o"]
        return Command(
            tool("tools/train_net.py", *words),
            folder / "log",
            DETECTRON2_DATASETS=context.data,
            CITYSCAPES_MASKRCNN_CACHE=cache,
        )

    def result(folder: Path) -> Any:
        content = torch.load(folder / "o" / "model_final.pth", weights_only=True)
        scores = sorted((folder / "o" / "inference").rglob("*.csv"))
        return content, [(path.name, path.read_bytes()) for path in scores]

    yield from kill_again_and_again(context, start, result)


def kill_cache(context: Context) -> Iterator[str]:
    """The annotation cache of 40 images, which two processes read."""
    counts = {"train": 40, "val": 1}
    generate_dataset(context.folder, counts, height=64, width=128, seed=1, num_workers=1)
    tree = context.folder / "cityscapes"

    def load(folder: Path) -> None:
        images = load_instances(str(tree / "leftImg8bit/train"), str(tree / "gtFine/train"))
        (folder / "loaded").write_bytes(pickle.dumps(images))

    def start(folder: Path) -> Command:
        cache = folder / "cache"
        return Command(partial(load, folder), folder / "log", CITYSCAPES_MASKRCNN_CACHE=cache)

    def result(folder: Path) -> Any:
        (cache,) = (folder / "cache").glob("*.npz")
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in (cache, folder / "loaded")]

    yield from kill_again_and_again(context, start, result)


def kill_search(context: Context) -> Iterator[str]:
    """A search, its trials included, with the tests' fake training."""
    program = runpy.run_path(str(PROJECT / "tests/search/search_worker.py"))
    # A trial whose worker was killed before it put its name to it is taken over after a minute.
    worker._UNCLAIMED = 0.5

    def start(folder: Path) -> Command:
        url = f"sqlite:///{folder / 's.db'}"
        return Command(lambda: program["search"](url, folder / "t", 5) and None, folder / "log")

    def result(folder: Path) -> Any:
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 's.db'}")
        # A trial that is queued again gets another number.
        return sorted((t.value, str(t.params)) for t in counting_trials(study.trials))

    yield from kill_again_and_again(context, start, result)


def kill_submission(context: Context) -> Iterator[str]:
    """A submission of six images; weights are those of a short training."""
    weights = context.folder / "weights"
    short = "SOLVER.MAX_ITER 1 DATASETS.TEST () TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False"
    words = ["--config-file", STAGE_1, *tiny(short), "OUTPUT_DIR", weights]
    fault = Command(
        tool("tools/train_net.py", *words),
        context.folder / "log",
        DETECTRON2_DATASETS=context.data,
    ).end()
    if fault:
        raise RuntimeError(f"training: {fault}")

    def start(folder: Path) -> Command:
        words = ["--config-file", weights / "config.yaml", "--output", folder / "s.zip"]
        words += ["MODEL.WEIGHTS", weights / "model_final.pth", "OUTPUT_DIR", folder]
        return Command(
            tool("tools/make_submission.py", *words),
            folder / "log",
            DETECTRON2_DATASETS=context.data,
        )

    yield from kill_again_and_again(context, start, lambda folder: (folder / "s.zip").read_bytes())


def kill_chain(context: Context) -> Iterator[str]:
    """The chain of stages, with the tests' fake steps."""
    program = runpy.run_path(str(PROJECT / "tests/recipe/fake_chain.py"))

    def run(folder: Path) -> None:
        steps = program["steps"](folder / "o", "0.02", list(program["COUNTS"]))
        with (folder / "stdout").open("w") as log:
            program["run_chain"](steps, folder / "o", log, patience=2)

    def start(folder: Path) -> Command:
        return Command(partial(run, folder), folder / "log")

    def result(folder: Path) -> Any:
        return [(folder / "o" / name / "result").read_text() for name in program["COUNTS"]]

    yield from kill_again_and_again(context, start, result)
