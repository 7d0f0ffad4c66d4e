"""Matching boxes with ground truth and sampling them, for all images of a batch at once.

Detectron2 does it an image at a time and asks the GPU how many there are at every turn. Here every
tensor has a size that is known before: images with fewer boxes are padded, and masks say which
entries count. Nothing waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Values of an IoU matrix to work on at once: it stays in a CPU's cache, and takes 64 MB of a GPU's
# memory.
_CHUNK_ON_CPU = 2**17
_CHUNK_ON_GPU = 2**24


class Sample(NamedTuple):
    """Boxes that were drawn for a loss, of shape (B, S): positives first, then negatives.

    Attributes:
        indices: int64; 0 where there is no sample.
        valid: bool; False where an image has fewer than S samples.
        positive: bool; a part of ``valid``.
    """

    indices: Tensor
    valid: Tensor
    positive: Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Make a tensor of numbers, without waiting for the GPU.

    Args:
        values: a number or nested lists of numbers.
        device: of the result.
        dtype: as in :func:`torch.tensor`.
    """
    tensor = torch.tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def pad(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack tensors of different lengths, padded with zeros.

    Padded boxes have an IoU of 0 with every box.

    Args:
        tensors: one of shape (length, ...) for each of the B images, such as boxes or classes.

    Returns:
        A tensor of shape (B, G, ...), where G is the largest length, at least 1; and which entries
        are no padding, bool of shape (B, G).
    """
    lengths = [len(each) for each in tensors]
    first = tensors[0]
    padded = first.new_zeros((len(tensors), max(1, *lengths), *first.shape[1:]))
    for row, each in zip(padded, tensors, strict=True):
        row[: len(each)] = each
    places = torch.arange(padded.shape[1], device=first.device)
    return padded, places < to_device(lengths, first.device)[:, None]


def pairwise_iou(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Compute the IoU of every ground-truth box with every box of its image.

    Args:
        gt_boxes: (x1, y1, x2, y2), float32 of shape (B, G, 4).
        boxes: of shape (B, N, 4), or (N, 4) if the images share them.

    Returns:
        Float32 of shape (B, G, N), bit-equal to Detectron2's; 0 where boxes have nothing in common.
    """
    # Contiguous coordinates are twice as fast on a CPU.
    columns = boxes.transpose(-1, -2).contiguous()
    gt_left, gt_top, gt_right, gt_bottom = gt_boxes[..., None].unbind(-2)  # (B, G, 1) each
    left, top, right, bottom = columns[..., None, :].unbind(-3)  # (B or 1, 1, N) each
    # In place: these matrices are the largest tensors of a training step.
    intersection = torch.minimum(gt_right, right).sub_(torch.maximum(gt_left, left)).clamp_(min=0)
    heights = torch.minimum(gt_bottom, bottom).sub_(torch.maximum(gt_top, top)).clamp_(min=0)
    intersection.mul_(heights)
    gt_areas = (gt_right - gt_left) * (gt_bottom - gt_top)
    union = torch.add(gt_areas, (right - left) * (bottom - top), out=heights).sub_(intersection)
    # Two boxes without an area have no union either: 0 / 0.
    return intersection.div_(union).nan_to_num_(nan=0.0)


def match_boxes(
    gt_boxes: Tensor,
    gt_valid: Tensor,
    boxes: Tensor,
    thresholds: Sequence[float],
    labels: Sequence[int],
    allow_low_quality_matches: bool,
) -> tuple[Tensor, Tensor]:
    """Match boxes with ground truth by their IoU, as Detectron2's ``Matcher`` does for an image.

    The whole IoU matrix is never held.

    Args:
        gt_boxes: float32 of shape (B, G, 4), with G at least 1; padding must be zeros.
        gt_valid: which ground truth is no padding, bool of shape (B, G).
        boxes: of shape (B, N, 4), or (N, 4) if the images share them.
        thresholds: ascending, all above 0.
        labels: one more than thresholds, from the lowest IoU to the highest: -1 to ignore, 0 for
            background, 1 for foreground.
        allow_low_quality_matches: label 1 also the boxes that no other box surpasses for some
            ground truth.

    Returns:
        The index of the ground truth with the highest IoU, int64 of shape (B, N), 0 if an image has
        none; and the label, int8 of shape (B, N).
    """
    values = _CHUNK_ON_GPU if gt_boxes.is_cuda else _CHUNK_ON_CPU
    size = max(1, values // gt_valid.numel())
    best, indices, peaks, at_peak = [], [], [], []
    for chunk in boxes.split(size, dim=-2):
        iou = pairwise_iou(gt_boxes, chunk)
        highest, gt = iou.max(dim=1)
        best.append(highest)
        indices.append(gt)
        if allow_low_quality_matches and iou.shape[2]:
            peaks.append(iou.amax(dim=2))  # of every ground truth, in this chunk
            at_peak.append(iou == peaks[-1][..., None])
    matched_iou = torch.cat(best, dim=1)
    match_labels = torch.full_like(matched_iou, labels[0], dtype=torch.int8)
    for threshold, label in zip(thresholds, labels[1:], strict=True):
        match_labels.masked_fill_(matched_iou >= threshold, label)
    if peaks:
        chunk_peaks = torch.stack(peaks)  # (chunks, B, G)
        # A peak of 0 counts too: all boxes then are "the best" for that ground truth.
        is_peak = (chunk_peaks == chunk_peaks.amax(dim=0)) & gt_valid
        low_quality = [
            places.logical_and_(counts[..., None]).any(dim=1)
            for places, counts in zip(at_peak, is_peak, strict=True)
        ]
        match_labels.masked_fill_(torch.cat(low_quality, dim=1), 1)
    return torch.cat(indices, dim=1), match_labels


def sample(labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int) -> Sample:
    """Draw positives and negatives of every image, distributed as Detectron2's.

    Of an image with P positives, ``min(P, int(num_samples * positive_fraction))`` are drawn, and
    negatives for the rest, as far as there are any; every choice of that many is equally likely.
    The numbers come from torch's default generator of the device.

    Args:
        labels: of shape (B, N): -1 to ignore (padding too), ``bg_label`` for negatives, anything
            else for positives.
        num_samples: S.
        positive_fraction: of S, the most that may be positives.
        bg_label: the label of negatives.

    Source: ``detectron2.modeling.sampling.subsample_labels``, whose counts depend on the GPU's.
    """
    labels = F.pad(labels, (0, max(0, num_samples - labels.shape[1])), value=-1)
    most = int(num_samples * positive_fraction)
    negative = labels == bg_label
    positive = (labels != -1) & ~negative
    # The highest of random numbers are a random choice; others get a number that is below all.
    keys = torch.rand(labels.shape, device=labels.device)
    positive_keys, positives = keys.masked_fill(~positive, -1).topk(most, dim=1)
    negative_keys, negatives = keys.masked_fill(~negative, -1).topk(num_samples, dim=1)
    num_positive = (positive_keys >= 0).sum(dim=1, keepdim=True)
    num_negative = (negative_keys >= 0).sum(dim=1, keepdim=True)
    places = torch.arange(num_samples, device=labels.device)
    is_positive = places < num_positive
    valid = places < num_positive + num_negative
    # Negatives follow the positives that there are, not those that there might be.
    source = torch.where(is_positive, places, places - num_positive + most)
    indices = torch.cat((positives, negatives), dim=1).gather(1, source)
    return Sample(indices.masked_fill(~valid, 0), valid, is_positive)


def box_deltas(
    src_boxes: Tensor, target_boxes: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """Encode targets as Detectron2's ``Box2BoxTransform.get_deltas`` does, which waits for the GPU.

    Args:
        src_boxes: anchors or proposals, with an area; of shape (..., 4).
        target_boxes: of the same shape.
        weights: ``weights`` of the transform.

    Returns:
        (dx, dy, dw, dh), of shape (..., 4).
    """
    left, top, right, bottom = src_boxes.unbind(-1)
    target_left, target_top, target_right, target_bottom = target_boxes.unbind(-1)
    width, height = right - left, bottom - top
    target_width, target_height = target_right - target_left, target_bottom - target_top
    center_x, center_y = left + 0.5 * width, top + 0.5 * height
    wx, wy, ww, wh = weights
    return torch.stack(
        (
            wx * (target_left + 0.5 * target_width - center_x) / width,
            wy * (target_top + 0.5 * target_height - center_y) / height,
            ww * torch.log(target_width / width),
            wh * torch.log(target_height / height),
        ),
        dim=-1,
    )
