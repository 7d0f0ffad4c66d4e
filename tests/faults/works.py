"""The jobs of this project that are killed, meet full disks and run side by side, in small."""

from __future__ import annotations

import hashlib
import pickle
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import PROJECT, STAGE_1, Command, Context, Job, tiny, tool

from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY
from cityscapes_maskrcnn.search import worker
from cityscapes_maskrcnn.search.storage import open_study
from cityscapes_maskrcnn.search.study import counting_trials
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset

TRAINING = """
SOLVER.MAX_ITER 12 SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_EPOCHS 0
TEST.EVAL_PERIOD 6 TEST.VALIDATION_LOSS True
"""
ONE_STEP = "SOLVER.MAX_ITER 1 DATASETS.TEST () TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False"


class Work(NamedTuple):
    """One kind of work on a folder.

    Attributes:
        start: starts it, or goes on with it; the log lies beside the folder.
        result: what the folder ends with; never touches the folder.
    """

    start: Callable[[Path], Command]
    result: Callable[[Path], Any]


Prepare = Callable[[Context], Work]


def jobs_of_works(
    part: str,
    run: Callable[[Prepare, Context], Iterator[str]],
    kinds: Mapping[Prepare, tuple[int, int, float]],
    size: str,
) -> list[Job]:
    """Build a part's jobs, one a work.

    Args:
        part: its name.
        run: tries a work; yields verdicts.
        kinds: tries in the full and in the short campaign, and seconds a try.
        size: ``full`` or ``short``.
    """
    return [
        Job(f"{part}/{prepare.__name__}", tries, tries * seconds, partial(run, prepare))
        for prepare, (full, short, seconds) in kinds.items()
        if (tries := full if size == "full" else short)
    ]


class Undisturbed(NamedTuple):
    """A work that was left to end by itself, with which others are compared.

    Attributes:
        work: it.
        folder: where it worked.
        result: what it ended with.
        seconds: how long it took.
    """

    work: Work
    folder: Path
    result: Any
    seconds: float


def run_undisturbed(prepare: Prepare, context: Context) -> Undisturbed:
    """Prepare a work, and do it once.

    Raises:
        RuntimeError: it fails.
    """
    work = prepare(context)
    folder = context.folder / "whole"
    folder.mkdir()
    command = work.start(folder)
    if fault := command.end():
        raise RuntimeError(f"undisturbed: {fault}")
    seconds = time.monotonic() - command.begin
    return Undisturbed(work, folder, work.result(folder), seconds)


def log_of(folder: Path) -> Path:
    """A new log of a work on a folder: beside it, where the disk is large."""
    logs = len(list(folder.parent.glob(f"{folder.name}_*.log")))
    return folder.with_name(f"{folder.name}_{logs}.log")


def training(context: Context) -> Work:
    """Training with checkpoints, validation and evaluations on the way."""

    def start(folder: Path) -> Command:
        words = ["--config-file", STAGE_1, "--resume", *tiny(TRAINING), "OUTPUT_DIR", folder / "o"]
        return Command(
            tool("tools/train_net.py", *words),
            log_of(folder),
            DETECTRON2_DATASETS=context.data,
            CITYSCAPES_MASKRCNN_CACHE=context.folder / "cache",
        )

    def result(folder: Path) -> Any:
        content = torch.load(folder / "o" / "model_final.pth", weights_only=True)
        # Times and memory.
        del content["trainer"]["hooks"]["RunSummary"]
        del content["trainer"]["hooks"]["ShowProgress"]
        del content[ORIGIN_KEY]  # the folder's name
        scores = sorted((folder / "o" / "inference").rglob("*.csv"))
        return content, [(path.name, path.read_bytes()) for path in scores]

    return Work(start, result)


def cache(context: Context) -> Work:
    """The annotation cache of 40 images, which two processes read."""
    counts = {"train": 40, "val": 1}
    generate_dataset(context.folder, counts, height=64, width=128, seed=1, num_workers=1)
    folders = [
        str(context.folder / "cityscapes" / name / "train") for name in ("leftImg8bit", "gtFine")
    ]

    def load() -> None:
        images = load_instances(*folders)
        digest = hashlib.sha256(pickle.dumps(images)).hexdigest()
        if digest != expected:
            raise AssertionError("the cache gives other annotations than the files")

    def start(folder: Path) -> Command:
        return Command(load, log_of(folder), CITYSCAPES_MASKRCNN_CACHE=folder)

    def result(folder: Path) -> Any:
        (file,) = folder.glob("*.cache")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    images = load_instances(*folders)
    expected = hashlib.sha256(pickle.dumps(images)).hexdigest()
    return Work(start, result)


def search(context: Context) -> Work:  # noqa: ARG001 - all works are prepared alike
    """A search of five trials with the tests' fake training."""
    program = runpy.run_path(str(PROJECT / "tests/search/search_worker.py"))
    # A trial whose worker was killed before it put its name to it is taken over after a minute.
    worker._UNCLAIMED = 0.5

    def start(folder: Path) -> Command:
        url = f"sqlite:///{folder / 's.db'}"
        return Command(lambda: program["search"](url, folder / "t", 5) and None, log_of(folder))

    def result(folder: Path) -> Any:
        with open_study(f"sqlite:///{folder / 's.db'}", "search") as study:
            # A trial that is queued again gets another number.
            return sorted((str(t.value), str(t.params)) for t in counting_trials(study.trials))

    return Work(start, result)


def submission(context: Context) -> Work:
    """A submission of six images; the weights are those of one step of training."""
    weights = context.folder / "weights"
    words = ["--config-file", STAGE_1, *tiny(ONE_STEP), "OUTPUT_DIR", weights]
    trained = Command(
        tool("tools/train_net.py", *words), log_of(weights), DETECTRON2_DATASETS=context.data
    )
    if fault := trained.end():
        raise RuntimeError(f"training: {fault}")

    def start(folder: Path) -> Command:
        words = ["--config-file", weights / "config.yaml", "--output", folder / "s.zip"]
        words += ["MODEL.WEIGHTS", weights / "model_final.pth"]
        return Command(
            tool("tools/make_submission.py", *words),
            log_of(folder),
            DETECTRON2_DATASETS=context.data,
        )

    return Work(start, lambda folder: (folder / "s.zip").read_bytes())


def chain(context: Context) -> Work:  # noqa: ARG001 - all works are prepared alike
    """The chain of stages, with the tests' fake steps."""
    program = runpy.run_path(str(PROJECT / "tests/recipe/fake_chain.py"))

    def run(folder: Path) -> None:
        steps = program["steps"](folder, "0.02", list(program["COUNTS"]))
        program["run_chain"](steps, folder, sys.stdout, patience=2)

    def start(folder: Path) -> Command:
        return Command(partial(run, folder), log_of(folder))

    def result(folder: Path) -> Any:
        return [(folder / name / "result").read_text() for name in program["COUNTS"]]

    return Work(start, result)
