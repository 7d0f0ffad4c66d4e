"""What must hold between the configs: weights fit, stages hand on, no image is seen and scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from yacs.config import CfgNode

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.utils.config_keys import value_at

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ["stage_0_backbone", "stage_1_heads", "stage_2_tuned", "stage_3_refine"]
ALL_STAGES = [*STAGES, "stage_2_search"]


def load(name: str) -> CfgNode:
    return build_config(str(CONFIGS / f"{name}.yaml"), [])


@pytest.mark.parametrize("folder", ["", "demo/", "r101/", "convnext_t/"])
def test_each_stage_starts_from_weights_that_fit(folder: str) -> None:
    output = f"output/{folder}"
    starts = {stage: load(folder + stage).MODEL.WEIGHTS for stage in ALL_STAGES[1:]}
    assert starts == {
        "stage_1_heads": f"{output}stage_0/model_final.pth",
        "stage_2_search": f"{output}stage_1/model_final.pth",
        "stage_2_tuned": f"{output}stage_1/model_final.pth",
        "stage_3_refine": f"{output}stage_2/model_final.pth",
    }
    cfgs = [load(folder + stage) for stage in ALL_STAGES]
    widths = ("RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1")
    # One network throughout, and normalisation as it was trained with.
    for key in widths:
        assert len({cfg.MODEL.RESNETS[key] for cfg in cfgs}) == 1
    assert len({str(cfg.MODEL.CONVNEXT) for cfg in cfgs}) == 1
    assert len({"convnext" in cfg.MODEL.BACKBONE.NAME for cfg in cfgs}) == 1
    assert (
        len({str((cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)) for cfg in cfgs})
        == 1
    )
    # From stage 1 on as many anchors in a cell, or the RPN would start anew.
    heads = cfgs[1:]
    per_cell = [
        [
            len(sizes) * len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
            for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES
        ]
        for cfg in heads
    ]
    assert all(cells == [3] * len(heads[0].MODEL.RPN.IN_FEATURES) for cells in per_cell)


@pytest.mark.parametrize("stage", ["stage_2_tuned", "stage_3_refine"])
def test_thresholds_are_those_of_the_search_space(stage: str) -> None:
    """As the first trial sets them: background is half of foreground, ignored in between."""
    cfg = load(stage)
    space = cfg.SEARCH.PARAMETERS
    foreground = space.fg_iou_thresh.FIRST
    assert list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS) == [foreground / 2, foreground]
    assert cfg.MODEL.ROI_HEADS.IOU_LABELS == [0, -1, 1]
    negative, positive = space.rpn_negative_iou_thresh.FIRST, space.rpn_positive_iou_thresh.FIRST
    assert list(cfg.MODEL.RPN.IOU_THRESHOLDS) == [negative, positive]


def test_no_stage_reports_on_what_it_or_an_ancestor_saw(small_root: Path) -> None:
    cfgs = [load(stage) for stage in STAGES]
    register_all(str(small_root))
    used = {
        image["image_id"]
        for cfg in cfgs
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TUNED_ON)
        if not name.startswith("cityscapes_coarse")
        for image in DatasetCatalog.get(name)
    }
    reported = {image["image_id"] for image in DatasetCatalog.get(cfgs[-1].DATASETS.TEST[0])}
    # 6 images of val are 2 2 1 1 in its parts.
    assert len(reported) == 2
    assert not used & reported


def test_the_coco_schedule_is_that_of_the_zoo() -> None:
    ours, zoo = load("coco_mask_rcnn_R_50_FPN"), load_zoo()
    keys = (
        "MODEL.WEIGHTS",
        "SOLVER.BASE_LR",
        "SOLVER.STEPS",
        "SOLVER.MAX_ITER",
        "SOLVER.IMS_PER_BATCH",
        "SOLVER.GAMMA",
        "SOLVER.MOMENTUM",
        "SOLVER.WEIGHT_DECAY",
        "INPUT.MIN_SIZE_TRAIN",
        "INPUT.MAX_SIZE_TRAIN",
        "INPUT.MIN_SIZE_TEST",
        "INPUT.MAX_SIZE_TEST",
        "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.ROI_HEADS.NUM_CLASSES",
    )
    assert {key: value_at(ours, key) for key in keys} == {key: value_at(zoo, key) for key in keys}
    assert (ours.SOLVER.ACCUMULATE, zoo.SOLVER.ACCUMULATE) == (2, 1)


def load_zoo() -> CfgNode:
    return build_config("model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml", [])


def test_the_staged_pair_is_the_single_schedule() -> None:
    single, first, second = map(
        load, ("coco_mask_rcnn_R_50_FPN", "coco_staged_1_heads", "coco_staged_2_all")
    )
    assert first.SOLVER.MAX_ITER + second.SOLVER.MAX_ITER == single.SOLVER.MAX_ITER == 24_000
    assert first.SOLVER.STEPS == ()
    (step,) = second.SOLVER.STEPS
    assert first.SOLVER.MAX_ITER + step == single.SOLVER.STEPS[0] == 18_000
    assert second.MODEL.WEIGHTS == "output/coco_staged_1/model_final.pth"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*coco_*.yaml")))
def test_configs_that_start_from_coco_choose_and_report_apart(name: str, small_root: Path) -> None:
    cfg = load(name)
    assert cfg.MODEL.WEIGHTS_CLASSES == ("coco",) or name == "coco_staged_2_all"
    assert 0.9 < cfg.SOLVER.EMA_DECAY < 1
    assert cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE == 4
    register_all(str(small_root))
    chosen, reported = (
        {image["image_id"] for dataset in names for image in DatasetCatalog.get(dataset)}
        for names in (cfg.DATASETS.VAL, cfg.DATASETS.TEST)
    )
    assert chosen
    assert reported
    assert not chosen & reported
