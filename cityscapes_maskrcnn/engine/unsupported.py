"""What Detectron2's config offers and this project's trainer does not do."""

from __future__ import annotations

from detectron2.config import CfgNode

from cityscapes_maskrcnn.utils.errors import InputError


def refuse_unsupported(cfg: CfgNode) -> None:
    """Raise for keys of Detectron2's that would be ignored here.

    Raises:
        InputError: one is set to something that this trainer does not do.
    """
    problems = {
        "DATALOADER.SAMPLER_TRAIN: only TrainingSampler": cfg.DATALOADER.SAMPLER_TRAIN
        != "TrainingSampler",
        "MODEL.LOAD_PROPOSALS: not supported": cfg.MODEL.LOAD_PROPOSALS,
        "MODEL.KEYPOINT_ON: not supported": cfg.MODEL.KEYPOINT_ON,
        "TEST.PRECISE_BN.ENABLED: not supported": cfg.TEST.PRECISE_BN.ENABLED,
        "SOLVER.AMP.ENABLED: needs a GPU": cfg.SOLVER.AMP.ENABLED
        and not cfg.MODEL.DEVICE.startswith("cuda"),
    }
    for problem, is_set in problems.items():
        if is_set:
            raise InputError(f"{problem} in this project's trainer")
