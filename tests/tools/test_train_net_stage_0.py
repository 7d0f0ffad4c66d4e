"""Stage 0 through train_net.py, and its backbone in stage 1."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.modeling.drift import measure_drift

PROJECT = Path(__file__).parents[2]

# A narrow DeepLabv3 on images of 96x192.
TINY = """
MODEL.DEVICE cpu MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.RESNETS.STEM_OUT_CHANNELS 8
MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 8
INPUT.MIN_SIZE_TRAIN (64,) INPUT.CROP.SIZE [64,128] INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 192
SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 1e-3 DATALOADER.NUM_WORKERS 0
"""

Run = Callable[..., subprocess.CompletedProcess[str]]
Train = Callable[..., Path]


def drift(output: Path) -> dict[str, dict[str, float]]:
    """The lines of drift.csv by group."""
    with (output / "drift.csv").open(newline="") as file:
        return {
            row.pop("group"): {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        }


def measured(output: Path) -> dict[str, dict[str, float]]:
    """What drift.csv must hold, from the backbone before and after training."""
    start = torch.load(output / "start_weights.pth", weights_only=True)
    end = torch.load(output / "model_final.pth", weights_only=True)["model"]
    prefix = "backbone."
    end = {name.removeprefix(prefix): end[name] for name in end if name.startswith(prefix)}
    rows = [asdict(row) for row in measure_drift(start, end)]
    return {row.pop("group"): row for row in rows}


@pytest.fixture(scope="module")
def train_stage_0(train_net: Run) -> Train:
    """Train from random weights into a folder, or go on there."""

    def train(output: Path, *options: object) -> Path:
        done = train_net(
            *("--resume", *TINY.split(), "MODEL.WEIGHTS", "", *options, "OUTPUT_DIR", output),
            config=PROJECT / "configs" / "stage_0_backbone.yaml",
        )
        assert done.returncode == 0, done.stderr
        return output

    return train


@pytest.fixture(scope="module")
def stage_0(train_stage_0: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch: 5 images are 3 iterations."""
    return train_stage_0(tmp_path_factory.mktemp("stage_0"), "SOLVER.EPOCHS", 1)


def test_stage_0_reports_loss_score_and_drift(
    stage_0: Path, metrics: Callable[[Path], dict[str, float]]
) -> None:
    merged = metrics(stage_0)
    assert {"validation/loss_sem_seg", "sem_seg/IoU", "lr"} <= merged.keys()
    # A single loss is called total_loss by Detectron2.
    assert merged["total_loss"] > 0
    assert (stage_0 / "inference" / "cityscapes_semantic_results.json").exists()
    assert all((stage_0 / f"drift.{suffix}").stat().st_size for suffix in ("csv", "md"))
    # From random weights: see the test of the report.
    assert not (stage_0 / "drift.png").exists()
    found = drift(stage_0)
    assert list(found) == ["stem", "res2", "res3", "res4", "res5", "backbone"]
    assert found == measured(stage_0)
    assert all(row["parameters"] > 0 for row in found.values())


def test_a_resumed_run_measures_drift_from_the_first_start(
    stage_0: Path, train_stage_0: Train, tmp_path: Path
) -> None:
    shutil.copytree(stage_0, tmp_path, dirs_exist_ok=True)
    train_stage_0(tmp_path, "SOLVER.EPOCHS", 2)
    weights = "start_weights.pth"
    assert (tmp_path / weights).read_bytes() == (stage_0 / weights).read_bytes()
    assert drift(tmp_path) == measured(tmp_path)
    # Six steps of Adam instead of three lead further away.
    after, before = (drift(output)["backbone"]["parameters"] for output in (tmp_path, stage_0))
    assert after > 1.2 * before


def test_stage_1_loads_the_backbone_and_keeps_it_bit_equal(
    stage_0: Path, train_net: Run, tiny: list[str], tmp_path: Path
) -> None:
    done = train_net(
        *tiny,
        *("MODEL.WEIGHTS", stage_0 / "model_final.pth", "MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.BACKBONE.FREEZE_AT", 5, "DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False),
        *("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "265 of the 265 backbone tensors in the model are bit-equal" in done.stdout
    assert "All 265 frozen tensors are bit-equal to those that training started with" in done.stdout
    before, early, after = (
        torch.load(path, weights_only=True)["model"]
        for path in (
            stage_0 / "model_final.pth",
            tmp_path / "model_0000000.pth",
            tmp_path / "model_final.pth",
        )
    )
    prefix = "backbone.bottom_up."
    kept = {
        name: value
        for name, value in after.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
    # 53 convolutions and their normalisations: 53 x (1 + 4) tensors.
    assert len(kept) == 265
    for name, value in kept.items():
        assert torch.equal(value, before[name.replace(prefix, "backbone.")]), name
    trained = "backbone.fpn_output2.weight"
    assert not torch.equal(early[trained], after[trained])
