"""Fitted anchors through train_net.py: trained here, scored where there is no training data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[2]
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 8
MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.RESNETS.NORM BN MODEL.FPN.OUT_CHANNELS 8
MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.BACKBONE.FREEZE_AT 0 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
MODEL.RPN.POST_NMS_TOPK_TEST 20 SOLVER.IMS_PER_BATCH 2 SOLVER.EPOCHS 0 SOLVER.MAX_ITER 1
TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False DATASETS.TEST () DATALOADER.NUM_WORKERS 0
MODEL.ANCHOR_GENERATOR.NAME KMeansAnchorGenerator MODEL.ANCHOR_GENERATOR.SIZES []
"""


def train_net(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROJECT / "tools" / "train_net.py", *map(str, arguments)],
        env={**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def anchors(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "config.yaml").read_text())["MODEL"]["ANCHOR_GENERATOR"]


def test_fitted_once_and_scored_elsewhere(small_root: Path, tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "stage", tmp_path / "elsewhere"
    config = PROJECT / "configs" / "stage_1_heads.yaml"
    start = ("--config-file", config)
    done = train_net(small_root, *start, *TINY.split(), "MODEL.WEIGHTS", "", "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stderr
    assert "fitted to cityscapes_instance_train" in done.stdout
    assert "What is trained:" in done.stdout
    fitted = anchors(output)
    assert [len(level) for level in fitted["SIZES"]] == [1] * 5
    # At 64 rows no object has the default sizes, 32 to 512.
    assert fitted["SIZES"][-1][0] < 64

    # Another machine, which has the validation images only.
    for folder in ("leftImg8bit", "gtFine"):
        (elsewhere / "cityscapes" / folder).mkdir(parents=True)
        source = small_root / "cityscapes" / folder / "val"
        (elsewhere / "cityscapes" / folder / "val").symlink_to(source)
    done = train_net(
        elsewhere,
        *("--config-file", output / "config.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", tmp_path / "score"),
        *("DATASETS.TEST", "('cityscapes_instance_val',)"),
    )
    assert done.returncode == 0, done.stderr
    assert anchors(tmp_path / "score") == fitted
    assert (tmp_path / "score" / "inference" / "cityscapes_results.json").exists()
