from __future__ import annotations

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from torch import Tensor

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.modeling import nms, roi_detections

SIZE = (96, 192)


def predictions(
    number: int, seed: int, columns: int = 8, same_score: bool = False
) -> tuple[Tensor, Tensor]:
    """Boxes (number, 4 * columns), some beyond the image, and probabilities (number, 9)."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, columns, 2, generator=generator) * torch.tensor([180.0, 90.0]) - 10
    size = 5 + 60 * torch.rand(number, columns, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], dim=2).flatten(1)
    logits = torch.randn(number, 9, generator=generator)
    return boxes, torch.zeros(number, 9) + 1 / 9 if same_score else logits.softmax(dim=1)


def broken(number: int, seed: int) -> tuple[Tensor, Tensor]:
    boxes, scores = predictions(number, seed)
    boxes[3, 7] = torch.nan
    boxes[5, 2] = torch.inf
    scores[8, 4] = torch.nan
    return boxes, scores


@pytest.mark.parametrize("topk", [10, 100, -1])
@pytest.mark.parametrize("score_thresh", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize(
    "images",
    [
        [predictions(60, seed=1)],
        [predictions(60, seed=2), predictions(0, seed=3), predictions(25, seed=4)],
        [predictions(0, seed=3)],
        [predictions(40, seed=5, columns=1), predictions(40, seed=6, columns=1)],
        [predictions(30, seed=7, same_score=True)],
        [broken(40, seed=8), predictions(3, seed=9)],
    ],
    ids=["one", "three", "none", "class agnostic", "ties", "not finite"],
)
def test_detections_are_detectron2_s(
    monkeypatch: pytest.MonkeyPatch,
    images: list[tuple[Tensor, Tensor]],
    score_thresh: float,
    topk: int,
) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    sizes = [SIZE, (60, 200), SIZE][: len(images)]
    boxes = [each[0].clone() for each in images]
    scores = [each[1] for each in images]
    actual = roi_detections.detections(boxes, scores, sizes, score_thresh, 0.5, topk)
    expected, _ = fast_rcnn_inference(boxes, scores, sizes, score_thresh, 0.5, topk)
    for one, other in zip(expected, actual, strict=True):
        assert one.image_size == other.image_size
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.pred_classes, other.pred_classes)


@pytest.mark.parametrize("topk", [10, -1])
@pytest.mark.parametrize(
    "image",
    [
        predictions(60, seed=1),
        predictions(0, seed=3),
        predictions(40, seed=5, columns=1),
        broken(40, seed=8),
    ],
    ids=["some", "none", "class agnostic", "not finite"],
)
@pytest.mark.parametrize(
    ("method", "nms_thresh", "sigma", "hard_nms_thresh"),
    [
        ("gaussian", 0.5, 1e-13, 0.0),  # everything that overlaps is removed
        ("linear", 1.1, 0.5, 1.0),  # nothing is removed
    ],
)
def test_soft_detections_are_detectron2_s_where_nothing_is_soft(
    image: tuple[Tensor, Tensor],
    topk: int,
    method: str,
    nms_thresh: float,
    sigma: float,
    hard_nms_thresh: float,
) -> None:
    boxes, scores = image
    actual = roi_detections.soft_detections(
        boxes,
        scores,
        SIZE,
        score_thresh=0.05,
        method=method,
        nms_thresh=nms_thresh,
        sigma=sigma,
        topk_per_image=topk,
    )
    (expected,), _ = fast_rcnn_inference([boxes], [scores], [SIZE], 0.05, hard_nms_thresh, topk)
    assert actual.image_size == SIZE
    assert torch.equal(expected.pred_boxes.tensor, actual.pred_boxes.tensor)
    assert torch.equal(expected.scores, actual.scores)
    assert torch.equal(expected.pred_classes, actual.pred_classes)


def test_detections_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    for number in (1, 4):
        boxes, scores = zip(*[predictions(50, seed) for seed in range(number)], strict=True)
        with OperationCounter() as count:
            roi_detections.detections(boxes, scores, [SIZE] * number, 0.05, 0.5, 100)
        assert count.waiting["Tensor.tolist"] == 1
        assert not {"aten::nonzero", "aten::index", "torchvision::nms"} & count.waiting.keys()


def test_very_many_pairs_are_left_to_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_detections, "_MOST_PAIRS", 99)
    boxes, scores = predictions(40, seed=1)
    expected, _ = fast_rcnn_inference([boxes.clone()], [scores], [SIZE], 0.0, 0.5, 10)
    (actual,) = roi_detections.detections([boxes], [scores], [SIZE], 0.0, 0.5, 10)
    assert torch.equal(actual.pred_boxes.tensor, expected[0].pred_boxes.tensor)
