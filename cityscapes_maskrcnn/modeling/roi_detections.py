"""Choosing detections among the boxes and scores of the box head, by greedy or soft-NMS.

Greedy NMS has Detectron2's results, for all images of a batch at once: the host waits for a GPU
once, where Detectron2 waits several times for every image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor

from cityscapes_maskrcnn.modeling import matching
from cityscapes_maskrcnn.modeling.nms import BatchedNMS, soft_nms

# More pairs of boxes than these, in half a gigabyte, are not compared at once, but by Detectron2.
_MOST_PAIRS = 2**28


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
