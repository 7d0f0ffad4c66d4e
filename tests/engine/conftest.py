"""A Mask R-CNN so small that an iteration takes a fraction of a second, and trainers of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine.trainer import Trainer

TINY = """
MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 8 MODEL.SEM_SEG_HEAD.CONVS_DIM 8
MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.BATCH_SIZE_PER_IMAGE 8 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8
TEST.DETECTIONS_PER_IMAGE 5 TEST.NUM_WORKERS 0 MODEL.RPN.POST_NMS_TOPK_TEST 20
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TRAIN 128 INPUT.MAX_SIZE_TEST 128
SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0 TRACKING.NUM_PICTURES 0
TEST.ANALYSIS_PICTURES False
SOLVER.EPOCHS 0 SOLVER.MAX_ITER 2 SOLVER.CHECKPOINT_EPOCHS 0 TEST.EVAL_EPOCHS 0
"""
#: TINY with a fresh output folder and the generated data: ``config(*options, stage=...)``.
Config = Callable[..., CfgNode]


def tiny_model(stage: str, *options: object) -> nn.Module:
    """Build the tiny network of a stage, always with the same random weights."""
    torch.manual_seed(5)
    words = [*TINY.split(), *map(str, options)]
    return Trainer.build_model(build_config(f"configs/{stage}.yaml", words))


@pytest.fixture(scope="session")
def build() -> Callable[..., nn.Module]:
    return tiny_model


@pytest.fixture
def remove_files(tmp_path: Path) -> Iterator[None]:
    """Remove what a test has written, 200 MB a file: pytest would keep those of three runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """The defaults of all keys, with a fresh output folder."""
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


@pytest.fixture
def config(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))

    def build(*options: object, stage: str = "stage_1_heads") -> CfgNode:
        words = [*TINY.split(), "MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path, *options]
        return build_config(f"configs/{stage}.yaml", [str(word) for word in words])

    return build


@pytest.fixture
def train(config: Config) -> Callable[..., Trainer]:
    """Train to the end: ``train(*options, kind=Trainer, resume=False)``."""

    def run(*options: object, kind: type[Trainer] = Trainer, resume: bool = False) -> Trainer:
        cfg = config(*options)
        cfg.freeze()
        torch.manual_seed(0)  # random weights, the same in every run
        trainer = kind(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
        return trainer

    return run
