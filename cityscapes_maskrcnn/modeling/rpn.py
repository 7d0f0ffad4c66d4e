"""Detectron2's region proposal network, with all images of a batch handled at once."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cityscapes_maskrcnn.modeling.matching import (
    box_deltas,
    match_boxes,
    pad,
    sample,
    to_device,
)
from cityscapes_maskrcnn.modeling.nms import BatchedNMS
from cityscapes_maskrcnn.modeling.step_metrics import StepMetrics

# Sizes of images whose anchors are kept: one for every size that training resizes to. Those of a
# 1024x2048 image take 8 MB.
_KEPT_SIZES = 8


@PROPOSAL_GENERATOR_REGISTRY.register()
class BatchedRPN(StepMetrics, RPN):
    """Detectron2's :class:`RPN`, which waits for the GPU once a batch.

    Its parameters, losses and proposals are the same; anchors for the losses are drawn with equal
    probabilities. Shapes: B images, L levels, R anchors of all levels together.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kept_anchors: dict[Any, Tensor] = {}

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose regions, and in training compute the losses.

        Args:
            images: B images.
            features: of shape (B, C, H, W) each.
            gt_instances: ``gt_boxes`` of the images, for training.

        Returns:
            ``proposal_boxes`` and ``objectness_logits`` (float32) of every image, by descending
            score; and the losses, empty in evaluation.

        Raises:
            FloatingPointError: in training, a score or box is infinite or NaN.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self._anchors(maps)
        logit_maps, delta_maps = self.rpn_head(maps)
        # (B, A, H, W) -> (B, HWA)
        logits = [each.permute(0, 2, 3, 1).flatten(1) for each in logit_maps]
        # (B, A4, H, W) -> (B, HWA, 4)
        deltas = torch.cat(
            [
                each.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                for each in delta_maps
            ],
            dim=1,
        )
        losses = {}
        if self.training:
            assert gt_instances is not None, "RPN requires gt_instances in training!"
            losses = self._losses(anchors, torch.cat(logits, dim=1), deltas, gt_instances)
        with torch.no_grad():
            proposals = self._propose(anchors, logits, deltas, images.image_sizes)
        return proposals, losses

    def _anchors(self, maps: list[Tensor]) -> Tensor:
        """Return the anchors of all levels, of shape (R, 4)."""
        if not isinstance(self.anchor_generator, DefaultAnchorGenerator):
            return Boxes.cat(self.anchor_generator(maps)).tensor
        # Detectron2 computes them on the CPU, and the GPU waits for ten copies.
        key = (maps[0].device, *(each.shape[-2:] for each in maps))
        if key not in self._kept_anchors:
            if len(self._kept_anchors) == _KEPT_SIZES:
                del self._kept_anchors[next(iter(self._kept_anchors))]
            # Autograd takes no tensors of inference mode, should prediction come first.
            with torch.inference_mode(False):
                self._kept_anchors[key] = Boxes.cat(self.anchor_generator(maps)).tensor
        return self._kept_anchors[key]

    def _losses(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute the losses from anchors (R, 4), logits (B, R) and deltas (B, R, 4)."""
        gt_boxes, gt_valid = pad([each.gt_boxes.tensor for each in gt_instances])
        with torch.no_grad():
            matched, labels = match_boxes(
                gt_boxes,
                gt_valid,
                anchors,
                self.anchor_matcher.thresholds[1:-1],
                self.anchor_matcher.labels,
                self.anchor_matcher.allow_low_quality_matches,
            )
            if self.anchor_boundary_thresh >= 0:
                inside = [
                    Boxes(anchors).inside_box(each.image_size, self.anchor_boundary_thresh)
                    for each in gt_instances
                ]
                labels.masked_fill_(~torch.stack(inside), -1)
            drawn = sample(labels, self.batch_size_per_image, self.positive_fraction, bg_label=0)
        images = len(gt_instances)
        self.step_metrics = {
            "rpn/num_pos_anchors": drawn.positive.sum() / images,
            "rpn/num_neg_anchors": (drawn.valid & ~drawn.positive).sum() / images,
        }
        # What an empty place points at must reach neither the loss nor the gradient.
        drawn_logits = logits.gather(1, drawn.indices).masked_fill(~drawn.valid, 0)
        objectness_loss = F.binary_cross_entropy_with_logits(
            drawn_logits, drawn.positive.float(), weight=drawn.valid.float(), reduction="sum"
        )
        positives = int(self.batch_size_per_image * self.positive_fraction)  # at most, an image
        is_positive = drawn.positive[:, :positives, None]
        indices = drawn.indices[:, :positives]
        localization_loss = self._box_loss(
            anchors[indices],
            deltas.gather(1, indices[..., None].expand(-1, -1, 4)).masked_fill(~is_positive, 0),
            gt_boxes.gather(1, matched.gather(1, indices)[..., None].expand(-1, -1, 4)),
            is_positive,
        )
        normalizer = self.batch_size_per_image * images
        losses = {
            "loss_rpn_cls": objectness_loss / normalizer,
            "loss_rpn_loc": localization_loss / normalizer,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _box_loss(
        self, anchors: Tensor, deltas: Tensor, gt_boxes: Tensor, is_positive: Tensor
    ) -> Tensor:
        """Sum the localization losses of boxes (B, P, 4) where ``is_positive`` (B, P, 1)."""
        if self.box_reg_loss_type != "smooth_l1":
            # Detectron2's losses of overlaps verify their boxes and so wait for the GPU anyway.
            return _dense_box_regression_loss(
                [anchors.flatten(0, 1)],
                self.box2box_transform,
                [deltas.flatten(0, 1)[None]],
                [gt_boxes.flatten(0, 1)],
                is_positive.flatten()[None],
                box_reg_loss_type=self.box_reg_loss_type,
            )
        targets = box_deltas(anchors, gt_boxes, self.box2box_transform.weights)
        targets = targets.masked_fill(~is_positive, 0)
        return smooth_l1_loss(deltas, targets, beta=self.smooth_l1_beta, reduction="sum")

    def _propose(
        self,
        anchors: Tensor,
        logits: list[Tensor],
        deltas: Tensor,
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the best boxes, suppress their duplicates a level at a time, and rank the rest.

        Detectron2's ``find_top_rpn_proposals`` for all images at once: of K boxes an image, the
        best of every level, those that do not count are marked, and cut off at the very end.
        """
        best = [
            level.topk(min(self.pre_nms_topk[self.training], level.shape[1]), dim=1)
            for level in logits
        ]
        lengths = [level.indices.shape[1] for level in best]
        starts = accumulate((level.shape[1] for level in logits), initial=0)
        # In float32 in a step of any precision: boxes in half precision are off by pixels.
        scores = torch.cat([level.values for level in best], dim=1).float()
        indices = torch.cat(
            [level.indices + start for level, start in zip(best, starts, strict=False)], dim=1
        )
        boxes = self.box2box_transform.apply_deltas(
            deltas.gather(1, indices[..., None].expand(-1, -1, 4)).flatten(0, 1),
            anchors[indices].flatten(0, 1),
        ).view(len(scores), -1, 4)
        finite = boxes.isfinite().all(dim=2) & scores.isfinite()
        limits = [[[width, height, width, height]] for height, width in image_sizes]
        boxes = boxes.clamp(min=0).minimum(to_device(limits, boxes.device, boxes.dtype))
        large = (boxes[..., 2:] - boxes[..., :2] > self.min_box_size).all(dim=2)
        nms = BatchedNMS(
            _rows(boxes, lengths), _rows(finite & large, lengths), iou_thresh=self.nms_thresh
        )
        while True:
            levels = nms.keep.view(len(lengths), len(boxes), -1)
            keep = torch.cat(
                [level[:, :length] for level, length in zip(levels, lengths, strict=True)], dim=1
            )
            ranked = scores.masked_fill(~keep, -torch.inf).sort(dim=1, descending=True, stable=True)
            order = ranked.indices[:, : self.post_nms_topk[self.training]]
            counts = keep.sum(dim=1).clamp(max=order.shape[1])
            # The only transfer to the host.
            *lengths_of_images, all_finite, converged = torch.cat(
                [counts, finite.all()[None], nms.converged[None]]
            ).tolist()
            if self.training and not all_finite:
                raise FloatingPointError(
                    "Predicted boxes or scores contain Inf/NaN. Training has diverged."
                )
            if converged:
                break
            nms.advance()
        top_boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        top_scores = scores.gather(1, order)
        return [
            Instances(
                size,
                proposal_boxes=Boxes(top_boxes[image, :length]),
                objectness_logits=top_scores[image, :length],
            )
            for image, (size, length) in enumerate(zip(image_sizes, lengths_of_images, strict=True))
        ]


def _rows(values: Tensor, lengths: list[int]) -> Tensor:
    """Turn (B, K, ...), the levels one after the other, into padded (L * B, longest level, ...)."""
    levels = [level.transpose(0, 1) for level in values.split(lengths, dim=1)]
    return pad_sequence(levels, batch_first=True).transpose(1, 2).flatten(0, 1)
