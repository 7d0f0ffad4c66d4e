from __future__ import annotations

import math

import pytest
from detectron2.config import CfgNode, get_cfg

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.config_check import check_ranges, check_thresholds, check_values
from cityscapes_maskrcnn.utils.errors import InputError

LABELS = [0, -1, 1]


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 50.0, "50.0: it must be 0 to 1"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", -0.5, "-0.5: it must be 0 to 1"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 0, "0: it must be 1 or more"),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", -1, "-1: it must be 1 or more"),
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 0, "0: it must be 1 or more"),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 0, "0: it must be 1 or more"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 0, "0: it must be 1 or more"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.5, "1.5: it must be 0 to 1"),
        (
            "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
            "iou",
            "iou: it must be smooth_l1 or giou or diou or ciou",
        ),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "0: it must be 1 or more, or -1 for all"),
        ("INPUT.MIN_SIZE_TEST", -5, "-5: it must be 0 or more"),
        ("SOLVER.BASE_LR", -1.0, "-1.0: it must be 0 or more"),
        ("SOLVER.MAX_ITER", -5, "-5: it must be 0 or more"),
        ("SEED", 2**63, f"{2**63}: it must be at most 2147483647, or below 0 for any"),
        ("INPUT.RANDOM_FLIP", "both", "both: it must be horizontal or vertical or none"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "x", "x: it must be choice or range"),
        ("INPUT.FORMAT", "L", "L: it must be BGR or RGB"),
        ("INPUT.MASK_FORMAT", "nan", "nan: it must be polygon or bitmask"),
        (
            "MODEL.PIXEL_STD",
            [0.0, 1.0, 1.0],
            r"\[0.0, 1.0, 1.0\]: each of its values must be more than 0",
        ),
        ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 0, "0: it must be 1 or more"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", -1, "-1: it must be 1 or more"),
        ("MODEL.FPN.OUT_CHANNELS", 0, "0: it must be 1 or more"),
        ("MODEL.RPN.LOSS_WEIGHT", -1.0, "-1.0: it must be 0 or more"),
        (
            "MODEL.RPN.BBOX_REG_WEIGHTS",
            (0.0, 1.0, 1.0, 1.0),
            r"\(0.0, 1.0, 1.0, 1.0\): each of its values must be more than 0",
        ),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0,), r"\(1.0,\): it must have 4 values"),
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            [[8], [-1]],
            r".*: each of its values must be more than 0",
        ),
        ("INPUT.MAX_SIZE_TRAIN", 1, "1: it must be 32 or more"),
        ("SOLVER.MOMENTUM", -5.0, "-5.0: it must be 0 to 1"),
        ("SOLVER.WARMUP_FACTOR", -3.0, "-3.0: it must be 0 to 1"),
        ("SOLVER.PLATEAU.FACTOR", 0.0, "0.0: it must be above 0 and below 1"),
        ("SOLVER.PLATEAU.FACTOR", 1.0, "1.0: it must be above 0 and below 1"),
        ("SOLVER.EMA_DECAY", -0.1, "-0.1: it must be 0 or more and below 1"),
        ("SOLVER.EMA_DECAY", 1.0, "1.0: it must be 0 or more and below 1"),
        ("SOLVER.AMP.PRECISION", "fp16", "fp16: it must be float16 or bfloat16"),
        ("SOLVER.STEPS", (-1,), r"\(-1,\): each of its values must be 0 or more"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "0: it must be 1 or more"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0, "-1.0: it must be more than 0"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "x", "x: it must be 0 or more"),
        ("DATALOADER.NUM_WORKERS", 2**31, "2147483648: it must be 0 to 1,024"),
    ],
)
def test_values_with_which_nothing_is_found_get_one_line(key, value, wanted) -> None:
    cfg: CfgNode = get_cfg()
    check_ranges(cfg)  # without the project's keys
    add_cityscapes_maskrcnn_config(cfg)
    check_ranges(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=f"^{key} {wanted}$"):
        check_ranges(cfg)


def test_values_that_mean_something_pass() -> None:
    cfg = get_cfg()
    for key, value in [
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf),  # the largest gradient
        ("SOLVER.WEIGHT_DECAY_NORM", None),
        ("SOLVER.MAX_ITER", 0),
        ("INPUT.MIN_SIZE_TRAIN", (0,)),
        ("MODEL.ANCHOR_GENERATOR.SIZES", []),
        ("MODEL.RPN.CONV_DIMS", [-1, -1]),
        ("TEST.EVAL_PERIOD", -1),
        ("VIS_PERIOD", -1),
        ("SEED", -1),
    ]:
        cfg.merge_from_list([key, value])
    check_values(cfg, get_cfg())
    check_ranges(cfg)


@pytest.mark.parametrize(
    ("sampling", "sizes", "problem"),
    [
        ("choice", (), "[]: it must be at least one size"),
        ("choice", (64, -1), "(64, -1): each of its values must be 0 or more"),
        (
            "range",
            (64,),
            "[64]: for the sampling range it must be two sizes, the smaller one first",
        ),
        (
            "range",
            (128, 96),
            "[128, 96]: for the sampling range it must be two sizes, the smaller one first",
        ),
    ],
)
def test_sizes_that_none_can_be_drawn_from(
    sampling: str, sizes: tuple[int, ...], problem: str
) -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = sizes, sampling
    with pytest.raises(InputError) as caught:
        check_ranges(cfg)
    assert str(caught.value) == f"INPUT.MIN_SIZE_TRAIN {problem}"


@pytest.mark.parametrize(
    ("kind", "size", "problem"),
    [
        ("absolute", [0, 0], "SIZE [0, 0]: for the type absolute it must be two whole numbers of "),
        ("absolute", [0.5, 64], "SIZE [0.5, 64]: for the type absolute it must be two whole numb"),
        ("absolute", [64], "SIZE [64]: for the type absolute it must be two whole numbers of pix"),
        ("absolute_range", [64, 32], "SIZE [64, 32]: for the type absolute_range it must be two "),
        ("relative", [0.9, 0.0], "SIZE [0.9, 0.0]: for the type relative it must be two parts of"),
        ("relative_range", [512, 512], "SIZE [512, 512]: for the type relative_range it must be "),
        ("square", [64, 64], "TYPE square: it must be relative or relative_range or absolute or "),
    ],
)
def test_crops_that_are_none_get_one_line(kind: str, size: list[float], problem: str) -> None:
    cfg = get_cfg()
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = kind, size
    check_ranges(cfg)  # nothing is cut
    cfg.INPUT.CROP.ENABLED = True
    with pytest.raises(InputError) as caught:
        check_ranges(cfg)
    assert str(caught.value).startswith(f"INPUT.CROP.{problem}")
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [32, 64]
    check_ranges(cfg)


def test_detectron2s_defaults_and_the_recipes_band_pass():
    cfg = get_cfg()
    check_thresholds(cfg)
    foreground = 0.4154
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [foreground / 2, foreground]
    cfg.MODEL.ROI_HEADS.IOU_LABELS = LABELS
    cfg.MODEL.RPN.IOU_THRESHOLDS = [0.2198, 0.7889]
    check_thresholds(cfg)


@pytest.mark.parametrize(
    ("thresholds", "labels", "message"),
    [
        ([0.7, 0.3], LABELS, r"MODEL\.RPN\.IOU_THRESHOLDS \[0\.7, 0\.3\].*wrong order"),
        ([0.3, 1.2], LABELS, "at most 1"),
        ([0.0, 0.5], LABELS, "above 0"),
        ([float("nan")], [0, 1], "above 0"),
        ([], [1], "at least one"),
        ([0.3, 0.7], [0, 1], r"3 intervals, but MODEL\.RPN\.IOU_LABELS \[0, 1\] names 2"),
        ([0.5], LABELS, "2 intervals"),
        ([0.5], [0, 2], "a label is 0"),
    ],
)
def test_bad_ones_get_one_line(thresholds, labels, message):
    cfg = get_cfg()
    for name in ("RPN", "ROI_HEADS"):
        node = cfg.MODEL[name]
        node.IOU_THRESHOLDS, node.IOU_LABELS = thresholds, labels
        with pytest.raises(InputError, match=message.replace("RPN", name)):
            check_thresholds(cfg)
        node.IOU_THRESHOLDS, node.IOU_LABELS = [0.5], [0, 1]
