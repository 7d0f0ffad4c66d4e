"""The arms of the ablation: ways to train, and to score what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cityscapes_maskrcnn.utils.errors import InputError

STOCK: Final = "Detectron2's config"
STAGED: Final = "staged recipe"
STRONGEST: Final = "strongest config"


@dataclass(frozen=True)
class Stage:
    """A training of an arm.

    Attributes:
        config: file in the folder of the demo's configs, or Detectron2's ``model_zoo://`` one.
        epochs: the stage's share of the iterations.
        opts: values by config key.
    """

    config: str
    epochs: int
    opts: Mapping[str, object] = field(default_factory=dict)


_FITTED: Final = {
    "MODEL.ANCHOR_GENERATOR.NAME": "KMeansAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": [],
}
# The recipe's epochs. Its stage 3 trains on images of val: here, on those that all arms have.
_STAGES: Final = (
    Stage("stage_1_heads.yaml", 4),
    Stage("stage_2_tuned.yaml", 6, _FITTED),
    Stage("stage_3_refine.yaml", 2, _FITTED),
)
_STOCK: Final = (
    Stage(
        "model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml",
        1,
        {
            # 800 to 1024 pixels, and 32 to 512, where 1024 are 160.
            "INPUT.MIN_SIZE_TRAIN": (125, 130, 135, 140, 145, 150, 155, 160),
            "MODEL.ANCHOR_GENERATOR.SIZES": [[5], [10], [20], [40], [80]],
        },
    ),
)
# Detectron2's config takes these from the demo's: network, images, batch, what is kept of a
# prediction. Its own remain: optimizer, schedule, what is frozen, anchors, matching thresholds.
SCALE: Final = (
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.FPN.NORM",
    "MODEL.FPN.OUT_CHANNELS",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
    "INPUT.FORMAT",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.WARMUP_ITERS",
)
TRAINING: Final = {
    "DATASETS.TRAIN": ("cityscapes_instance_train",),
    "DATASETS.TUNED_ON": (),
    "DATALOADER.NUM_WORKERS": 0,
}
UNWATCHED: Final = {
    "DATASETS.TEST": (),
    "TEST.VALIDATION_LOSS": False,
    "TEST.EVAL_PERIOD": 0,
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train; or, with ``of``, another way to score what an arm has trained.

    Attributes:
        name: as in the table.
        group: of arms with ``of``: only the best of a group is combined with others.
        stages: trained one after the other.
        opts: values by config key, of every stage.
        of_demo: keys that a config of Detectron2's takes from the demo's stage 1, besides SCALE.
        inference: values by config key, of scoring.
        weights: file that is scored, of those of the last stage.
        of: name of the arm whose models are scored; empty: it trains its own.
        is_whole: it has several pieces already, and is not combined with others.
    """

    name: str
    group: str = ""
    stages: tuple[Stage, ...] = _STAGES
    opts: Mapping[str, object] = field(default_factory=dict)
    of_demo: tuple[str, ...] = ()
    inference: Mapping[str, object] = field(default_factory=dict)
    weights: str = "model_final.pth"
    of: str = ""
    is_whole: bool = False


AVERAGE: Final = "average.pth"
_EMA: Final = "model_final_ema.pth"
BASE: Final = Arm(name=STAGED)
MAIN: Final = (
    Arm(name=STOCK, stages=_STOCK),
    # Which part of the difference to the staged recipe is that of its optimizer?
    Arm(
        name=f"{STOCK}, AdamW",
        stages=_STOCK,
        of_demo=(
            "SOLVER.OPTIMIZER",
            "SOLVER.BASE_LR",
            "SOLVER.WEIGHT_DECAY",
            "SOLVER.LR_SCHEDULER_NAME",
        ),
    ),
    BASE,
)
_POINT_REND: Final = {
    "INPUT.MASK_FORMAT": "bitmask",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
    "MODEL.ROI_MASK_HEAD.FC_DIM": 128,  # 1,024 at full size
    "MODEL.POINT_HEAD.FC_DIM": 64,  # 256 at full size
    "MODEL.POINT_HEAD.NUM_CLASSES": 8,
    "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK": True,
}
_REPEAT: Final = {
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    # On Cityscapes, 0.2 repeats images with a train twice. Here a train, the rarest class, is in 44
    # of 240 scenes: 0.2 would repeat them 1.04 times, 0.5 does 1.65.
    "DATALOADER.REPEAT_THRESHOLD": 0.5,
}
_SOFT_NMS: Final = {"MODEL.ROI_HEADS.SOFT_NMS.METHOD": "gaussian"}
# What is added to the staged recipe, one at a time; all of it is off by default.
PIECES: Final = (
    # The pieces of configs/coco_strongest.yaml; its backbone and start are those of all arms. Two
    # arms show what soft-NMS gives there, and what repeat factors would give.
    Arm(
        name=STRONGEST,
        of="PointRend",
        inference=_SOFT_NMS,
        weights=_EMA,
        is_whole=True,
    ),
    Arm(name=f"{STRONGEST}, NMS", of="PointRend", weights=_EMA, is_whole=True),
    Arm(
        name=f"{STRONGEST}, repeat factors",
        opts={**_POINT_REND, **_REPEAT},
        inference=_SOFT_NMS,
        weights=_EMA,
        is_whole=True,
    ),
    Arm(name="EMA", of=STAGED, group="weights", weights=_EMA),
    Arm(name="checkpoint average", of=STAGED, group="weights", weights=AVERAGE),
    Arm(
        name="soft-NMS, linear",
        of=STAGED,
        group="detections",
        inference={"MODEL.ROI_HEADS.SOFT_NMS.METHOD": "linear"},
    ),
    Arm(
        name="soft-NMS, gaussian",
        of=STAGED,
        group="detections",
        inference=_SOFT_NMS,
    ),
    Arm(
        name="TTA, flip",
        of=STAGED,
        group="detections",
        inference={"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (160,)},
    ),
    Arm(name="PointRend", opts=_POINT_REND),
    Arm(
        name="copy-paste",
        opts={
            "INPUT.COPY_PASTE.PROB": 0.5,
            "INPUT.COPY_PASTE.PREFER_RARE": True,
            "INPUT.COPY_PASTE.MIN_AREA": 20,
        },
    ),
    Arm(name="repeat factors", opts=_REPEAT),
    Arm(
        name="large-scale jitter",
        opts={"INPUT.LSJ.ENABLED": True, "INPUT.LSJ.SIZE": [160, 320]},
    ),
    Arm(
        name="colour jitter",
        opts={
            "INPUT.COLOR_JITTER.BRIGHTNESS": 0.4,
            "INPUT.COLOR_JITTER.CONTRAST": 0.4,
            "INPUT.COLOR_JITTER.SATURATION": 0.4,
        },
    ),
    Arm(
        name="TTA, 3 scales and flip",
        of=STAGED,
        group="detections",
        # As 800, 1024 and 1280 pixels, which configs/README.md recommends.
        inference={"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (125, 160, 200)},
    ),
)


def choose_pieces(names: Sequence[str] | None) -> list[Arm]:
    """Find pieces by name, and those whose models they score.

    Args:
        names: of :data:`PIECES`; None: all.

    Raises:
        InputError: there is no such piece.
    """
    if names is None:
        return list(PIECES)
    known = [piece.name for piece in PIECES]
    unknown = [name for name in names if name not in known]
    if unknown:
        all_names = ", ".join(f'"{name}"' for name in known)
        raise InputError(f'--pieces "{unknown[0]}": it must be one of {all_names}')
    wanted = {*names, *(piece.of for piece in PIECES if piece.name in names)}
    return [piece for piece in PIECES if piece.name in wanted]


def combined(pieces: Sequence[Arm]) -> Arm:
    """Combine pieces in a variant of the one that trains, or else of the staged recipe.

    Raises:
        ValueError: several of them train, or two score different weights.
    """
    trained = [piece for piece in pieces if not piece.of]
    if len(trained) > 1:
        raise ValueError(f"both {trained[0].name} and {trained[1].name} train a model")
    weights = sorted({piece.weights for piece in pieces} - {Arm.weights})
    if len(weights) > 1:
        raise ValueError(f"no model has the weights of both {weights[0]} and {weights[1]}")
    base = trained[0] if trained else BASE
    return replace(
        base,
        name=" + ".join(piece.name for piece in pieces),
        inference={key: value for piece in pieces for key, value in piece.inference.items()},
        weights=weights[0] if weights else Arm.weights,
        of=base.name,
    )
