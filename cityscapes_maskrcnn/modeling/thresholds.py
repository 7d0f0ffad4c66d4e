"""Values of Detectron2's keys that make sense: IoUs for matching, and ranges of numbers."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Final

from cityscapes_maskrcnn.utils.errors import InputError

_FRACTION: Final = (0.0, 1.0)
# Detectron2 takes any number, and then finds nothing or fails at the first image.
_RANGES: Final = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _FRACTION,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _FRACTION,
    "MODEL.RPN.NMS_THRESH": _FRACTION,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _FRACTION,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (1, math.inf),
    "MODEL.RPN.POSITIVE_FRACTION": _FRACTION,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (1, math.inf),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (1, math.inf),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1, math.inf),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (1, math.inf),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1, math.inf),
    "MODEL.RETINANET.SCORE_THRESH_TEST": _FRACTION,
    "MODEL.RETINANET.NMS_THRESH_TEST": _FRACTION,
    "INPUT.MIN_SIZE_TEST": (0, math.inf),  # 0: the image's own
    "INPUT.MAX_SIZE_TEST": (1, math.inf),
    "INPUT.MAX_SIZE_TRAIN": (1, math.inf),
    "SOLVER.BASE_LR": (0.0, math.inf),
    "SOLVER.MAX_ITER": (0, math.inf),
}
#: Mask heads that sample features and ground truth at points.
POINT_HEADS: Final = ("PointRendMaskHead", "ImplicitPointRendMaskHead")
# NumPy takes 32 bits, and processes add their ranks.
_MAX_SEED: Final = 2**31 - 1
_BOX_LOSSES: Final = ("smooth_l1", "giou", "diou", "ciou")
_CHOICES: Final = {
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
}


def check_ranges(cfg: Any) -> None:
    """Check numbers and choices with which a model would find nothing, or fail at an image.

    Args:
        cfg: reads the keys above, ``SEED``, ``TEST.DETECTIONS_PER_IMAGE``, ``INPUT.CROP``,
            ``INPUT.MIN_SIZE_TRAIN``, ``MODEL.PIXEL_STD``, and those of a PointRend head.

    Raises:
        InputError: one is out of its range.
    """
    for key, (low, high) in _RANGES.items():
        value = reduce(getattr, key.split("."), cfg)
        if not low <= value <= high:
            wanted = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise InputError(f"{key} {value}: it must be {wanted}")
    for key, choices in _CHOICES.items():
        value = reduce(getattr, key.split("."), cfg)
        if value not in choices:
            raise InputError(f"{key} {value}: it must be {' or '.join(choices)}")
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    if most < 1 and most != -1:
        raise InputError(f"TEST.DETECTIONS_PER_IMAGE {most}: it must be 1 or more, or -1 for all")
    if cfg.SEED > _MAX_SEED:
        raise InputError(f"SEED {cfg.SEED}: it must be at most {_MAX_SEED}, or below 0 for any")
    sizes, sampling = list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if not sizes or min(sizes) < 0 or (sampling == "range" and len(sizes) != 2):
        wanted = "two sizes" if sampling == "range" else "at least one size"
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN {sizes}: for {sampling} it must be {wanted}, 0 or more pixels"
        )
    if cfg.INPUT.CROP.ENABLED:
        _check_crop(cfg.INPUT.CROP)
    if any(value <= 0 for value in cfg.MODEL.PIXEL_STD):
        raise InputError(f"MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD}: pixels are divided by it")
    # Of PointRend's mapper for semantic segmentation, which is not here.
    if cfg.INPUT.get("COLOR_AUG_SSD"):
        raise InputError("INPUT.COLOR_AUG_SSD True: there is INPUT.COLOR_JITTER instead")
    if cfg.INPUT.CROP.get("SINGLE_CATEGORY_MAX_AREA", 1.0) != 1.0:
        raise InputError("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA: crops are not drawn by it here")
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME in POINT_HEADS:
        _check_point_head(cfg)


def _check_point_head(cfg: Any) -> None:
    """Check what Detectron2's PointRend asserts, some of it in the first iteration."""
    name, model = cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL
    if cfg.INPUT.MASK_FORMAT != "bitmask":
        raise InputError(f"INPUT.MASK_FORMAT {cfg.INPUT.MASK_FORMAT}: {name} needs bitmask")
    if model.ROI_MASK_HEAD.POOLER_TYPE:
        raise InputError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE {model.ROI_MASK_HEAD.POOLER_TYPE}: {name} takes its "
            'own samples; set it to ""'
        )
    if model.POINT_HEAD.NUM_CLASSES != model.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"MODEL.POINT_HEAD.NUM_CLASSES {model.POINT_HEAD.NUM_CLASSES}: it must be that of "
            f"MODEL.ROI_HEADS, {model.ROI_HEADS.NUM_CLASSES}"
        )


def _check_crop(crop: Any) -> None:
    """Check the kind of crops and their size, which is a part of the image or pixels."""
    kinds = ("relative", "relative_range", "absolute", "absolute_range")
    if crop.TYPE not in kinds:
        raise InputError(f"INPUT.CROP.TYPE {crop.TYPE}: it must be {' or '.join(kinds)}")
    size = list(crop.SIZE)
    if crop.TYPE.startswith("relative"):
        fits, wanted = all(0 < side <= 1 for side in size), "two parts of the image, above 0 to 1"
    else:
        fits = all(isinstance(side, int) and side >= 1 for side in size)
        wanted = "two whole numbers of pixels, at least 1"
    if crop.TYPE == "absolute_range":
        fits, wanted = fits and size == sorted(size), f"{wanted}, the smaller one first"
    if not fits or len(size) != 2:
        raise InputError(f"INPUT.CROP.SIZE {size}: for the type {crop.TYPE} it must be {wanted}")


def check_thresholds(cfg: Any) -> None:
    """Check the matching thresholds of the region proposal network and of the box head.

    Thresholds ``[0.2, 0.4]`` with labels ``[0, -1, 1]`` mean: background (0) below an IoU of 0.2,
    foreground (1) from 0.4 on, and between the two ignored (-1): neither sampled nor part of any
    loss. Detectron2's ``Matcher`` only asserts, and not all of this.

    Args:
        cfg: reads ``IOU_THRESHOLDS`` and ``IOU_LABELS`` of ``MODEL.RPN`` and ``MODEL.ROI_HEADS``.

    Raises:
        InputError: thresholds that do not ascend or are not above 0 and at most 1; labels other
            than 0, -1 and 1, or not one more of them than thresholds.
    """
    for name in ("MODEL.RPN", "MODEL.ROI_HEADS"):
        node = cfg.MODEL[name.removeprefix("MODEL.")]
        thresholds, labels = list(node.IOU_THRESHOLDS), list(node.IOU_LABELS)
        problems = {
            "at least one threshold is needed": not thresholds,
            "an IoU threshold is above 0 and at most 1": any(not 0 < t <= 1 for t in thresholds),
            "thresholds in the wrong order; they ascend from background to foreground": (
                thresholds != sorted(thresholds)
            ),
            f"they divide the IoUs into {len(thresholds) + 1} intervals, but {name}.IOU_LABELS "
            f"{labels} names {len(labels)}": len(labels) != len(thresholds) + 1,
            f"{name}.IOU_LABELS {labels}: a label is 0 (background), -1 (ignored) or "
            "1 (foreground)": not {*labels} <= {0, -1, 1},
        }
        for problem, present in problems.items():
            if present:
                raise InputError(f"{name}.IOU_THRESHOLDS {thresholds}: {problem}")
