"""Losses that make a detector imitate another one on the same images: ``MODEL.DISTILLATION``.

The pyramid's features imitate the teacher's (Romero et al., "FitNets", ICLR 2015; for detectors
Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS
2017), and the classes of the sampled regions its probabilities (Hinton et al., "Distilling the
Knowledge in a Neural Network", 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN, StandardROIHeads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn
from torch.nn import functional as F

from cityscapes_maskrcnn.data.provenance import UsedData
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.utils.errors import InputError


class Distillation:
    """The forward pass of a training step, with losses of imitation beside the model's own.

    The teacher is no part of the model: it is in no checkpoint, and nothing but training knows it.

    Args:
        teacher: a trained detector in evaluation mode, with pyramid and regions as the model's.
        weight: factor of the losses.
        history: what the teacher has seen.
    """

    def __init__(
        self, teacher: GeneralizedRCNN, weight: float, history: Sequence[UsedData] = ()
    ) -> None:
        self._teacher: Any = teacher
        self._weight = weight
        self.history = tuple(history)

    def __call__(self, model: nn.Module, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            model: in training mode, perhaps wrapped by DistributedDataParallel.
            batch: as the model takes it.

        Returns:
            The model's losses, ``loss_distill_features`` and ``loss_distill_classes``.
        """
        inner: Any = getattr(model, "module", model)
        heads = inner.roi_heads
        inputs: dict[nn.Module, Any] = {}
        outputs: dict[nn.Module, Any] = {}

        def note(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            inputs[module], outputs[module] = given, returned

        with ExitStack() as stack:
            for part in (inner.backbone, heads.box_pooler, heads.box_predictor, heads):
                stack.enter_context(part.register_forward_hook(note))
            losses: dict[str, Tensor] = dict(model(batch))
        images, features = inputs[inner.backbone][0], outputs[inner.backbone]
        # MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES replaces the sampled boxes once they are pooled;
        # heads that pool boxes and masks at once do not call the pooler.
        if heads.box_pooler in inputs:
            regions = inputs[heads.box_pooler][1]
        else:
            regions = [each.proposal_boxes for each in outputs[heads][0]]
        imitated, logits = self._imitated(images, regions)
        of_features = feature_loss(features, imitated)
        of_classes = class_loss(outputs[heads.box_predictor][0], logits)
        losses["loss_distill_features"] = self._weight * of_features
        losses["loss_distill_classes"] = self._weight * of_classes
        return losses

    @torch.no_grad()
    def _imitated(self, images: Tensor, regions: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the teacher's features that heads read, and its logits of the model's regions."""
        heads = self._teacher.roi_heads
        used = {*self._teacher.proposal_generator.in_features, *heads.in_features}
        features = self._teacher.backbone(images)
        features = {name: each for name, each in features.items() if name in used}
        pooled = heads.box_pooler([features[name] for name in heads.in_features], regions)
        logits: Tensor = heads.box_predictor(heads.box_head(pooled))[0]
        return features, logits


def feature_loss(features: Mapping[str, Tensor], imitated: Mapping[str, Tensor]) -> Tensor:
    """Squared distance to a teacher's features, as a share of their squared length.

    Args:
        features: by level, (N, C, H, W).
        imitated: the teacher's, of the same shapes.

    Returns:
        A scalar, the mean over levels and images.
    """
    shares = []
    for name, theirs in imitated.items():
        target = theirs.float().flatten(1)
        distance = (features[name].float().flatten(1) - target).square().sum(dim=1)
        shares.append(distance / target.square().sum(dim=1).clamp(min=1e-12))
    return torch.stack(shares).mean()


def class_loss(logits: Tensor, imitated: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class probabilities from a teacher's.

    Args:
        logits: (R, K + 1), of R regions.
        imitated: the teacher's.

    Returns:
        A scalar, the mean over regions; 0 of none.
    """
    ours, theirs = (each.float().log_softmax(dim=1) for each in (logits, imitated))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / max(len(logits), 1)


def build_distillation(
    cfg: CfgNode, model: nn.Module, build_model: Callable[[CfgNode], nn.Module]
) -> Distillation | None:
    """Build what ``MODEL.DISTILLATION`` asks for.

    Args:
        cfg: the teacher is built from it too, without ``MODEL.PRUNED_WIDTHS``.
        model: that is trained, not wrapped by DistributedDataParallel.
        build_model: builds a model of a config on its device.

    Returns:
        None without a teacher.

    Raises:
        InputError: the weight is negative, the model is one that cannot imitate, or the teacher's
            weights are missing or of another model.
    """
    settings = cfg.MODEL.DISTILLATION
    if not settings.TEACHER:
        return None
    if not _can_imitate(model):
        raise InputError(
            "MODEL.DISTILLATION.TEACHER: only a GeneralizedRCNN with an FPN, StandardROIHeads or"
            " BatchedROIHeads, and the usual box predictor can imitate another one"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = settings.TEACHER
    cfg.MODEL.PRUNED_WIDTHS = CfgNode(new_allowed=True)
    cfg.MODEL.ACTIVATION_CHECKPOINTING = ()
    cfg.freeze()
    teacher: Any = build_model(cfg).eval().requires_grad_(False)
    try:
        history = load_for_inference(teacher, cfg).history
    except InputError as error:
        raise InputError(f"MODEL.DISTILLATION.TEACHER: {error}") from error
    return Distillation(teacher, settings.WEIGHT, history)


def _can_imitate(model: Any) -> bool:
    return (
        isinstance(model, GeneralizedRCNN)
        and isinstance(model.backbone, FPN)
        and isinstance(model.roi_heads, StandardROIHeads)
        and type(model.roi_heads.box_predictor) is FastRCNNOutputLayers
    )
