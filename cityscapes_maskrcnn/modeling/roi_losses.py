"""Losses and metrics of the box and mask heads, for all images of a batch at once.

They have Detectron2's values. Detectron2 searches the classes for the foreground, and the host
waits for a GPU to find it; here it comes first in every image, and the caller knows its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import cross_entropy
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from cityscapes_maskrcnn.modeling import matching
from cityscapes_maskrcnn.modeling.polygon_masks import mask_targets


def _sections(proposals: Sequence[Instances], num_foreground: Sequence[int]) -> list[int]:
    """List the lengths of foreground and background, image by image."""
    sections = []
    for each, number in zip(proposals, num_foreground, strict=True):
        sections += [number, len(each) - number]
    return sections


def _foreground_of(rows: Tensor, sections: list[int]) -> Tensor:
    """Select the rows of the foreground, which comes first in every image."""
    return torch.cat(rows.split(sections)[::2])


def _of_classes(rows: Tensor, classes: Tensor) -> Tensor:
    """Select from rows (M, K, ...) what belongs to one class each, of shape (M, ...)."""
    number, num_classes = rows.shape[:2]
    index = torch.arange(number, device=rows.device) * num_classes + classes
    return rows.flatten(0, 1).index_select(0, index)


def box_losses(
    predictor: FastRCNNOutputLayers,
    predictions: tuple[Tensor, Tensor],
    proposals: Sequence[Instances],
    num_foreground: Sequence[int],
) -> dict[str, Tensor]:
    """Compute what :meth:`FastRCNNOutputLayers.losses` does, without its search for the foreground.

    Args:
        predictor: knows the kinds and the weights of the losses.
        predictions: scores (R, K + 1) and deltas (R, 4 * K), or (R, 4).
        proposals: of every image, with ``proposal_boxes`` and ``gt_classes``, foreground first, and
            ``gt_boxes`` where there is foreground.
        num_foreground: of every image.

    Returns:
        Scalars ``loss_cls`` and ``loss_box_reg``.
    """
    scores, deltas = predictions
    gt_classes = torch.cat([each.gt_classes for each in proposals])
    if predictor.use_sigmoid_ce:
        loss_cls = predictor.sigmoid_cross_entropy_loss(scores, gt_classes)
    else:
        loss_cls = cross_entropy(scores, gt_classes, reduction="mean")

    sections = _sections(proposals, num_foreground)
    deltas = _foreground_of(deltas, sections)
    if deltas.shape[1] != 4:
        deltas = _of_classes(
            deltas.view(-1, predictor.num_classes, 4), _foreground_of(gt_classes, sections)
        )
    boxes = _foreground_of(torch.cat([each.proposal_boxes.tensor for each in proposals]), sections)
    gt_boxes = torch.cat(
        [
            each.gt_boxes.tensor[:number] if number else boxes.new_zeros(0, 4)
            for each, number in zip(proposals, num_foreground, strict=True)
        ]
    )
    if predictor.box_reg_loss_type == "smooth_l1":
        loss_box_reg = smooth_l1_loss(
            deltas,
            matching.box_deltas(boxes, gt_boxes, predictor.box2box_transform.weights),
            beta=predictor.smooth_l1_beta,
            reduction="sum",
        )
    else:
        loss_box_reg = _dense_box_regression_loss(
            [boxes],
            predictor.box2box_transform,
            [deltas[None]],
            [gt_boxes],
            ...,
            predictor.box_reg_loss_type,
            predictor.smooth_l1_beta,
        )
    # By all regions, so that each counts the same however many are foreground.
    losses = {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg / max(len(gt_classes), 1)}
    return {name: loss * predictor.loss_weight.get(name, 1.0) for name, loss in losses.items()}


@torch.no_grad()
def classification_metrics(
    scores: Tensor, proposals: Sequence[Instances], num_foreground: Sequence[int]
) -> dict[str, Tensor]:
    """Compute Detectron2's metrics of the box head, as scalars that stay on the device.

    Args:
        scores: (R, K + 1), the last one of the background.
        proposals: of every image, with ``gt_classes``, foreground first; R in all.
        num_foreground: of every image.
    """
    if not len(scores):
        return {}
    pred_classes = scores.argmax(dim=1)
    correct = pred_classes == torch.cat([each.gt_classes for each in proposals])
    metrics = {"fast_rcnn/cls_accuracy": correct.mean(dtype=torch.float32)}
    if sum(num_foreground):
        sections = _sections(proposals, num_foreground)
        correct = _foreground_of(correct, sections)
        missed = _foreground_of(pred_classes, sections) == scores.shape[1] - 1
        metrics["fast_rcnn/fg_cls_accuracy"] = correct.mean(dtype=torch.float32)
        metrics["fast_rcnn/false_negative"] = missed.mean(dtype=torch.float32)
    return metrics


def mask_loss(logits: Tensor, instances: Sequence[Instances]) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute what ``mask_rcnn_loss`` of Detectron2 does; its metrics stay on the device.

    Args:
        logits: (M, K, size, size), or (M, 1, size, size) of a head without classes.
        instances: of every image, M in all, with ``proposal_boxes``, ``gt_classes`` and
            ``gt_masks``; those without instances may lack them.

    Returns:
        The loss and the metrics, all of them scalars.
    """
    instances = [each for each in instances if len(each)]
    if not instances:
        return logits.sum() * 0, {}
    if logits.shape[1] == 1:
        logits = logits[:, 0]
    else:
        logits = _of_classes(logits, torch.cat([each.gt_classes for each in instances]))
    gt_masks = mask_targets(instances, logits.shape[-1])
    is_mask = gt_masks if gt_masks.dtype == torch.bool else gt_masks > 0.5
    with torch.no_grad():
        incorrect = (logits > 0) != is_mask
        num_mask = is_mask.sum()
        num_missed = (incorrect & is_mask).sum()
        num_incorrect = incorrect.sum()
        num_pixels = incorrect.numel()
        metrics = {
            "mask_rcnn/accuracy": 1 - num_incorrect / num_pixels,
            "mask_rcnn/false_positive": (num_incorrect - num_missed)
            / (num_pixels - num_mask).clamp(min=1),
            "mask_rcnn/false_negative": num_missed / num_mask.clamp(min=1),
        }
    loss = F.binary_cross_entropy_with_logits(logits, gt_masks.to(torch.float32))
    return loss, metrics
