"""Stage 0 as a user runs it, and its handing on to stage 1."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.drift import measure_drift

PROJECT = Path(__file__).parents[2]
GROUPS = ["stem", "res2", "res3", "res4", "res5", "backbone"]
KINDS = ["parameters", "convolutions", "norms", "statistics"]

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


def drift(output: Path) -> dict[str, dict[str, float]]:
    """The lines of drift.csv by group."""
    with (output / "drift.csv").open(newline="") as file:
        return {
            row.pop("group"): {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        }


def measured(output: Path) -> dict[str, dict[str, float]]:
    """What drift.csv must say, by the package's own measure."""
    rows = [asdict(row) for row in measure_drift(*start_and_end(output))]
    return {row.pop("group"): row for row in rows}


def start_and_end(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone before and after training."""
    start = torch.load(output / "start_weights.pth", weights_only=True)
    end = torch.load(output / "model_final.pth", weights_only=True)["model"]
    prefix = "backbone."
    return start, {name.removeprefix(prefix): end[name] for name in end if name.startswith(prefix)}


def relative_way(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], group: str, kind: str
) -> float:
    """|end - start| / |start| over all values of a kind in a group of layers."""

    def is_meant(name: str) -> bool:
        if group not in (name.partition(".")[0], "backbone") or name.endswith(
            "num_batches_tracked"
        ):
            return False
        this = (
            "statistics" if ".running_" in name else "norms" if ".norm." in name else "convolutions"
        )
        return this == kind or (kind == "parameters" and this != "statistics")

    names = [name for name in start if is_meant(name)]
    before, after = (
        torch.cat([state[name].double().flatten() for name in names]) for state in (start, end)
    )
    return float((after - before).norm() / before.norm())


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


def test_drift_is_the_way_from_start_to_end(stage_0: Path) -> None:
    found = drift(stage_0)
    assert list(found) == GROUPS
    assert found == measured(stage_0)
    start, end = start_and_end(stage_0)
    for group in GROUPS:
        for kind in KINDS:
            way = relative_way(start, end, group, kind)
            assert way > 0
            assert found[group][kind] == pytest.approx(way, rel=1e-9)
    # torchvision's ResNet-50 without its classifier: 25,557,032 - 1,000 x (2,048 + 1).
    assert found["backbone"]["num_parameters"] == 23_508_032


def test_a_resumed_run_measures_from_the_first_start(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    options = {
        **SMALL,
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.CROP.SIZE": "[64,128]",
        "SOLVER.BASE_LR": 1e-3,
        "OUTPUT_DIR": tmp_path,
    }

    def train(iterations: int) -> dict[str, dict[str, float]]:
        words = [word for pair in options.items() for word in pair]
        trainer = Trainer(
            build_config(
                str(PROJECT / "configs" / "stage_0_backbone.yaml"),
                [*map(str, [*words, "SOLVER.MAX_ITER", iterations])],
            )
        )
        trainer.resume_or_load(resume=True)
        trainer.train()
        return drift(tmp_path)

    before = train(1)
    start = (tmp_path / "start_weights.pth").read_bytes()
    after = train(2)
    assert (tmp_path / "start_weights.pth").read_bytes() == start
    assert after == measured(tmp_path)
    # Adam's second step goes on in the direction of the first.
    assert after["backbone"]["parameters"] > 1.2 * before["backbone"]["parameters"] > 0


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
