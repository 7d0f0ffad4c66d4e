"""train_net.py is asked to stop, as job schedulers do, and goes on later."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

# A checkpoint every other iteration; the first one tells that training is under way.
OFTEN = ["SOLVER.CHECKPOINT_EPOCHS", 0, "SOLVER.CHECKPOINT_PERIOD", 2]
OFTEN += ["TEST.EVAL_EPOCHS", 0, "TEST.VALIDATION_LOSS", False, "DATASETS.TEST", "()"]

TrainNet = Callable[..., subprocess.CompletedProcess[str]]


def checkpoint(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def assert_stopped(output: Path, process: subprocess.Popen[str], iterations: int) -> int:
    """The process ends with a checkpoint of the iteration that it stopped after."""
    log, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in log + errors
    assert "error: " not in errors
    iteration = int(re.search(r"SIGTERM: stopping after iteration (\d+)", log).group(1))
    # The first checkpoint is that of iteration 1.
    assert 0 < iteration < iterations - 1
    last = output / f"model_{iteration:07d}.pth"
    assert (output / "last_checkpoint").read_text() == last.name
    assert max(output.glob("model_*.pth")) == last
    assert torch.load(last, weights_only=True)["iteration"] == iteration
    return iteration


def test_resume_after_sigterm_equals_an_uninterrupted_run(
    train_net: TrainNet,
    start_train_net: Callable[..., object],
    first_checkpoint: Callable[..., None],
    tiny: list[str],
    tmp_path: Path,
) -> None:
    options = [*tiny, *OFTEN, "SOLVER.MAX_ITER", 40]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_net(*options, "OUTPUT_DIR", whole).returncode == 0

    with start_train_net("--resume", *options, "OUTPUT_DIR", parts) as process:
        first_checkpoint(process, parts)
        process.send_signal(signal.SIGTERM)
        iteration = assert_stopped(parts, process, 40)

    done = train_net("--resume", *options, "OUTPUT_DIR", parts)
    assert done.returncode == 0, done.stderr
    assert f"Starting training from iteration {iteration + 1} of 40" in done.stdout
    expected, resumed = (checkpoint(each / "model_final.pth") for each in (whole, parts))
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


def test_sigterm_reaches_every_process(
    start_train_net: Callable[..., object],
    first_checkpoint: Callable[..., None],
    tiny: list[str],
    tmp_path: Path,
) -> None:
    options = [*tiny, *OFTEN, "SOLVER.MAX_ITER", 100_000, "OUTPUT_DIR", tmp_path]
    with start_train_net("--num-gpus", 2, *options) as process:
        first_checkpoint(process, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert_stopped(tmp_path, process, 100_000)
