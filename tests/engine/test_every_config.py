"""Every config of the project trains three iterations and is scored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine import inference, trainer
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY
from cityscapes_maskrcnn.engine.class_check import class_names

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
# Parents of other configs.
NOT_TRAINED = {
    "Base-Cityscapes-R50": "a backbone and the format of images, no model",
    "Base-MaskRCNN-R50-FPN": "a model, without weights and a schedule",
}
# Narrow layers, small images. The rest of the schedule, and what is frozen, are the config's.
SMALL = """
SOLVER.MAX_ITER 3 TEST.EVAL_PERIOD 0 INPUT.CROP.SIZE [64,128] MODEL.RPN.POST_NMS_TOPK_TRAIN 50
MODEL.CONVNEXT.CHANNELS 8 MODEL.CONVNEXT.DEPTHS [1,1,2,1]
MODEL.POINT_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.FC_DIM 8 MODEL.SEM_SEG_HEAD.CONVS_DIM 32
"""


def write_weights(path: Path, cfg: CfgNode) -> dict[str, torch.Tensor]:
    """Write what an earlier stage, or a download, would have given the model of a config.

    The residual branches are small, as those of a trained network: with frozen BatchNorm, random
    ones double the variance block by block.
    """
    state = trainer.Trainer.build_model(cfg).state_dict()
    for name, value in state.items():
        if name.endswith("conv3.norm.weight"):
            value.fill_(0.1)
    torch.save({"model": state, ORIGIN_KEY: {"classes": class_names(cfg)}}, path)
    return state


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save more than half of the time; pictures have tests of their own."""
    monkeypatch.setattr(inference, "plot_errors", lambda *_: [])
    monkeypatch.setattr(trainer, "plot_training_curves", lambda *_, **__: None)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", sorted(NAMES - NOT_TRAINED.keys()))
def test_it_trains_and_is_scored(name: str, config: Callable[..., CfgNode], tmp_path: Path) -> None:
    own = build_config(str(CONFIGS / f"{name}.yaml"), []).MODEL
    weights = tmp_path / "start.pth"
    cfg = config(
        *SMALL.split(),
        *("MODEL.BACKBONE.FREEZE_AT", own.BACKBONE.FREEZE_AT),
        *("MODEL.RESNETS.NORM", own.RESNETS.NORM),
        *("MODEL.FPN.NORM", own.FPN.NORM),
        *("MODEL.WEIGHTS", weights),
        stage=name,
    )
    cfg.freeze()
    before = write_weights(weights, cfg)
    run = trainer.Trainer(cfg)
    run.resume_or_load(False)
    results = run.train()
    is_semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    score = results["sem_seg"]["IoU"] if is_semantic else results["segm"]["AP"]
    assert 0 <= score <= 100
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 2
    changed = {
        name for name, value in before.items() if not torch.equal(saved["model"][name], value)
    }
    assert all(saved["model"][each].isfinite().all() for each in changed)
    parts = {"sem_seg_head"} if is_semantic else {"proposal_generator", "roi_heads"}
    assert {each.partition(".")[0] for each in changed} == {"backbone", *parts}
    below_fpn = {part for part in changed if re.match(r"backbone\.(?!fpn)", part)}
    assert bool(below_fpn) == (own.BACKBONE.FREEZE_AT < 5)


def test_the_others_are_parents_only() -> None:
    assert NOT_TRAINED.keys() <= NAMES
    parents = {
        line.split('"')[1].rpartition("/")[2]
        for path in CONFIGS.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.startswith("_BASE_")
    }
    assert {f"{name}.yaml" for name in NOT_TRAINED} <= parents
