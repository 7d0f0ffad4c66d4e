"""Box and mask heads that sample, match and compute losses for all images of a batch at once.

They have Detectron2's parameters, fields, losses and metrics. What differs is how often the host
waits for a GPU in a training step: once for the numbers of samples and once in the pooling, where
Detectron2 waits dozens of times for every image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cross_entropy
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_loss
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from cityscapes_maskrcnn.modeling import matching
from cityscapes_maskrcnn.modeling.nms import BatchedNMS, soft_nms
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons, mask_targets
from cityscapes_maskrcnn.modeling.pooling import BatchedROIPooler, pool_regions
from cityscapes_maskrcnn.modeling.step_metrics import StepMetrics

# Of ground truth among the proposals: P(object) is 1 - 1e-10, as in Detectron2.
_GT_LOGIT = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))
# More pairs of boxes than these, in half a gigabyte, are not compared at once, but by Detectron2.
_MOST_PAIRS = 2**28


@ROI_HEADS_REGISTRY.register()
class BatchedROIHeads(StepMetrics, StandardROIHeads):
    """``StandardROIHeads`` whose training step hardly waits for a GPU; on CPUs it is no slower.

    Keypoint heads, ``MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES`` and mask heads without a pooler train
    as in Detectron2, except for the sampling. A mask head without a pooler whose class has
    ``takes_foreground = True`` gets all features and the foreground, as :class:`.PatchDCTHead`.

    Args:
        soft_nms: the method of :func:`.nms.soft_nms`, or ``"off"``: detections that overlap better
            ones are removed, as in Detectron2.
        soft_nms_sigma: its ``sigma``; its threshold is that of the box predictor.
        others: as of :class:`StandardROIHeads`.

    Attributes:
        polygon_type: what ``gt_masks`` should be; others work too, and are rasterized on the CPU.
    """

    polygon_type = FlatPolygons

    @configurable
    def __init__(
        self, *, soft_nms: str = "off", soft_nms_sigma: float = 0.5, **others: Any
    ) -> None:
        super().__init__(**others)
        self.soft_nms = soft_nms
        self.soft_nms_sigma = soft_nms_sigma

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the constructor's arguments as Detectron2 does, and ``ROI_HEADS.SOFT_NMS``."""
        arguments: dict[str, Any] = super().from_config(cfg, input_shape)
        soft_nms = cfg.MODEL.ROI_HEADS.SOFT_NMS
        return {**arguments, "soft_nms": soft_nms.METHOD, "soft_nms_sigma": soft_nms.SIGMA}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        parts["box_pooler"] = _pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        return parts

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts: dict[str, Any] = super()._init_mask_head(cfg, input_shape)
        if parts.get("mask_pooler") is not None:
            parts["mask_pooler"] = _pooler(cfg, cfg.MODEL.ROI_MASK_HEAD, input_shape)
        return parts

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Compute losses or detections, see :meth:`StandardROIHeads.forward`."""
        takes_own_samples = self.mask_on and self.mask_pooler is None
        pooled_later = takes_own_samples and not getattr(self.mask_head, "takes_foreground", False)
        if not self.training or self.train_on_pred_boxes or pooled_later or self.keypoint_on:
            result: tuple[list[Instances], dict[str, Tensor]] = super().forward(
                images, features, proposals, targets
            )
            return result
        assert targets is not None, "'targets' argument is required during training"
        sampled, num_foreground = self._label_and_sample(proposals, targets)
        foreground = [each[:number] for each, number in zip(sampled, num_foreground, strict=True)]
        poolers = [self.box_pooler]
        boxes = [[each.proposal_boxes for each in sampled]]
        if self.mask_on and not takes_own_samples:
            poolers.append(self.mask_pooler)
            boxes.append([each.proposal_boxes for each in foreground])
        pooled = pool_regions([features[name] for name in self.in_features], poolers, boxes)
        predictions = self.box_predictor(self.box_head(pooled[0]))
        losses, metrics = self._box_losses(predictions, sampled, num_foreground)
        if self.mask_on:
            samples = features if takes_own_samples else pooled[1]
            mask_losses, mask_metrics = self._mask_losses(samples, foreground)
            losses, metrics = losses | mask_losses, metrics | mask_metrics
        self.step_metrics = metrics
        return sampled, losses

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Choose the proposals to train on, see :meth:`ROIHeads.label_and_sample_proposals`.

        The foreground comes first.
        """
        return self._label_and_sample(proposals, targets)[0]

    @torch.no_grad()
    def _label_and_sample(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> tuple[list[Instances], list[int]]:
        """Return the sampled proposals of every image and how many of them are foreground."""
        candidates = [
            torch.cat([each.proposal_boxes.tensor, each.objectness_logits[:, None]], dim=1)
            for each in proposals
        ]
        gt = [each.gt_boxes.tensor for each in targets]
        if self.proposal_append_gt:
            candidates = [
                torch.cat([each, F.pad(boxes, (0, 1), value=_GT_LOGIT)])
                for each, boxes in zip(candidates, gt, strict=True)
            ]
        boxes, is_box = matching.pad(candidates)
        gt_boxes, is_gt = matching.pad(gt)
        gt_classes, _ = matching.pad([each.gt_classes for each in targets])
        matched, labels = matching.match_boxes(
            gt_boxes,
            is_gt,
            boxes[..., :4],
            self.proposal_matcher.thresholds[1:-1],
            self.proposal_matcher.labels,
            self.proposal_matcher.allow_low_quality_matches,
        )
        classes = gt_classes.gather(1, matched).masked_fill_(labels == 0, self.num_classes)
        classes.masked_fill_(labels == -1, -1)
        # Without ground truth everything is background, also where the matcher ignores the rest.
        classes.masked_fill_(~is_gt[:, :1], self.num_classes)
        classes.masked_fill_(~is_box, -1)
        indices, valid, positive = matching.sample(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        sampled_gt = matched.gather(1, indices)
        counts = torch.stack([positive.sum(dim=1), valid.sum(dim=1)], dim=1)
        # The only synchronisation. Masks that are kept on the host are indexed there.
        on_host = torch.cat([counts, sampled_gt], dim=1).tolist()
        boxes = boxes.gather(1, indices[..., None].expand(-1, -1, 5))
        classes = classes.gather(1, indices)
        gt_boxes = gt_boxes.gather(1, sampled_gt[..., None].expand(-1, -1, 4))
        sampled = []
        for image, (one, (_, number, *gt_indices)) in enumerate(zip(targets, on_host, strict=True)):
            instances = Instances(
                proposals[image].image_size,
                proposal_boxes=Boxes(boxes[image, :number, :4]),
                objectness_logits=boxes[image, :number, 4],
                gt_classes=classes[image, :number],
            )
            if len(one):
                instances.gt_boxes = Boxes(gt_boxes[image, :number])
            for name, value in one.get_fields().items() if len(one) else ():
                if name.startswith("gt_") and not instances.has(name):
                    indices = sampled_gt[image] if value.device == boxes.device else gt_indices
                    instances.set(name, value[indices[:number]])
            sampled.append(instances)
        num_foreground = [counts[0] for counts in on_host]
        storage = get_event_storage()
        total_foreground, total = sum(num_foreground), sum(map(len, sampled))
        storage.put_scalar("roi_head/num_fg_samples", total_foreground / len(sampled))
        storage.put_scalar("roi_head/num_bg_samples", (total - total_foreground) / len(sampled))
        return sampled, num_foreground

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Compute losses or detections of the box head alone; on CPUs as Detectron2 does."""
        predictor = self.box_predictor
        is_soft = self.soft_nms != "off"
        plain = type(predictor) is FastRCNNOutputLayers
        on_cpu = _on_cpu(proposals[0].proposal_boxes)
        if self.training or not (is_soft or (plain and not on_cpu)):
            result: dict[str, Tensor] | list[Instances] = super()._forward_box(features, proposals)
            return result
        pooled = self.box_pooler(
            [features[name] for name in self.in_features],
            [each.proposal_boxes for each in proposals],
        )
        predictions = predictor(self.box_head(pooled))
        boxes = predictor.predict_boxes(predictions, proposals)
        scores = predictor.predict_probs(predictions, proposals)
        image_sizes = [each.image_size for each in proposals]
        if is_soft:
            return [
                soft_detections(
                    *image,
                    score_thresh=predictor.test_score_thresh,
                    method=self.soft_nms,
                    nms_thresh=predictor.test_nms_thresh,
                    sigma=self.soft_nms_sigma,
                    topk_per_image=predictor.test_topk_per_image,
                )
                for image in zip(boxes, scores, image_sizes, strict=True)
            ]
        return detections(
            boxes,
            scores,
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Compute losses or masks of the mask head alone, as Detectron2 does.

        PointRend's head fails there if a batch has no object.
        """
        head = getattr(self, "mask_head", None)
        if (
            self.training
            and isinstance(head, PointRendMaskHead)
            and all((each.gt_classes == self.num_classes).all() for each in instances)
        ):
            nothing = sum(each.sum() for each in head.parameters()) * 0
            return {"loss_mask": nothing, "loss_mask_point": nothing}
        result: dict[str, Tensor] | list[Instances] = super()._forward_mask(features, instances)
        return result

    def _box_losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        num_foreground: list[int],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute losses and metrics of the box head; those of other predictors are their own."""
        if type(self.box_predictor) is not FastRCNNOutputLayers:
            return self.box_predictor.losses(predictions, proposals), {}
        losses = box_losses(self.box_predictor, predictions, proposals, num_foreground)
        return losses, classification_metrics(predictions[0], proposals, num_foreground)

    def _mask_losses(
        self, features: Any, foreground: list[Instances]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute loss and metrics of the mask head; those of other heads are their own."""
        head = self.mask_head
        if type(head).forward is not BaseMaskRCNNHead.forward:
            return head(features, foreground), {}
        logits = head.layers(features)
        if head.vis_period > 0 and get_event_storage().iter % head.vis_period == 0:
            # It also draws them.
            drawn = mask_rcnn_loss(logits, foreground, head.vis_period)
            return {"loss_mask": drawn * head.loss_weight}, {}
        loss, metrics = mask_loss(logits, foreground)
        return {"loss_mask": loss * head.loss_weight}, metrics


def _on_cpu(boxes: Boxes) -> bool:
    return bool(boxes.device.type == "cpu")


def _pooler(cfg: CfgNode, head: CfgNode, input_shape: dict[str, ShapeSpec]) -> BatchedROIPooler:
    """Build the pooler of a head, whose config is a node such as ``MODEL.ROI_BOX_HEAD``."""
    return BatchedROIPooler(
        output_size=head.POOLER_RESOLUTION,
        scales=[1.0 / input_shape[name].stride for name in cfg.MODEL.ROI_HEADS.IN_FEATURES],
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )


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


@torch.no_grad()
def detections(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> list[Instances]:
    """Choose detections as ``fast_rcnn_inference`` of Detectron2 does, with one synchronisation.

    Args:
        boxes: of every image, (R, 4 * K), or (R, 4) for all classes.
        scores: of every image, (R, K + 1); the background is last.
        image_sizes: height and width of every image.
        score_thresh: scores must be above it.
        nms_thresh: IoU above which the lower score of a class goes.
        topk_per_image: the most detections of an image; below 0 all.

    Returns:
        Detections of every image, by falling score: ``pred_boxes``, ``scores``, ``pred_classes``.
    """
    num_classes = scores[0].shape[1] - 1
    if len(boxes) * num_classes * max(map(len, boxes)) ** 2 > _MOST_PAIRS:
        return fast_rcnn_inference(
            boxes, scores, image_sizes, score_thresh, nms_thresh, topk_per_image
        )[0]
    all_scores, is_row = matching.pad(scores)  # (B, R, K + 1) of B images
    all_boxes, _ = matching.pad(boxes)
    finite = torch.isfinite(all_boxes).all(dim=2) & torch.isfinite(all_scores).all(dim=2)
    all_scores = all_scores[..., :-1]
    is_candidate = (all_scores > score_thresh) & (finite & is_row)[..., None]  # (B, R, K)
    limits = [[[[width, height, width, height]]] for height, width in image_sizes]
    all_boxes = all_boxes.unflatten(2, (-1, 4)).clamp(min=0)  # (B, R, K or 1, 4)
    all_boxes = all_boxes.minimum(matching.to_device(limits, all_boxes.device, all_boxes.dtype))
    all_boxes = all_boxes.expand(-1, -1, num_classes, -1)
    all_boxes = all_boxes.masked_fill(~is_candidate[..., None], 0)

    # Of each class by score, equal ones in their order, those that are no candidates last.
    ranked = (
        all_scores.masked_fill(~is_candidate, -torch.inf)
        .transpose(1, 2)
        .sort(dim=2, descending=True, stable=True)
    )
    ranked_boxes = all_boxes.transpose(1, 2).gather(
        2, ranked.indices[..., None].expand(-1, -1, -1, 4)
    )
    # Moved apart as torchvision's ``batched_nms`` does, whose IoUs are rounded by it.
    moves = torch.arange(num_classes, device=all_boxes.device) * (
        all_boxes.amax(dim=(1, 2, 3))[:, None] + 1
    )
    nms = BatchedNMS(
        (ranked_boxes + moves[..., None, None]).flatten(0, 1),
        ranked.values.isfinite().flatten(0, 1),
        nms_thresh,
    )
    while True:
        ranked_keep = nms.keep.view_as(ranked.indices)
        keep = torch.zeros_like(ranked_keep).scatter(2, ranked.indices, ranked_keep)
        best = (
            all_scores.masked_fill(~keep.transpose(1, 2), -torch.inf)
            .flatten(1)
            .sort(dim=1, descending=True, stable=True)
        )
        counts = keep.sum(dim=(1, 2))
        if topk_per_image >= 0:
            counts.clamp_(max=topk_per_image)
        # The only synchronisation.
        *numbers, converged = torch.cat([counts, nms.converged[None]]).tolist()
        if converged:
            break
        nms.advance()
    chosen = best.indices[:, : max(numbers)]
    chosen_boxes = all_boxes.flatten(1, 2).gather(1, chosen[..., None].expand(-1, -1, 4))
    return [
        Instances(
            size,
            pred_boxes=Boxes(chosen_boxes[image, :number]),
            scores=best.values[image, :number],
            pred_classes=chosen[image, :number] % num_classes,
        )
        for image, (size, number) in enumerate(zip(image_sizes, numbers, strict=True))
    ]


@torch.no_grad()
def soft_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    *,
    score_thresh: float,
    method: str,
    nms_thresh: float,
    sigma: float,
    topk_per_image: int,
) -> Instances:
    """Choose the detections of an image as :func:`detections` does, but by soft-NMS.

    Args:
        boxes: (R, 4 * K), or (R, 4) for all classes.
        scores: (R, K + 1); the background is last.
        image_size: height and width.
        score_thresh: scores must be above it, before and after they are lowered.
        method: see :func:`.nms.soft_nms`.
        nms_thresh: its ``iou_thresh``.
        sigma: see there.
        topk_per_image: the most detections; below 0 all.

    Returns:
        Detections by falling score, which is the lowered one.
    """
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    boxes, scores = boxes[finite], scores[finite, :-1].T  # (K, R)
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_size)
    boxes = clipped.tensor.view(len(boxes), boxes.shape[1] // 4, 4).transpose(0, 1)
    boxes = boxes.expand(len(scores), -1, -1)  # (K, R, 4)
    scores = scores.masked_fill(scores <= score_thresh, -1)
    # Few of a thousand proposals are candidates of a class.
    scores, candidates = scores.topk(int((scores >= 0).sum(dim=1).max()), dim=1)
    boxes = boxes.gather(1, candidates[..., None].expand(-1, -1, 4))
    most = topk_per_image if topk_per_image >= 0 else scores.shape[1]
    taken, scores = soft_nms(
        boxes, scores, method=method, iou_thresh=nms_thresh, sigma=sigma, most=most
    )
    boxes = boxes.gather(1, taken[..., None].expand(-1, -1, 4))
    classes, places = (scores > score_thresh).nonzero(as_tuple=True)
    # Equal scores in the order of classes.
    order = scores[classes, places].argsort(descending=True, stable=True)
    if topk_per_image >= 0:
        order = order[:topk_per_image]
    classes, places = classes[order], places[order]
    return Instances(
        image_size,
        pred_boxes=Boxes(boxes[classes, places]),
        scores=scores[classes, places],
        pred_classes=classes,
    )
