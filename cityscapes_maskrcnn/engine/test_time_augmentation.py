"""Detectron2's test-time augmentation, checked before it starts."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import GeneralizedRCNN
from torch import nn

from cityscapes_maskrcnn.utils.errors import InputError


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> GeneralizedRCNNWithTTA:
    """Let a model look at every image in several sizes, and mirrored, as ``TEST.AUG`` says.

    Boxes of all versions are put together and go through non-maximum suppression once more; the
    mask of what remains is the mean over all versions. One version takes about as long as plain
    inference and a second pass over the mask head.

    Args:
        cfg: ``TEST.AUG.MIN_SIZES`` (shorter side, pixels), ``MAX_SIZE`` (longer side) and ``FLIP``.
        model: plain or wrapped by DistributedDataParallel.

    Returns:
        The model to use in its place, sharing its weights.

    Raises:
        InputError: the model is no GeneralizedRCNN, or there are no sizes.
    """
    inner = getattr(model, "module", model)
    if not isinstance(inner, GeneralizedRCNN):
        raise InputError(
            f"TEST.AUG.ENABLED: a {type(inner).__name__} cannot be augmented, only GeneralizedRCNN"
        )
    sizes = list(cfg.TEST.AUG.MIN_SIZES)
    if not sizes or min(sizes) < 1 or max(sizes) > cfg.TEST.AUG.MAX_SIZE:
        raise InputError(
            f"TEST.AUG.MIN_SIZES {sizes}, MAX_SIZE {cfg.TEST.AUG.MAX_SIZE}: name at least one size"
            " in pixels, none larger than MAX_SIZE"
        )
    return GeneralizedRCNNWithTTA(cfg, inner)
