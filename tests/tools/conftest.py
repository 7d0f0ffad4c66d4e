"""Tools as a user runs them: in this process, or in one of their own where that is the point."""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.utils import logger as detectron2_logger

PROJECT = Path(__file__).parents[2]

STAGE_1 = PROJECT / "configs" / "stage_1_heads.yaml"

Done = subprocess.CompletedProcess[str]
Process = subprocess.Popen[str]

# A ResNet-50 with narrow layers, on images of 96x192: an iteration takes a fraction of a second.
# It knows nothing, but everything it finds is counted: the tables of two evaluations tell if they
# are of the same predictions, while both scores may be 0.
TINY = (PROJECT / "tests" / "tiny_network.txt").read_text().split()
TINY += ["TEST.ANALYSIS_CONFIDENCE", "0.0"]


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """KEY VALUE pairs of a network for tests, which starts from random weights."""
    return [*TINY, "MODEL.WEIGHTS", ""]


@contextmanager
def own_state() -> Iterator[None]:
    """Undo what a tool changes in its process, which would end with the tool."""
    names = (None, "cityscapes_maskrcnn", "detectron2", "fvcore", "optuna")
    loggers = [
        (logger, logger.level, logger.propagate, logger.handlers[:])
        for logger in map(logging.getLogger, names)
    ]
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    warnoptions = sys.warnoptions[:]
    generators = random.getstate(), np.random.get_state()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        # As OMP_NUM_THREADS lets it be in a process of its own; tests may have changed it.
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for logger, level, propagate, handlers in loggers:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers
        # Otherwise a second run into a folder would find its log set up.
        detectron2_logger.setup_logger.cache_clear()
        detectron2_logger._cached_log_stream.cache_clear()
        for number, handler in signals.items():
            signal.signal(number, handler)
        sys.warnoptions[:] = warnoptions
        wakeup = signal.set_wakeup_fd(-1)
        if wakeup != -1:
            # Ends the thread that the tool has started for its signals.
            os.close(wakeup)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def redirected(stream: str, descriptor: int) -> Iterator[IO[str]]:
    """Have this process and its children write into a file instead of ``sys.stdout``, say."""
    before = os.dup(descriptor)
    with (
        tempfile.TemporaryFile("w+", buffering=1) as file,
        mock.patch.object(sys, stream, file),
    ):
        os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            os.dup2(before, descriptor)
            os.close(before)


@pytest.fixture(scope="session")
def tool(small_root: Path) -> Callable[..., Done]:
    """Run a tool in this process: ``tool("tools/NAME.py", *arguments, root=..., cwd=...)``.

    Exit status, stdout and stderr are those of a process of its own; only a defect, an exception
    that the tool does not turn into a line, is raised here. ``root`` is DETECTRON2_DATASETS.
    """

    def run(script: str, *arguments: object, root: Path = small_root, cwd: Path = PROJECT) -> Done:
        command = [str(PROJECT / script), *map(str, arguments)]
        status = None
        with (
            own_state(),
            redirected("stdout", 1) as out,
            redirected("stderr", 2) as err,
            mock.patch.dict(os.environ, DETECTRON2_DATASETS=str(root)),
            mock.patch.object(sys, "argv", command),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.chdir(cwd)
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as end:
                status = end.code
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, status or 0, out.read(), err.read())

    return run


@contextmanager
def started(script: str, *arguments: object, root: Path, cwd: Path = PROJECT) -> Iterator[Process]:
    """Start a tool in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / script), *map(str, arguments)],
        env={**os.environ, "DETECTRON2_DATASETS": str(root)},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def start_tool(small_root: Path) -> Callable[..., AbstractContextManager[Process]]:
    """``with start_tool("tools/NAME.py", *arguments, root=..., cwd=...) as process:``."""
    return partial(started, root=small_root)


@pytest.fixture(scope="session")
def tool_process(start_tool: Callable[..., AbstractContextManager[Process]]) -> Callable[..., Done]:
    """Run a tool as ``tool`` does, but in a process of its own."""

    def run(*arguments: object, **options: object) -> Done:
        with start_tool(*arguments, **options) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def train_net(tool: Callable[..., Done]) -> Callable[..., Done]:
    """Run train_net.py in this process: ``train_net(*arguments, config=..., root=...)``."""

    def run(*arguments: object, config: object = STAGE_1, **options: object) -> Done:
        return tool("tools/train_net.py", "--config-file", config, *arguments, **options)

    return run


@pytest.fixture(scope="session")
def trained(
    train_net: Callable[..., Done], tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Output of two epochs of the tiny model and its ``stdout``; never written to by tests."""
    output = tmp_path_factory.mktemp("trained")
    options = [*tiny, "SOLVER.EPOCHS", 2, "TEST.VALIDATION_LOSS", True, "OUTPUT_DIR", output]
    done = train_net(*options, "TRACKING.NUM_PICTURES", 2)
    assert done.returncode == 0, done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


@pytest.fixture(scope="session")
def exported(
    trained: Path, tool: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The ``onnx/model.onnx`` of that model; never written to by tests."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    config = ["--config-file", trained / "config.yaml", "--output", folder]
    done = tool("tools/export_model.py", *config, "MODEL.WEIGHTS", trained / "model_final.pth")
    assert done.returncode == 0, done.stderr
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def first_checkpoint() -> Callable[..., None]:
    """Wait until a process that was started has written a checkpoint into a folder."""

    def wait(process: Process, folder: Path, seconds: float = 120) -> None:
        last = time.monotonic() + seconds
        while not list(folder.glob("model_*.pth")):
            assert time.monotonic() < last, "no checkpoint yet"
            with suppress(subprocess.TimeoutExpired):
                # It also takes what the process says, which would stop at a full pipe.
                pytest.fail("".join(process.communicate(timeout=0.02)))

    return wait


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], dict[str, float]]:
    """Read the newest value of everything in metrics.json, which must be JSON to the letter."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    def read(output: Path) -> dict[str, float]:
        merged: dict[str, float] = {}
        for line in (output / "metrics.json").read_text().splitlines():
            merged.update(json.loads(line, parse_constant=no_constant))
        return merged

    return read


@pytest.fixture(scope="session")
def tables() -> Callable[[Path], dict[str, str]]:
    """Read all that an evaluation counted, by file: every prediction that counts is in it."""

    def read(output: Path) -> dict[str, str]:
        folder = output / "inference"
        found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.csv")}
        # Were nothing found, all evaluations would agree.
        per_class = [text for name, text in found.items() if name.endswith("per_class.csv")]
        assert per_class
        for text in per_class:
            rows = list(csv.DictReader(text.splitlines()))
            assert sum(int(row["objects"]) for row in rows) > 0
            assert sum(int(row["found"]) + int(row["false_positives"]) for row in rows) > 0
        assert len(found) == 5 * len(per_class)
        return found

    return read
