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
    """What a config sets to another value than its parent; parent "": the defaults."""
    theirs = flatten(build_config(str(CONFIGS / parent) if parent else "", []))
    ours = flatten(build_config(str(CONFIGS / child), []))
    assert ours.keys() == theirs.keys()
    return {key: value for key, value in ours.items() if value != theirs[key]}


@pytest.mark.parametrize("name", ALL)
def test_every_config_merges(name: str) -> None:
    assert build_config(str(CONFIGS / name), []).VERSION == 2


def test_what_all_stages_share() -> None:
    assert differences("Base-Cityscapes-R50.yaml", "") == {
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        # torchvision's, RGB: 255 x (0.485 0.456 0.406) and 255 x (0.229 0.224 0.225)
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        "SOLVER.IMS_PER_BATCH": 4,
        "SEED": 42,
    }
    assert build_config(str(CONFIGS / "Base-Cityscapes-R50.yaml"), []).MODEL.RESNETS.DEPTH == 50


def test_mask_rcnn_against_what_all_share() -> None:
    assert differences("Base-MaskRCNN-R50-FPN.yaml", "Base-Cityscapes-R50.yaml") == {
        "MODEL.MASK_ON": True,
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "INPUT.MIN_SIZE_TRAIN": (800, 832, 864, 896, 928, 960, 992, 1024),
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TEST": 2048,
        "DATASETS.TRAIN": ("cityscapes_instance_train",),
        "DATASETS.TEST": ("cityscapes_instance_val",),
    }


def test_stage_0_against_what_all_share() -> None:
    name = "stage_0_backbone.yaml"
    assert differences(name, "Base-Cityscapes-R50.yaml") == {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.WEIGHTS": "torchvision://deeplabv3_resnet50",
        "MODEL.BACKBONE.NAME": "build_dilated_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.SEM_SEG_HEAD.NAME": "TorchvisionDeepLabV3Head",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
        "MODEL.SEM_SEG_HEAD.NORM": "BN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
        # x 0.5 to x 1.5 of 1024, in steps of an eighth
        "INPUT.MIN_SIZE_TRAIN": (512, 640, 768, 896, 1024, 1152, 1280, 1408, 1536),
        "INPUT.MAX_SIZE_TRAIN": 3072,
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TEST": 2048,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [512, 1024],
        "INPUT.CROP.AFTER_RESIZE": True,
        "DATASETS.TRAIN": ("cityscapes_coarse_semantic_pretrain",),
        "DATASETS.TEST": ("cityscapes_coarse_semantic_pretrain_val",),
        "SOLVER.EPOCHS": 12,
        "SOLVER.CHECKPOINT_EPOCHS": 1,
        "SOLVER.OPTIMIZER": "Adam",
        "SOLVER.BASE_LR": 1e-6,
        "SOLVER.WEIGHT_DECAY": 0.0,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.LR_SCHEDULER_NAME": "ReduceLROnPlateau",
        "SOLVER.EARLY_STOPPING.ENABLED": True,
        "SOLVER.EARLY_STOPPING.PATIENCE": 6,
        "SOLVER.DRIFT_REPORT": True,
        "TEST.EVAL_EPOCHS": 1,
        "TEST.VALIDATION_LOSS": True,
    }
    # What it says although the defaults say the same.
    cfg = build_config(str(CONFIGS / name), [])
    assert (cfg.SOLVER.PLATEAU.FACTOR, cfg.SOLVER.PLATEAU.PATIENCE) == (0.1, 3)
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == 0.0
    assert cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS == [12, 24, 36]
    assert cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT == 0.5
    assert cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE == 255
    assert cfg.INPUT.RANDOM_FLIP == "horizontal"


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


# Sizes of images and networks, lengths and places: what makes the demo small.
BACKBONE = {
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "MODEL.RESNETS.RES2_OUT_CHANNELS"),
    "MODEL.RESNETS.WIDTH_PER_GROUP",
}
IMAGES = {f"INPUT.{side}_SIZE_{when}" for side in ("MIN", "MAX") for when in ("TRAIN", "TEST")}
HEADS = {
    *("MODEL.FPN.OUT_CHANNELS", "MODEL.ROI_BOX_HEAD.FC_DIM"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "MODEL.ROI_MASK_HEAD.NUM_CONV"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    *("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
    *(f"MODEL.RPN.{when}_NMS_TOPK_{how}" for when in ("PRE", "POST") for how in ("TRAIN", "TEST")),
}
LENGTH = {
    *("SOLVER.EPOCHS", "SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.IMS_PER_BATCH"),
    *("SOLVER.CHECKPOINT_EPOCHS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
}
PLACES = {"MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS"}
# The heads see few images and few steps: they share what they learn among classes, normalise, learn
# faster, and report what they are not sure of.
QUICK = {
    "MODEL.FPN.NORM": "BN",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.33,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.005,
    "SOLVER.BASE_LR_END": 0.0,
}


@pytest.mark.parametrize(
    ("stage", "length", "more"),
    [
        (
            "stage_1_heads",
            380,
            {
                "SOLVER.BASE_LR": 0.002,
                "TEST.EVAL_EPOCHS": 0,
                "DATASETS.TEST": ("cityscapes_instance_val_part2of4",),
            },
        ),
        # Rates are to each other as the recipe's: a trial's 0.4 of stage 1's, stage 3's a tenth.
        ("stage_2_search", 30, {"SOLVER.BASE_LR": 0.0008}),
        ("stage_2_tuned", 200, {"SOLVER.BASE_LR": 0.002, "TEST.EVAL_EPOCHS": 0}),
        ("stage_3_refine", 24, {"SOLVER.BASE_LR": 0.0002, "TEST.EVAL_EPOCHS": 0}),
    ],
)
def test_a_demo_stage_is_the_real_one_made_small(
    stage: str, length: int, more: dict[str, Any]
) -> None:
    """What is not listed is the recipe's: data, matching, freezing, optimizer, schedule."""
    changed = differences(f"demo/{stage}.yaml", f"{stage}.yaml")
    more = {**QUICK, **more}
    assert changed.keys() == BACKBONE | IMAGES | HEADS | LENGTH | PLACES | more.keys()
    assert {key: changed[key] for key in more} == more
    assert (changed["SOLVER.EPOCHS"], changed["SOLVER.MAX_ITER"]) == (0, length)
    # Stage 2 starts from stage 1's RPN, so all have as many anchors in a cell: three.
    assert changed["MODEL.ANCHOR_GENERATOR.SIZES"] == [[10], [18], [34]]
    assert changed["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == [[0.7, 1.3, 2.7]]


def test_the_demo_s_stage_0_is_the_real_one_made_small() -> None:
    changed = differences("demo/stage_0_backbone.yaml", "stage_0_backbone.yaml")
    head = {"CONVS_DIM": 48, "ASPP_DILATIONS": [2, 4, 6], "ASPP_DROPOUT": 0.1}
    # From random weights, in one pass: a schedule of known length and a much higher rate.
    more = {
        **{f"MODEL.SEM_SEG_HEAD.{key}": value for key, value in head.items()},
        "INPUT.CROP.SIZE": [128, 256],
        "MODEL.WEIGHTS": "",
        "DATASETS.TRAIN": ("cityscapes_coarse_semantic_train",),
        "DATASETS.TEST": ("cityscapes_coarse_semantic_val",),
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": 0.003,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.EARLY_STOPPING.ENABLED": False,
        "SOLVER.MAX_ITER": 200,
        "TEST.EVAL_EPOCHS": 0,
    }
    assert changed.keys() == BACKBONE | IMAGES | LENGTH | PLACES | more.keys()
    assert {key: changed[key] for key in more} == more


def test_each_demo_stage_starts_from_the_one_before() -> None:
    parents = {
        "stage_0_backbone": "",
        "stage_1_heads": "output/demo/stage_0/model_final.pth",
        "stage_2_search": "output/demo/stage_1/model_final.pth",
        "stage_2_tuned": "output/demo/stage_1/model_final.pth",
        "stage_3_refine": "output/demo/stage_2/model_final.pth",
    }
    cfgs = {stage: build_config(str(CONFIGS / "demo" / f"{stage}.yaml"), []) for stage in parents}
    assert {stage: cfg.MODEL.WEIGHTS for stage, cfg in cfgs.items()} == parents
    # One width throughout, or the weights would not fit.
    widths = {tuple(flatten(cfg)[key] for key in sorted(BACKBONE)) for cfg in cfgs.values()}
    assert widths == {(128, 32, 32)}
