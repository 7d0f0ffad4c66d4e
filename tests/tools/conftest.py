"""train_net.py as a user runs it: in a process of its own, on a small generated data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# A ResNet-50 with narrow layers, on images of 96x192: an iteration takes a fraction of a second.
# It knows nothing, but whatever it finds is counted: the tables of two evaluations tell if they
# are of the same predictions, while both scores may be 0.
TINY = """
MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 16
MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.RPN.POST_NMS_TOPK_TEST 50
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 10 TEST.ANALYSIS_CONFIDENCE 0.0
INPUT.MIN_SIZE_TRAIN (80,96) INPUT.MAX_SIZE_TRAIN 192
INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 192
SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0
"""


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """KEY VALUE pairs of a network for tests, which starts from random weights."""
    return [*TINY.split(), "MODEL.WEIGHTS", ""]


@contextmanager
def started(
    *arguments: object, root: Path, config: object = "configs/stage_1_heads.yaml"
) -> Iterator[subprocess.Popen[str]]:
    """Start train_net.py; it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "tools/train_net.py", "--config-file", *map(str, [config, *arguments])],
        env={**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"},
        cwd=PROJECT,
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
def start_train_net(small_root: Path) -> Callable[..., object]:
    """``with start_train_net(*arguments, config=..., root=...) as process:``."""

    def start(*arguments: object, root: Path = small_root, **how: object) -> object:
        return started(*arguments, root=root, **how)

    return start


@pytest.fixture(scope="session")
def train_net(small_root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train_net.py to its end: ``train_net(*arguments, config=..., root=...)``."""

    def run(
        *arguments: object, root: Path = small_root, **how: object
    ) -> subprocess.CompletedProcess[str]:
        with started(*arguments, root=root, **how) as process:
            log, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, log, errors)

    return run


@pytest.fixture(scope="session")
def first_checkpoint() -> Callable[..., None]:
    """Wait until a process that was started has written a checkpoint into a folder."""

    def wait(process: subprocess.Popen[str], folder: Path, seconds: float = 120) -> None:
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
