"""Stage 0 as a user runs it, and its handing on to stage 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parents[2]

SMALL = {
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "INPUT.MAX_SIZE_TRAIN": 192,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 192,
}


def train_net(root: Path, config: str, *options: object) -> str:
    words = [word for pair in SMALL.items() for word in pair] + list(options)
    done = subprocess.run(
        [sys.executable, "tools/train_net.py", "--config-file", config, *map(str, words)],
        env={**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stage_0(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the whole DeepLabv3 from random weights: 5 images are 3 iterations."""
    output = tmp_path_factory.mktemp("stage_0")
    train_net(
        small_root,
        "configs/stage_0_backbone.yaml",
        *("MODEL.WEIGHTS", "", "SOLVER.EPOCHS", 1, "OUTPUT_DIR", output),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.SIZE", "[64,128]"),
    )
    return output


def test_stage_0_reports_loss_score_and_drift(stage_0: Path) -> None:
    metrics: dict[str, float] = {}
    for line in (stage_0 / "metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert {"validation/loss_sem_seg", "sem_seg/IoU", "lr"} <= metrics.keys()
    # A single loss is called total_loss by Detectron2.
    assert metrics["total_loss"] > 0
    assert (stage_0 / "inference" / "cityscapes_semantic_results.json").exists()
    assert all((stage_0 / f"drift.{suffix}").stat().st_size for suffix in ("csv", "md", "png"))
    assert "res5" in (stage_0 / "drift.md").read_text()


def test_stage_1_takes_and_keeps_the_backbone(
    stage_0: Path, small_root: Path, tmp_path: Path
) -> None:
    log = train_net(
        small_root,
        "configs/stage_1_heads.yaml",
        *("MODEL.WEIGHTS", stage_0 / "model_final.pth", "SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 1),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "OUTPUT_DIR", tmp_path),
    )
    assert "265 of the 265 backbone tensors in the model are bit-equal" in log
    assert "All 265 frozen tensors are bit-equal to those that training started with" in log
    before = torch.load(stage_0 / "model_final.pth", weights_only=True)["model"]
    after = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    prefix = "backbone.bottom_up."
    kept = {name.removeprefix(prefix): value for name, value in after.items() if prefix in name}
    given = {name.removeprefix("backbone."): value for name, value in before.items()}
    names = [name for name in kept if not name.endswith("num_batches_tracked")]
    assert len(names) == 265
    assert all(torch.equal(kept[name], given[name]) for name in names)
