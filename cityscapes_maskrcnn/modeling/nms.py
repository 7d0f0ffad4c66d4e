"""Greedy and soft non-maximum suppression of many lists of boxes at once."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import Tensor

from cityscapes_maskrcnn.modeling.matching import pairwise_iou

# Rounds between two questions to the GPU whether all is decided. Crowds of 2,000 boxes around 3 to
# 300 objects took 2 to 11.
_ROUNDS = 12
# Pairs of boxes whose IoU is computed at once: 64 MB.
_PAIRS = 2**24


class BatchedNMS:
    """Greedy non-maximum suppression of R lists of N boxes, which the host need not wait for.

    A box is kept if no box before it in its list is kept and has a larger IoU with it than the
    threshold. On a GPU this is computed as a fixed point: in every round all boxes are judged by
    what the round before kept. What is kept of the first n boxes is right after n rounds at the
    latest, so there is one fixed point only, and it is the greedy result. Boxes seldom hang on long
    chains of others: a few rounds do, where a kernel that walks the boxes takes N steps.

    On a CPU, torchvision's function is faster.

    Args:
        boxes: (x1, y1, x2, y2), float32 of shape (R, N, 4); every list by descending score.
        valid: which boxes take part, bool of shape (R, N).
        iou_thresh: compared as torchvision does on CPUs: the float32 IoU with the exact threshold.

    Attributes:
        keep: which boxes are kept, bool of shape (R, N); exact as soon as ``converged`` is True.
        converged: a tensor of no dimensions, bool, on the boxes' device.
    """

    def __init__(self, boxes: Tensor, valid: Tensor, iou_thresh: float) -> None:
        if _on_gpu(boxes):
            self._suppresses = _suppression_matrix(boxes, iou_thresh)
            self._valid = valid.to(self._suppresses.dtype)[:, None, :]
            self._kept = self._valid
            self.advance()
        else:
            self.keep = _keep_by_torchvision(boxes, valid, iou_thresh)
            self.converged = torch.ones((), dtype=torch.bool)

    def advance(self) -> None:
        """Do more rounds."""
        before = self._kept
        # Autocast would convert the matrix in every round. Numbers of suppressing boxes are not
        # exact in half precision, but 0 stays 0.
        with torch.autocast(before.device.type, enabled=False):
            for _ in range(_ROUNDS):
                before = self._kept
                self._kept = torch.baddbmm(self._valid, before, self._suppresses, alpha=-1).relu_()
        self.keep = self._kept[:, 0, :] > 0
        self.converged = (self._kept == before).all()


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: str,
    iou_thresh: float,
    sigma: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap better ones, instead of removing the boxes.

    Soft-NMS of Bodla et al., "Improving Object Detection With One Line of Code" (ICCV 2017): the
    box with the highest score is taken, the scores of all boxes that are left are multiplied by a
    factor that falls with their IoU with it, and so on. Scores are taken in falling order.

    Args:
        boxes: (x1, y1, x2, y2), float32 of R lists, shape (R, N, 4).
        scores: shape (R, N), 0 or more; negative ones take no part.
        method: ``"linear"``: the factor is 1 - IoU from ``iou_thresh`` on, and 1 below;
            ``"gaussian"``: exp(-IoU^2 / sigma).
        iou_thresh: of ``"linear"``.
        sigma: of ``"gaussian"``.
        most: boxes that are taken from a list.

    Returns:
        Indices of the boxes in the order in which they are taken, int64, and their scores then, of
        shape (R, min(N, most)) both. Where a list has no more boxes, the score is -1.
    """
    left = scores.masked_fill(scores < 0, -1)
    taken, taken_scores = [], []
    for _ in range(min(most, boxes.shape[1])):
        best, index = left.max(dim=1, keepdim=True)
        taken.append(index)
        taken_scores.append(best)
        best_boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        iou = pairwise_iou(boxes, best_boxes)[..., 0]
        if method == "linear":
            factor = torch.where(iou >= iou_thresh, 1 - iou, 1.0)
        else:
            factor = torch.exp(-iou.square() / sigma)
        left = torch.where(left < 0, left, left * factor).scatter(1, index, -1)
    if not taken:
        return scores.new_zeros(len(scores), 0, dtype=torch.int64), scores.new_zeros(len(scores), 0)
    return torch.cat(taken, dim=1), torch.cat(taken_scores, dim=1)


def _on_gpu(boxes: Tensor) -> bool:
    return boxes.is_cuda


def _suppression_matrix(boxes: Tensor, iou_thresh: float) -> Tensor:
    """Which box would suppress which, 1 or 0 in half precision, of shape (R, N, N).

    Entry (r, i, j) is 1 if box i of list r comes before box j and their IoU is above the threshold.
    """
    rows, number, _ = boxes.shape
    matrix = boxes.new_zeros((rows, number, number), dtype=torch.float16)
    thresh = _largest_float32(iou_thresh)
    step = max(1, _PAIRS // max(1, rows * number))
    for start in range(0, number, step):
        end = min(start + step, number)
        iou = pairwise_iou(boxes[:, :end], boxes[:, start:end])
        matrix[:, :end, start:end] = (iou > thresh).triu_(diagonal=1 - start)
    return matrix


def _largest_float32(value: float) -> float:
    """Round to the next float32 that is not larger.

    A float32 is above ``value`` if and only if it is above this; torch rounds the number that it
    compares a float32 with, to either side.
    """
    rounded = np.float32(value)
    # As Python's numbers: NumPy would round ``value`` before it compares.
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf)))


def _keep_by_torchvision(boxes: Tensor, valid: Tensor, iou_thresh: float) -> Tensor:
    # Boxes that take no part come last, where they suppress no other, and are all the same one,
    # which costs next to nothing.
    boxes = torch.where(valid[..., None], boxes, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))
    scores = torch.arange(boxes.shape[1], 0, -1, dtype=boxes.dtype).masked_fill(~valid, 0)
    keep = torch.zeros_like(valid)
    for row_keep, row_boxes, row_scores in zip(keep, boxes, scores, strict=True):
        row_keep[torchvision.ops.nms(row_boxes, row_scores, iou_thresh)] = True
    return keep & valid
