"""Every config, merged: what each stage changes against its parent, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from yacs.config import CfgNode

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all

CONFIGS = Path(__file__).parents[1] / "configs"
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def flatten(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(child: str, parent: str) -> dict[str, Any]:
    theirs = flatten(build_config(str(CONFIGS / parent), []))
    ours = flatten(build_config(str(CONFIGS / child), []))
    assert ours.keys() == theirs.keys()
    return {key: value for key, value in ours.items() if value != theirs[key]}


@pytest.mark.parametrize("name", ALL)
def test_every_config_merges(name: str) -> None:
    assert build_config(str(CONFIGS / name), []).VERSION == 2


def test_stage_1_against_mask_rcnn() -> None:
    assert differences("stage_1_heads.yaml", "Base-MaskRCNN-R50-FPN.yaml") == {
        "MODEL.WEIGHTS": "output/stage_0/model_final.pth",
        "MODEL.BACKBONE.FREEZE_AT": 5,
        "SOLVER.EPOCHS": 4,
        "SOLVER.CHECKPOINT_EPOCHS": 1,
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.BASE_LR_END": 1e-5,
        "SOLVER.WARMUP_ITERS": 200,
        "TEST.EVAL_EPOCHS": 1,
        "TEST.VALIDATION_LOSS": True,
    }


def test_stage_2_search_against_stage_1() -> None:
    assert differences("stage_2_search.yaml", "stage_1_heads.yaml") == {
        "MODEL.WEIGHTS": "output/stage_1/model_final.pth",
        "DATASETS.TRAIN": ("cityscapes_instance_train_part1of8",),
        "DATASETS.TEST": ("cityscapes_instance_val_part1of4",),
        "SOLVER.EPOCHS": 5,
        "SOLVER.BASE_LR": 4e-5,
        "SOLVER.WARMUP_ITERS": 46,
        "TEST.EVAL_EPOCHS": 0,
        "TEST.EVAL_PERIOD": 47,
        "TEST.VALIDATION_LOSS": False,
    }


def test_stage_2_tuned_against_stage_1() -> None:
    assert differences("stage_2_tuned.yaml", "stage_1_heads.yaml") == {
        "MODEL.WEIGHTS": "output/stage_1/model_final.pth",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[31], [73], [131], [210], [330]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.2, 1.7]],
        "MODEL.RPN.IOU_THRESHOLDS": [0.2198, 0.7889],
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.2077, 0.4154],
        "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
        "DATASETS.TEST": ("cityscapes_instance_val_part2of4",),
        "DATASETS.TUNED_ON": ("cityscapes_instance_val_part1of4",),
        "SOLVER.EPOCHS": 6,
    }


def test_stage_3_against_stage_2() -> None:
    assert differences("stage_3_refine.yaml", "stage_2_tuned.yaml") == {
        "MODEL.WEIGHTS": "output/stage_2/model_final.pth",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "DATASETS.TRAIN": ("cityscapes_instance_val_part1of4", "cityscapes_instance_val_part2of4"),
        "DATASETS.TEST": ("cityscapes_instance_val_part3and4of4",),
        "SOLVER.EPOCHS": 2,
        "SOLVER.BASE_LR": 1e-5,
        "SOLVER.BASE_LR_END": 1e-6,
        "SOLVER.WARMUP_ITERS": 12,
    }


def test_stage_2_trains_as_the_recipe_says() -> None:
    """These it inherits from stage 1: AdamW 1e-4, weight decay 1e-4, cosine to 1e-5, frozen."""
    cfg = build_config(str(CONFIGS / "stage_2_tuned.yaml"), [])
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("AdamW", 1e-4, 1e-4)
    assert (solver.LR_SCHEDULER_NAME, solver.BASE_LR_END) == ("WarmupCosineLR", 1e-5)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 5
    assert cfg.TEST.VALIDATION_LOSS


def test_no_stage_reports_on_what_it_or_an_ancestor_saw(small_root: Path) -> None:
    """By name of the parts: 1 and 2 are trained or tuned on, 3 and 4 reported on."""
    from detectron2.data import DatasetCatalog

    register_all(str(small_root))
    used: set[str] = set()
    for stage in ("stage_0_backbone", "stage_1_heads", "stage_2_tuned", "stage_3_refine"):
        cfg = build_config(str(CONFIGS / f"{stage}.yaml"), [])
        register_all(str(small_root))
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TUNED_ON):
            if not name.startswith("cityscapes_coarse"):
                used |= {image["image_id"] for image in DatasetCatalog.get(name)}
    reported = {image["image_id"] for image in DatasetCatalog.get(cfg.DATASETS.TEST[0])}
    # 6 images of val are 2 2 1 1 in its parts.
    assert len(reported) == 2
    assert not used & reported
