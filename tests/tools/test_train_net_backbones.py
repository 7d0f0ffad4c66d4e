"""The configs of other backbones as a user runs them, on small images, and what they hand on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = """
MODEL.CONVNEXT.CHANNELS 8 MODEL.CONVNEXT.DEPTHS [1,1,2,1] MODEL.SEM_SEG_HEAD.CONVS_DIM 32
INPUT.CROP.SIZE [64,128] INPUT.MIN_SIZE_TRAIN (80,)
SOLVER.EPOCHS 0 SOLVER.MAX_ITER 3 TEST.EVAL_EPOCHS 0 SOLVER.CHECKPOINT_EPOCHS 0
"""


@pytest.mark.parametrize(
    ("first", "second", "tensors"),
    [
        # 104 convolutions with 4 tensors of BatchNorm each.
        ("r101/stage_0_backbone", "r101/stage_1_heads", 104 * 5),
        # 4 of the stem, 3 x 4 of the downsampling, 9 of each of the 5 blocks.
        ("convnext_t/stage_0_backbone", "convnext_t/stage_1_heads", 61),
    ],
)
def test_it_trains_is_scored_and_is_handed_on(
    first: str,
    second: str,
    tensors: int,
    train_net: Run,
    tiny: list[str],
    metrics: Callable[[Path], dict[str, float]],
    tmp_path: Path,
) -> None:
    def train(config: str, *options: object) -> str:
        output = ("OUTPUT_DIR", tmp_path / config)
        words = (*tiny, *SMALL.split(), *options, *output)
        done = train_net(*words, config=CONFIGS / f"{config}.yaml")
        assert done.returncode == 0, done.stderr
        return done.stdout

    train(first, "SOLVER.DRIFT_REPORT", True)
    drift = (tmp_path / first / "drift.csv").read_text().splitlines()[1:]
    groups = ["stem", "res2", "res3", "res4", "res5", "backbone"]
    assert [row.partition(",")[0] for row in drift] == groups
    assert all(float(row.split(",")[2]) > 0 for row in drift)
    weights = ("MODEL.WEIGHTS", tmp_path / first / "model_final.pth")
    log = train(second, *weights, "MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.RESNETS.NORM", "FrozenBN")
    assert f"{tensors} of the {tensors} backbone tensors in the model are bit-equal" in log
    assert f"All {tensors} frozen tensors are bit-equal to those that training started" in log
    assert {"loss_mask", "segm/AP"} <= metrics(tmp_path / second).keys()
    assert {"validation/loss_sem_seg", "sem_seg/IoU"} <= metrics(tmp_path / first).keys()
    if "convnext" in first:
        # The pyramid goes along: 4 convolutions of each kind, here with BatchNorm's 5 tensors.
        assert "used      24  of backbone.fpn_lateral*" in log
        assert "used      24  of backbone.fpn_output*" in log
