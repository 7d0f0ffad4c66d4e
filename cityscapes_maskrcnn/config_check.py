"""Checks of config values: their types, texts and ranges, and the IoU thresholds for matching."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from cityscapes_maskrcnn.modeling.determinism import POINT_HEADS
from cityscapes_maskrcnn.utils.config_keys import config_items
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable


class _Range(NamedTuple):
    """A range of numbers, its ends among them; the numbers of a list have to be in it alike.

    Attributes:
        low: its lower end.
        high: its upper end.
        open: whether the lower end itself is none of them.
        below: whether the upper end itself is none of them.
        length: numbers in the list; 0: any.
    """

    low: float
    high: float = math.inf
    open: bool = False
    below: bool = False
    length: int = 0

    def wanted(self) -> str:
        """Describe the range for a message."""
        if self.below:
            low = f"above {self.low:,}" if self.open else f"{self.low:,} or more"
            return f"{low} and below {self.high:,}"
        if self.high < math.inf:
            text = f"{self.low:,} to {self.high:,}"
            return f"above {text}" if self.open else text
        return f"more than {self.low:,}" if self.open else f"{self.low:,} or more"


_FRACTION: Final = _Range(0, 1)
_COUNT: Final = _Range(1)
_NOT_NEGATIVE: Final = _Range(0)
_POSITIVE: Final = _Range(0, open=True)
_BOX_WEIGHTS: Final = _Range(0, open=True, length=4)
_PROCESSES: Final = _Range(0, 1024)
# Detectron2 takes any number, and then finds nothing, learns nothing, or fails at the first image.
# None stands where a key has it for "not used". Keys that count epochs, and those of augmentation,
# are checked by what reads them.
_RANGES: Final = {
    "MODEL.PIXEL_STD": _POSITIVE,
    "MODEL.BACKBONE.FREEZE_AT": _NOT_NEGATIVE,
    "MODEL.FPN.OUT_CHANNELS": _COUNT,
    "MODEL.RESNETS.NUM_GROUPS": _COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _COUNT,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _COUNT,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": _COUNT,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _NOT_NEGATIVE,
    "MODEL.ANCHOR_GENERATOR.SIZES": _POSITIVE,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _POSITIVE,
    "MODEL.ANCHOR_GENERATOR.NUM_RATIOS": _COUNT,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": _FRACTION,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RPN.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "MODEL.RPN.LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.NMS_THRESH": _FRACTION,
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _FRACTION,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _FRACTION,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _FRACTION,
    "MODEL.ROI_HEADS.SOFT_NMS.SIGMA": _POSITIVE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _COUNT,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _COUNT,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _COUNT,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": _COUNT,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": _POSITIVE,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": _FRACTION,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _COUNT,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _NOT_NEGATIVE,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _COUNT,
    "MODEL.ROI_MASK_HEAD.NUM_FC": _NOT_NEGATIVE,
    "MODEL.ROI_MASK_HEAD.FC_DIM": _COUNT,
    "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": _COUNT,
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": _COUNT,
    "MODEL.POINT_HEAD.OVERSAMPLE_RATIO": _COUNT,
    "MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO": _FRACTION,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": _NOT_NEGATIVE,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": _COUNT,
    "MODEL.POINT_HEAD.FC_DIM": _COUNT,
    "MODEL.POINT_HEAD.NUM_FC": _NOT_NEGATIVE,
    "MODEL.PATCH_DCT_HEAD.SOLID_THRESH": _FRACTION,
    "MODEL.DISTILLATION.WEIGHT": _NOT_NEGATIVE,
    "MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER": _NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _COUNT,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _COUNT,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": _COUNT,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": _COUNT,
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": _FRACTION,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": _FRACTION,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": _NOT_NEGATIVE,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": _FRACTION,
    "MODEL.RETINANET.NUM_CLASSES": _COUNT,
    "MODEL.RETINANET.NUM_CONVS": _NOT_NEGATIVE,
    "MODEL.RETINANET.PRIOR_PROB": _FRACTION,
    "MODEL.RETINANET.SCORE_THRESH_TEST": _FRACTION,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _COUNT,
    "MODEL.RETINANET.NMS_THRESH_TEST": _FRACTION,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _NOT_NEGATIVE,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _NOT_NEGATIVE,
    "INPUT.MIN_SIZE_TRAIN": _NOT_NEGATIVE,  # 0: the image's own
    "INPUT.MAX_SIZE_TRAIN": _Range(32),  # images are padded to multiples of it
    "INPUT.MIN_SIZE_TEST": _NOT_NEGATIVE,
    "INPUT.MAX_SIZE_TEST": _Range(32),
    "DATALOADER.NUM_WORKERS": _PROCESSES,
    "DATALOADER.REPEAT_THRESHOLD": _NOT_NEGATIVE,
    "SOLVER.MAX_ITER": _NOT_NEGATIVE,
    "SOLVER.BASE_LR": _NOT_NEGATIVE,
    "SOLVER.BASE_LR_END": _NOT_NEGATIVE,
    "SOLVER.MOMENTUM": _FRACTION,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": _NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "SOLVER.GAMMA": _NOT_NEGATIVE,
    "SOLVER.STEPS": _NOT_NEGATIVE,
    "SOLVER.NUM_DECAYS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_FACTOR": _FRACTION,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.IMS_PER_BATCH": _Range(1, 65536),
    "SOLVER.ACCUMULATE": _COUNT,
    "SOLVER.EMA_DECAY": _Range(0, 1, below=True),  # 0: no average
    "SOLVER.PLATEAU.FACTOR": _Range(0, 1, open=True, below=True),
    "SOLVER.PLATEAU.PATIENCE": _NOT_NEGATIVE,
    "SOLVER.PLATEAU.THRESHOLD": _Range(0, 1, below=True),  # a part of the lowest loss
    "SOLVER.EARLY_STOPPING.PATIENCE": _COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": _NOT_NEGATIVE,  # 0: nothing is scaled
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _POSITIVE,
    "TEST.AUG.MIN_SIZES": _COUNT,
    "TEST.AUG.MAX_SIZE": _Range(32),
    "TEST.ANALYSIS_CONFIDENCE": _FRACTION,
    "TEST.BATCH_SIZE": _COUNT,
    "TEST.NUM_WORKERS": _PROCESSES,
    "TRACKING.NUM_PICTURES": _NOT_NEGATIVE,
    "PROCESS_TIMEOUT": _Range(0, 10**9, open=True),  # torch counts milliseconds in 64 bits
    "SEARCH.RANDOM_TRIALS": _NOT_NEGATIVE,
    "SEARCH.HEARTBEAT_SECONDS": _COUNT,
    "SEARCH.MAX_FAILURES": _COUNT,
    "SEARCH.STALL_MINUTES": _NOT_NEGATIVE,  # 0: never
    "SEARCH.PRUNER.MIN_EVALUATIONS": _COUNT,
    "SEARCH.PRUNER.REDUCTION": _Range(2),
}
# Neither names of files nor others hold them; bytes that are not UTF-8 are other halves.
_NO_TEXT: Final = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]")
# Of the vector norm: inf is the largest gradient.
_MAY_BE_INFINITE: Final = {"SOLVER.CLIP_GRADIENTS.NORM_TYPE"}
# NumPy takes 32 bits, and processes add their ranks.
_MAX_SEED: Final = 2**31 - 1
_BOX_LOSSES: Final = ("smooth_l1", "giou", "diou", "ciou")
_CHOICES: Final = {
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_HEADS.SOFT_NMS.METHOD": ("off", "linear", "gaussian"),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "SOLVER.AMP.PRECISION": ("float16", "bfloat16"),
}


def check_values(cfg: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check what yacs does not: numbers, texts, and that lists hold what the defaults' hold.

    Args:
        cfg: the merged config.
        defaults: the config before anything was merged.

    Raises:
        InputError: a number is not finite or of more than 64 bits; a text that can be no name; a
            value of another type than the default.
    """
    values = dict(config_items(cfg))
    for name, value in values.items():
        if printable(name) != name:
            raise InputError(f"{name}: a config key with characters that cannot be seen")
        if not isinstance(value, Mapping):
            for element, _ in _leaves(value):
                _check_element(name, element)
    for name, default in config_items(defaults):
        # Nodes of the search space have a check of their own, see search/space.py.
        if not isinstance(default, Mapping) and not name.startswith("SEARCH.PARAMETERS."):
            _check_type(name, values[name], default)


def _check_element(name: str, element: Any) -> None:
    """Check a number or a text of any key."""
    if isinstance(element, float):
        if element != element or (abs(element) == math.inf and name not in _MAY_BE_INFINITE):
            raise InputError(f"{name} {element}: not a finite number")
    elif isinstance(element, int):
        # Python refuses to write out those of thousands of digits.
        if not -(2**63) <= element < 2**63:
            raise InputError(f"{name}: a whole number of more than 64 bits")
    elif isinstance(element, str) and _NO_TEXT.search(element):
        raise InputError(f"{name} {element!r}: it holds a control character or half of a character")


def _check_type(name: str, value: Any, default: Any) -> None:
    """Check that a value is not None, and that a list holds what that of the defaults holds."""
    # Detectron2 takes None for no normalisation layers and for no weight decay of their own.
    if value is None and default is not None and not name.endswith("NORM"):
        raise InputError(f"{name} None: it must be of type {type(default).__name__}")
    if not isinstance(default, (list, tuple)):
        return
    # All tuples that are empty by default, and lists of features, are of names.
    examples = list(_leaves(default)) or (
        [("", 1)] if default == () or name.endswith("FEATURES") else []
    )
    types = {_element_type(example) for example, _ in examples}
    depth = max((depth for _, depth in examples), default=0)
    for element, level in _leaves(value):
        if types and (level > depth or _element_type(element) not in types):
            example = default or ("name",)
            raise InputError(f"{name} {value}: its values must be as in {example}")


def _leaves(value: Any, level: int = 0) -> Iterator[tuple[Any, int]]:
    """Go through the elements of nested lists, with the number of lists around each.

    Of a dict, its keys and values are elements too; so is an empty list in another one.
    """
    if isinstance(value, Mapping):
        yield value, level
        value = [*value, *value.values()]
    if not isinstance(value, (list, tuple)) or (level and not value):
        yield value, level
        return
    for element in value:
        yield from _leaves(element, level + 1)


def _element_type(value: Any) -> str:
    """The type of an element of a list; whole numbers may stand for others."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


def check_ranges(cfg: Any) -> None:
    """Check numbers and choices with which a model would find nothing, or fail at an image.

    Args:
        cfg: reads the keys above, ``SEED``, ``TEST.DETECTIONS_PER_IMAGE``, ``INPUT.CROP``,
            ``INPUT.MIN_SIZE_TRAIN``, and those of a PointRend or PatchDCT head.

    Raises:
        InputError: one is out of its range.
    """
    values = dict(config_items(cfg))
    for key, each in _RANGES.items():
        if key in values:
            _check_range(key, values[key], each)
    for key, choices in _CHOICES.items():
        if key in values and values[key] not in choices:
            raise InputError(f"{key} {values[key]}: it must be {' or '.join(choices)}")
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    if most < 1 and most != -1:
        raise InputError(f"TEST.DETECTIONS_PER_IMAGE {most}: it must be 1 or more, or -1 for all")
    if cfg.SEED > _MAX_SEED:
        raise InputError(f"SEED {cfg.SEED}: it must be at most {_MAX_SEED}, or below 0 for any")
    sizes, sampling = list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN {sizes}: for the sampling range it must be two sizes, the "
            "smaller one first"
        )
    if not sizes:
        raise InputError("INPUT.MIN_SIZE_TRAIN []: it must be at least one size")
    if cfg.INPUT.CROP.ENABLED:
        _check_crop(cfg.INPUT.CROP)
    # Of PointRend's mapper for semantic segmentation, which is not here.
    if cfg.INPUT.get("COLOR_AUG_SSD"):
        raise InputError("INPUT.COLOR_AUG_SSD True: there is INPUT.COLOR_JITTER instead")
    if cfg.INPUT.CROP.get("SINGLE_CATEGORY_MAX_AREA", 1.0) != 1.0:
        raise InputError("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA: crops are not drawn by it here")
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME in POINT_HEADS:
        _check_point_head(cfg)
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "PatchDCTHead":
        _check_own_samples(cfg)


def _check_range(key: str, value: Any, allowed: _Range) -> None:
    """Check the number, or the list of numbers, of a key."""
    numbers = [number for number, _ in _leaves(value) if number is not None]
    for number in numbers:
        fits = _element_type(number) == "number" and allowed.low <= number <= allowed.high
        at_end = (allowed.open and number == allowed.low) or (
            allowed.below and number == allowed.high
        )
        if not fits or at_end:
            what = "each of its values" if isinstance(value, (list, tuple)) else "it"
            raise InputError(f"{key} {value}: {what} must be {allowed.wanted()}")
    if allowed.length and len(numbers) != allowed.length:
        raise InputError(f"{key} {value}: it must have {allowed.length} values")


def _check_point_head(cfg: Any) -> None:
    """Check what Detectron2's PointRend asserts, some of it in the first iteration."""
    name, model = cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL
    if cfg.INPUT.MASK_FORMAT != "bitmask":
        raise InputError(f"INPUT.MASK_FORMAT {cfg.INPUT.MASK_FORMAT}: {name} needs bitmask")
    _check_own_samples(cfg)
    if model.POINT_HEAD.NUM_CLASSES != model.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"MODEL.POINT_HEAD.NUM_CLASSES {model.POINT_HEAD.NUM_CLASSES}: it must be that of "
            f"MODEL.ROI_HEADS, {model.ROI_HEADS.NUM_CLASSES}"
        )


def _check_own_samples(cfg: Any) -> None:
    """Check that no samples are taken for a mask head that takes its own."""
    head = cfg.MODEL.ROI_MASK_HEAD
    if head.POOLER_TYPE:
        raise InputError(
            f"MODEL.ROI_MASK_HEAD.POOLER_TYPE {head.POOLER_TYPE}: {head.NAME} takes its own "
            'samples; set it to ""'
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
