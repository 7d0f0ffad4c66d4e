"""The configs of other backbones as a user runs them, on small images, and what they hand on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs"
Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = """
MODEL.CONVNEXT.CHANNELS 8 MODEL.CONVNEXT.DEPTHS [1,1,2,1]
SOLVER.EPOCHS 0 SOLVER.MAX_ITER 3 TEST.EVAL_EPOCHS 0 SOLVER.DRIFT_REPORT True
"""


@pytest.mark.parametrize(
    ("folder", "tensors"),
    # 5 tensors for each of the 104 convolutions; 4 + 3 x 4 and 9 in each of the 5 blocks.
    [("r101", 104 * 5), ("convnext_t", 61)],
)
def test_it_trains_is_scored_and_is_handed_on(
    folder: str,
    tensors: int,
    train_net: Run,
    tiny: list[str],
    metrics: Callable[[Path], dict[str, float]],
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "stage_1", tmp_path / "stage_2"
    options = [*tiny, *SMALL.split()]
    done = train_net(*options, "OUTPUT_DIR", first, config=CONFIGS / folder / "stage_1_heads.yaml")
    assert done.returncode == 0, done.stderr
    assert {"loss_mask", "segm/AP", "validation/loss_mask"} <= metrics(first).keys()
    assert torch.load(first / "model_final.pth", weights_only=True)["iteration"] == 2
    rows = (first / "drift.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == [
        *("stem", "res2", "res3", "res4", "res5", "backbone"),
    ]
    assert all(float(row.split(",")[2]) > 0 for row in rows[1:])
    done = train_net(
        *(*options, "MODEL.WEIGHTS", first / "model_final.pth", "MODEL.BACKBONE.FREEZE_AT", 5),
        *("SOLVER.DRIFT_REPORT", False, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()"),
        *("TEST.VALIDATION_LOSS", False, "OUTPUT_DIR", second),
        config=CONFIGS / folder / "stage_2_tuned.yaml",
    )
    assert done.returncode == 0, done.stderr
    assert f"{tensors} of the {tensors} backbone tensors in the model are bit-equal" in done.stdout
