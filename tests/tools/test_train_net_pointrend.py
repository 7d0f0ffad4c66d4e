"""PointRend's config as a user runs it, on small images."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

PROJECT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

SMALL = """
MODEL.ROI_MASK_HEAD.FC_DIM 32 MODEL.POINT_HEAD.FC_DIM 16
SOLVER.MAX_ITER 3 SOLVER.STEPS (2,) TEST.EVAL_PERIOD 0
"""


def test_it_trains_and_its_masks_score_alike_pasted_and_unpasted(
    train_net: Run,
    tiny: list[str],
    metrics: Callable[[Path], dict[str, float]],
    tables: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    config = PROJECT / "configs" / "pointrend_rcnn_R_50_FPN.yaml"
    output, pasted = tmp_path / "trained", tmp_path / "pasted"
    done = train_net(
        *tiny, *SMALL.split(), "TEST.VALIDATION_LOSS", True, "OUTPUT_DIR", output, config=config
    )
    assert done.returncode == 0, done.stderr
    merged = metrics(output)
    assert {"loss_mask_point", "validation/loss_mask_point", "segm/AP"} <= merged.keys()
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 2
    done = train_net(
        *("--eval-only", "MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", pasted),
        *("TEST.UNPASTED_MASKS", False),
        config=output / "config.yaml",
    )
    assert done.returncode == 0, done.stderr
    assert tables(pasted) == tables(output)
