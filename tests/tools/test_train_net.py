"""train_net.py on one process, and what several processes and machines make of its model."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

PROJECT = Path(__file__).parents[2]

TrainNet = Callable[..., subprocess.CompletedProcess[str]]
Metrics = Callable[[Path], dict[str, float]]


def averages(output: Path) -> dict[str, float]:
    """The official averages that an evaluation left behind."""
    return json.loads((output / "inference" / "cityscapes_results.json").read_text())["averages"]


def tables(output: Path) -> dict[str, str]:
    """All that an evaluation counted, by file: every prediction that counts is in it."""
    folder = output / "inference" / "analysis"
    found = {path.name: path.read_text() for path in folder.glob("*.csv")}
    assert len(found) == 5
    # Were nothing found, all evaluations would agree.
    (header, *rows) = csv.reader(found["per_class.csv"].splitlines())
    columns = [header.index(name) for name in ("objects", "found", "false_positives")]
    objects, *shown = (sum(int(row[column]) for row in rows) for column in columns)
    assert objects > 0
    assert sum(shown) > 20
    return found


def checkpoint(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def trained(train_net: TrainNet, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of the tiny model: 2 x ceil(images / 2) iterations."""
    output = tmp_path_factory.mktemp("trained")
    done = train_net(*tiny, "SOLVER.EPOCHS", 2, "TEST.VALIDATION_LOSS", True, "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


def test_epochs_become_iterations(trained: Path) -> None:
    log = (trained / "stdout").read_text()
    images = int(re.search(r"one epoch: (\d+) images / 2 a batch", log).group(1))
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["SOLVER"]["EPOCHS"] == 2
    assert config["SOLVER"]["MAX_ITER"] == 2 * math.ceil(images / 2)
    # Checkpoints and evaluations: one an epoch.
    assert config["SOLVER"]["CHECKPOINT_PERIOD"] == math.ceil(images / 2)
    last = torch.load(trained / "model_final.pth", weights_only=True)["iteration"]
    assert last == config["SOLVER"]["MAX_ITER"] - 1


def test_output_folder_is_detectron2s(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.") for name in names)
    assert (trained / "training_curves.png").stat().st_size > 1000


def test_metrics_hold_both_losses_and_official_scores(trained: Path, metrics: Metrics) -> None:
    merged = metrics(trained)
    assert {"total_loss", "validation/total_loss", "validation/loss_mask"} <= merged.keys()
    assert merged["segm/AP"] == pytest.approx(100 * averages(trained)["allAp"], abs=1e-9)
    assert {"coco_segm/AP", "coco_bbox/AP"} <= merged.keys()


def test_eval_only_repeats_the_score(trained: Path, train_net: TrainNet, tmp_path: Path) -> None:
    done = train_net(
        "--eval-only",
        *("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path),
        config=trained / "config.yaml",
    )
    assert done.returncode == 0, done.stderr
    assert averages(tmp_path) == averages(trained)
    assert tables(tmp_path) == tables(trained)


def test_a_refused_command_leaves_the_config_of_the_run(
    trained: Path, train_net: TrainNet, tiny: list[str], tmp_path: Path
) -> None:
    """The folder's model is scored with its config.yaml, and its anchors are read from there."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "config.yaml").read_bytes()
    other = ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[16],[32],[64],[128]]", "OUTPUT_DIR", tmp_path)
    missing = ("MODEL.WEIGHTS", tmp_path / "missing.pth")
    for refused, message in (
        (("--resume", *tiny, "MODEL.FPN.FREEZE", True), "trained with other frozen layers"),
        ((*tiny, *missing), "missing.pth: no such file"),
        (("--eval-only", *tiny, *missing), "missing.pth: no such file"),
    ):
        done = train_net(*refused, *other)
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]
        assert (tmp_path / "config.yaml").read_bytes() == before


def test_scoring_into_the_folder_of_a_training_keeps_its_config(
    trained: Path, train_net: TrainNet, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "config.yaml").read_bytes()
    done = train_net(
        *("--eval-only", "MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path),
        *("DATASETS.TEST", "('cityscapes_instance_val_part1of4',)"),
        config=tmp_path / "config.yaml",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_two_processes_measure_what_one_does(
    trained: Path, train_net: TrainNet, metrics: Metrics, tmp_path: Path
) -> None:
    """A run that has ended, asked to go on, writes its last losses and scores once more."""
    output = tmp_path / "again"
    shutil.copytree(trained, output)
    shutil.rmtree(output / "inference")
    (output / "metrics.json").unlink()
    # 6 images on one process, 3 on each of two.
    done = train_net(
        "--resume", "--num-gpus", 2, "OUTPUT_DIR", output, config=trained / "config.yaml"
    )
    assert done.returncode == 0, done.stderr
    assert "World size: 2" in done.stdout
    assert tables(output) == tables(trained)
    before, after = metrics(trained), metrics(output)
    names = [name for name in before if name.startswith(("validation/", "segm/", "coco_"))]
    assert "validation/total_loss" in names
    assert {name: after[name] for name in names} == pytest.approx(
        {name: before[name] for name in names}, rel=1e-5
    )


@pytest.fixture
def two_machines(
    trained: Path, start_train_net: Callable[..., object], tmp_path: Path
) -> Callable[[str], list[subprocess.CompletedProcess[str]]]:
    """Run train_net.py on what it takes for two machines, whose folders are 0 and 1."""

    def run(flag: str) -> list[subprocess.CompletedProcess[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{free.getsockname()[1]}"

        def machine(rank: int) -> object:
            return start_train_net(
                *(flag, "--num-machines", 2, "--machine-rank", rank, "--dist-url", url),
                *("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path / str(rank)),
                config=trained / "config.yaml",
            )

        with machine(0) as first, machine(1) as second:
            return [
                subprocess.CompletedProcess([], process.returncode, *ends)
                for process in (first, second)
                if (ends := process.communicate(timeout=300))
            ]

    return run


def test_two_machines_resume_at_the_same_place_or_not_at_all(
    trained: Path, two_machines: Callable[..., list[Any]], tmp_path: Path
) -> None:
    # The second machine does not see the folder of the first, and would start anew.
    shutil.copytree(trained, tmp_path / "0")
    ends = two_machines("--resume")
    assert [end.returncode for end in ends] == [1, 1], ends
    last = torch.load(trained / "model_final.pth", weights_only=True)["iteration"]
    message = f"--resume: the processes would go on from iterations [{last + 1}, 0]; all machines"
    assert all(message in end.stderr for end in ends)


def test_two_machines_score_as_one(
    trained: Path, two_machines: Callable[..., list[Any]], tmp_path: Path
) -> None:
    ends = two_machines("--eval-only")
    assert [end.returncode for end in ends] == [0, 0], ends
    assert "World size: 2" in ends[0].stdout
    assert averages(tmp_path / "0") == averages(trained)
    assert tables(tmp_path / "0") == tables(trained)
    # The folder of the second machine, had it a disk of its own.
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["log.txt.rank1"]


def test_frozen_backbone_stays_bit_equal(
    trained: Path, train_net: TrainNet, tiny: list[str], tmp_path: Path
) -> None:
    weights = trained / "model_final.pth"
    frozen = ["MODEL.WEIGHTS", weights, "MODEL.BACKBONE.FREEZE_AT", 5, "SOLVER.EPOCHS", 1]
    done = train_net(*tiny, *frozen, "OUTPUT_DIR", tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = checkpoint(weights), checkpoint(tmp_path / "model_final.pth")
    backbone = [
        name for name in before if name.startswith("backbone.bottom_up.") and "num_" not in name
    ]
    # 53 convolutions and their normalisations: 53 x (1 + 4) tensors.
    assert len(backbone) == 265
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    assert not torch.equal(
        before["backbone.fpn_output2.weight"], after["backbone.fpn_output2.weight"]
    )


def test_detectron2s_own_cityscapes_config_trains_and_scores(
    train_net: TrainNet, metrics: Metrics, tmp_path: Path
) -> None:
    done = train_net(
        *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96, "SOLVER.IMS_PER_BATCH", 1),
        *("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 0),
        # Random weights under this config's frozen BatchNorm diverge at any larger rate.
        *("SOLVER.BASE_LR", 1e-6, "SEED", 42),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.ANALYSIS_CONFIDENCE", 0.0),
        config="model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml",
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["DATASETS"]["TRAIN"] == ["cityscapes_fine_instance_seg_train"]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1
    first, last = (checkpoint(tmp_path / f"model_{n}.pth") for n in ("0000000", "final"))
    moved = {name.partition(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"backbone", "proposal_generator", "roi_heads"}
    merged = metrics(tmp_path)
    assert 0 < merged["total_loss"] < math.inf
    tables(tmp_path)
    classes = averages(tmp_path)["classes"]
    assert list(classes) == [
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]
    # NaN, null in the file, is the score of a class that no image has.
    known = {
        f"segm/AP-{name}": 100 * each["ap"]
        for name, each in classes.items()
        if each["ap"] is not None
    }
    assert {key: merged[key] for key in merged if key.startswith("segm/AP-")} == known
    assert "segm/AP-car" in known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.EPOCS", "3"], "no config key SOLVER.EPOCS; did you mean SOLVER.EPOCHS?"),
        (["DATASETS.TRAIN", "('cityscapes_instance_trian',)"], "cityscapes_instance_trian"),
        (["MODEL.WEIGHTS", "missing.pth", "SOLVER.EPOCHS", "1"], "missing.pth: no such file"),
        (["--config-file", "configs/missing.yaml"], "configs/missing.yaml: no such file"),
    ],
)
def test_bad_input_gets_one_line(
    train_net: TrainNet, tiny: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    is_flag = arguments[0].startswith("--")
    done = train_net(*(arguments if is_flag else [*tiny, *arguments, "OUTPUT_DIR", tmp_path]))
    assert done.returncode == 1
    # Above it may stand deprecation warnings, from the imports of Detectron2.
    assert done.stderr.count("error: ") == 1, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


def test_help_shows_detectron2s_flags() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "tools" / "train_net.py", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    for flag in ("--config-file", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url"):
        assert flag in done.stdout
    assert {"--resume", "--eval-only"} <= set(re.findall(r"--[a-z-]+", done.stdout))
