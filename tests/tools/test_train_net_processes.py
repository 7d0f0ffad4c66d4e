"""train_net.py on two processes: they train one model, and an error of one ends both."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.cli import argument_parser, build_config, launch
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset
from cityscapes_maskrcnn.utils.errors import InputError

PROJECT = Path(__file__).parents[2]
STAGE_1 = PROJECT / "configs" / "stage_1_heads.yaml"

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

TrainNet = Callable[..., subprocess.CompletedProcess[str]]
Metrics = Callable[[Path], dict[str, float]]


def step_alone(position: int, options: list[str]) -> dict[str, torch.Tensor]:
    """The model after one step on the image at a position of the training stream."""
    cfg = build_config(str(STAGE_1), [*options, "SOLVER.IMS_PER_BATCH", "1", "DATASETS.TEST", "()"])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.stream.start_batch = position
    trainer.train()
    return trainer.model.state_dict()


def tables(output: Path) -> dict[str, str]:
    """What the evaluation of each dataset counted."""
    folder = output / "inference"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.csv")}


def false_positives(output: Path, dataset: str) -> int:
    path = output / "inference" / dataset / "analysis" / "per_class.csv"
    with path.open(newline="") as file:
        return sum(int(row["false_positives"]) for row in csv.DictReader(file))


def test_two_processes_train_one_model(
    train_net: TrainNet,
    metrics: Metrics,
    tiny: list[str],
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    options = [*tiny, *ONE_STEP.split(), "TEST.VALIDATION_LOSS", "True"]
    torch.manual_seed(0)
    start = Trainer.build_model(build_config(str(STAGE_1), options))
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
    assert all(false_positives(two, name) > 0 for name in SCORED)
    assert tables(one) == tables(two)
    losses, again = metrics(two), metrics(one)
    names = [name for name in losses if name.startswith("validation/")]
    assert "validation/total_loss" in names
    assert {name: again[name] for name in names} == pytest.approx(
        {name: losses[name] for name in names}, rel=1e-5
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-gpus", "0"], "count processes and machines: at least 1"),
        (["--num-machines", "0"], "count processes and machines: at least 1"),
        (["--num-machines", "2"], "several machines need the same --dist-url tcp://HOST:PORT"),
        (["--machine-rank", "1"], "--machine-rank must be between 0 and 0"),
        (
            ["--num-machines", "2", "--machine-rank", "2", "--dist-url", "tcp://127.0.0.1:1"],
            "--machine-rank must be between 0 and 1",
        ),
        (
            ["--num-machines", "2", "--machine-rank", "-1", "--dist-url", "tcp://127.0.0.1:1"],
            "--machine-rank must be between 0 and 1",
        ),
    ],
)
def test_flags_that_do_not_fit_together(flags: list[str], message: str) -> None:
    def never(_args: object) -> None:
        raise AssertionError("started")

    args = argument_parser("Test.").parse_args([*flags, "--config-file", str(STAGE_1)])
    with pytest.raises(InputError) as caught:
        launch(never, args)
    assert message in str(caught.value)


def test_one_of_two_processes_finds_a_truncated_image(
    train_net: TrainNet, tiny: list[str], tmp_path: Path
) -> None:
    generate_dataset(tmp_path, {"train": 2, "val": 1}, 96, 192, seed=3)
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
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{image}: truncated" in errors[0]
    assert not (tmp_path / "o" / "model_final.pth").exists()
