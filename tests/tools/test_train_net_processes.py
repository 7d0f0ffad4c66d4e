"""train_net.py on several processes, and stopped by signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset

PROJECT = Path(__file__).parents[2]
STAGE_1 = str(PROJECT / "configs" / "stage_1_heads.yaml")

# Plain gradient descent, and every region sampled: a step has nothing left to chance.
ONE_STEP = """
SOLVER.OPTIMIZER SGD SOLVER.BASE_LR 0.1 SOLVER.MAX_ITER 1 SOLVER.CHECKPOINT_EPOCHS 0
TEST.EVAL_EPOCHS 0 INPUT.MIN_SIZE_TRAIN (96,)
MODEL.RPN.BATCH_SIZE_PER_IMAGE 10000 MODEL.RPN.POSITIVE_FRACTION 1.0
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 10000 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
MODEL.RPN.POST_NMS_TOPK_TRAIN 50
"""
# 2 and 1 images.
SCORED = ("cityscapes_instance_val_part1of4", "cityscapes_instance_val_part3of4")
# A checkpoint every other iteration; the first one tells that training is under way.
OFTEN = """
SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.CHECKPOINT_PERIOD 2
TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False DATASETS.TEST ()
"""

Process = subprocess.Popen[str]
Run = Callable[..., subprocess.CompletedProcess[str]]
Metrics = Callable[[Path], dict[str, float]]
Tables = Callable[[Path], dict[str, str]]


def step_alone(position: int, options: list[str]) -> dict[str, torch.Tensor]:
    """The model after one step on the image at a position of the training stream."""
    cfg = build_config(STAGE_1, [*options, "SOLVER.IMS_PER_BATCH", "1", "DATASETS.TEST", "()"])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.stream.start_batch = position
    trainer.train()
    return trainer.model.state_dict()


def test_two_processes_train_and_measure_one_model(
    train_net: Run,
    metrics: Metrics,
    tables: Tables,
    tiny: list[str],
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    options = [*tiny, *ONE_STEP.split(), "TEST.VALIDATION_LOSS", "True"]
    torch.manual_seed(0)
    start = Trainer.build_model(build_config(STAGE_1, options))
    torch.save({"model": start.state_dict()}, tmp_path / "start.pth")
    options += ["MODEL.WEIGHTS", str(tmp_path / "start.pth")]

    two = tmp_path / "two"
    done = train_net("--num-gpus", 2, *options, "DATASETS.TEST", SCORED, "OUTPUT_DIR", two)
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in done.stdout
    together = torch.load(two / "model_final.pth", weights_only=True)["model"]

    # The mean gradient leads to the mean of what each process would have reached with its image;
    # statistics of BatchNorm are averaged.
    options += ["TEST.VALIDATION_LOSS", "False", "OUTPUT_DIR", str(tmp_path / "one")]
    first, second = (step_alone(position, options) for position in (0, 1))
    assert together.keys() == first.keys()
    moved = 0
    for name, value in together.items():
        apart = (first[name].double() - second[name].double()).norm()
        error = (value.double() - (first[name].double() + second[name].double()) / 2).norm()
        assert error <= 1e-3 * apart + 1e-7 * value.double().norm(), name
        moved += apart > 1e-5 * value.double().norm()
    # Of 392 tensors, of which 61 are counters of BatchNorm.
    assert moved > 250

    # The same run on one process has nothing left to train: it measures the same model. Of the 3
    # images one process of two has 2, or 1 and none.
    one = tmp_path / "one"
    shutil.rmtree(one)
    shutil.copytree(two, one)
    shutil.rmtree(one / "inference")
    (one / "metrics.json").unlink()
    done = train_net("--resume", "OUTPUT_DIR", one, config=two / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert len(tables(two)) == 2 * 5
    assert tables(one) == tables(two)
    expected, measured = (
        {
            name: value
            for name, value in metrics(output).items()
            if name.startswith(("validation/", "cityscapes_instance_val"))
        }
        for output in (two, one)
    )
    assert "validation/total_loss" in expected
    assert f"{SCORED[0]}/segm/AP" in expected
    assert measured == pytest.approx(expected, rel=1e-5)


def two_machines() -> list[object]:
    """Flags of both, but for the number of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    return ["--num-machines", 2, "--dist-url", url, "--machine-rank"]


def the_error(process: Process) -> str:
    """The only line with which a process ends that cannot go on; at once, and no traceback."""
    log, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "Traceback" not in log + errors
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    return line


def test_a_lost_machine_is_named(
    start_tool: Callable[..., object],
    first_checkpoint: Callable[..., None],
    tiny: list[str],
    tmp_path: Path,
) -> None:
    command = ["tools/train_net.py", "--config-file", STAGE_1, *two_machines()]
    options = [*tiny, *OFTEN.split(), "SOLVER.MAX_ITER", 100_000, "OUTPUT_DIR", tmp_path]
    with (
        start_tool(*command, 0, *options) as one,
        start_tool(*command, 1, *options) as other,
    ):
        first_checkpoint(one, tmp_path)
        os.killpg(other.pid, signal.SIGKILL)
        line = the_error(one)
    assert line.startswith(f"error: process 1 on {socket.gethostname()}: no heartbeat; ")
    assert line.endswith("with --resume to continue from the last checkpoint")


def test_an_error_on_one_machine_ends_the_other_with_the_same_line(
    trained: Path, start_tool: Callable[..., object], small_root: Path, tmp_path: Path
) -> None:
    """It scores a truncated image, while the other one waits."""
    shutil.copytree(small_root, tmp_path / "data")
    split = tmp_path / "data" / "cityscapes" / "leftImg8bit" / "val"
    image = max(split.rglob("*.png"))
    image.write_bytes(image.read_bytes()[:500])
    config = ["--config-file", trained / "config.yaml", "--eval-only"]
    command = ["tools/train_net.py", *config, *two_machines()]
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR"]
    with (
        start_tool(*command, 0, *weights, tmp_path / "0") as one,
        start_tool(*command, 1, *weights, tmp_path / "1", root=tmp_path / "data") as other,
    ):
        lines = the_error(one), the_error(other)
    problem = lines[1].removeprefix("error: ")
    assert problem.startswith(f"{image}: truncated")
    assert lines[0] == f"error: process 1 on {socket.gethostname()}: {problem}"


def test_torchrun_starts_one_training(tiny: list[str], small_root: Path, tmp_path: Path) -> None:
    options = [*tiny, *OFTEN.split(), "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path]
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node=2"]
    command = [PROJECT / "tools" / "train_net.py", "--config-file", STAGE_1]
    done = subprocess.run(
        [*torchrun, *command, *map(str, options)],
        env={**os.environ, "DETECTRON2_DATASETS": str(small_root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Rank of current process: 0. World size: 2" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "log.txt.rank1").exists()
    assert len(list(tmp_path.glob("model_*.pth"))) == 2  # 0000001 and final


def test_srun_starts_one_training_and_flags_do_not_start_more(
    start_tool: Callable[..., object],
    train_net: Run,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*tiny, *OFTEN.split(), "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path]
    command = ["tools/train_net.py", "--config-file", STAGE_1]
    address, port = two_machines()[3].removeprefix("tcp://").split(":")
    variables = {"MASTER_ADDR": address, "MASTER_PORT": port, "SLURM_STEP_NUM_TASKS": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def start(rank: int) -> object:
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_LOCALID", str(rank))
        return start_tool(*command, *options)

    with start(0) as one, start(1) as other:
        for process in (one, other):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    assert "World size: 2" in (tmp_path / "log.txt").read_text()
    done = train_net("--num-gpus", 2, *options)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: --num-gpus 2: torchrun or srun has started 2")


def test_two_machines_score_as_one(
    trained: Path,
    train_net: Run,
    start_tool: Callable[..., object],
    tables: Tables,
    tmp_path: Path,
) -> None:
    flags = ["--eval-only", *two_machines()]
    config, weights = trained / "config.yaml", ["MODEL.WEIGHTS", trained / "model_final.pth"]
    with start_tool(
        "tools/train_net.py",
        *("--config-file", config, *flags, 0, *weights, "OUTPUT_DIR", tmp_path / "0"),
    ) as process:
        done = train_net(*flags, 1, *weights, "OUTPUT_DIR", tmp_path / "1", config=config)
        assert done.returncode == 0, done.stderr
        log, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "World size: 2" in log
    assert tables(tmp_path / "0") == tables(trained)
    # The folder of the second machine, had it a disk of its own.
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["log.txt.rank1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-gpus 0", "--num-gpus and --num-machines must be at least 1"),
        ("--num-machines 0", "--num-gpus and --num-machines must be at least 1"),
        ("--num-machines 2", "several machines need the same --dist-url, tcp://HOST:PORT"),
        ("--machine-rank 1", "--machine-rank must be between 0 and 0"),
        ("--num-machines 2 --machine-rank 2 --dist-url tcp://127.0.0.1:1", "between 0 and 1"),
        ("--num-machines 2 --machine-rank -1 --dist-url tcp://127.0.0.1:1", "between 0 and 1"),
    ],
)
def test_flags_that_do_not_fit_together(train_net: Run, flags: str, message: str) -> None:
    done = train_net(*flags.split())
    assert done.returncode == 1
    assert message in done.stderr


def test_one_of_two_processes_finds_a_truncated_image(
    train_net: Run, tiny: list[str], tmp_path: Path
) -> None:
    generate_dataset(tmp_path, {"train": 2, "val": 1}, height=96, width=192, seed=3)
    image = min((tmp_path / "cityscapes" / "leftImg8bit" / "train").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:500])
    # One image each, in the only iteration: the end of training must not evaluate, which would
    # wait for ever, and the process that merely lost its partner has nothing to say.
    done = train_net(
        *("--num-gpus", 2, *tiny, "SOLVER.EPOCHS", 1),
        *("DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", tmp_path / "o"),
        root=tmp_path,
    )
    assert done.returncode == 1
    assert "World size: 2" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"{image}: truncated" in error
    assert not (tmp_path / "o" / "model_final.pth").exists()


def assert_stopped(output: Path, process: Process, iterations: int) -> int:
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
    train_net: Run,
    start_tool: Callable[..., object],
    first_checkpoint: Callable[..., None],
    tiny: list[str],
    tmp_path: Path,
) -> None:
    options = [*tiny, *OFTEN.split(), "SOLVER.MAX_ITER", 20]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    resumed = ["--resume", *options, "OUTPUT_DIR", parts]
    with start_tool("tools/train_net.py", "--config-file", STAGE_1, *resumed) as process:
        first_checkpoint(process, parts)
        process.send_signal(signal.SIGTERM)
        iteration = assert_stopped(parts, process, 20)
    done = train_net(*resumed)
    assert done.returncode == 0, done.stderr
    assert f"Starting training from iteration {iteration + 1} of 20" in done.stdout

    assert train_net(*options, "OUTPUT_DIR", whole).returncode == 0
    expected, found = (
        torch.load(output / "model_final.pth", weights_only=True)["model"]
        for output in (whole, parts)
    )
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_sigterm_reaches_every_process(
    start_tool: Callable[..., object],
    first_checkpoint: Callable[..., None],
    tiny: list[str],
    tmp_path: Path,
) -> None:
    with start_tool(
        *("tools/train_net.py", "--config-file", STAGE_1, "--num-gpus", 2, *tiny, *OFTEN.split()),
        *("SOLVER.MAX_ITER", 100_000, "OUTPUT_DIR", tmp_path),
    ) as process:
        first_checkpoint(process, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert_stopped(tmp_path, process, 100_000)
