"""Box and mask heads that sample, match and compute losses for all images of a batch at once.

They have Detectron2's parameters, fields, losses and metrics. What differs is how often the host
waits for a GPU in a training step: once for the numbers of samples and once in the pooling, where
Detectron2 waits dozens of times for every image. The formulas of the losses are in ``roi_losses``,
the choice of detections is in ``roi_detections``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_loss
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from cityscapes_maskrcnn.modeling import matching
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.modeling.pooling import BatchedROIPooler, pool_regions
from cityscapes_maskrcnn.modeling.roi_detections import detections, soft_detections
from cityscapes_maskrcnn.modeling.roi_losses import box_losses, classification_metrics, mask_loss
from cityscapes_maskrcnn.modeling.step_metrics import StepMetrics

# Of ground truth among the proposals: P(object) is 1 - 1e-10, as in Detectron2.
_GT_LOGIT = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))


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
