from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes
from detectron2.structures import pairwise_iou as detectron2_iou
from torch import Tensor

from cityscapes_maskrcnn.modeling import matching
from cityscapes_maskrcnn.modeling.matching import (
    box_deltas,
    match_boxes,
    pad,
    pairwise_iou,
    sample,
)


def boxes(number: int, seed: int, largest: float = 60.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * 200
    return torch.cat([corners, corners + torch.rand(number, 2, generator=generator) * largest], 1)


# Without an area, inverted, touching, inside each other, equal.
ODD_BOXES = torch.tensor(
    [
        [10.0, 10.0, 10.0, 10.0],
        [10.0, 10.0, 10.0, 10.0],
        [5.0, 5.0, 5.0, 50.0],
        [30.0, 30.0, 20.0, 20.0],
        [0.0, 0.0, 10.0, 10.0],
        [10.0, 0.0, 20.0, 10.0],
        [2.0, 2.0, 4.0, 4.0],
        [0.0, 0.0, 10.0, 10.0],
    ]
)


def test_padding_keeps_what_there_is() -> None:
    padded, valid = pad([torch.tensor([3, 4]), torch.tensor([], dtype=torch.int64)])
    assert padded.tolist() == [[3, 4], [0, 0]]
    assert valid.tolist() == [[True, True], [False, False]]
    padded, valid = pad([torch.empty(0, 4)])  # never without a column: a maximum needs one
    assert padded.tolist() == [[[0, 0, 0, 0]]]
    assert valid.tolist() == [[False]]


def test_iou_is_detectron2s_bit_by_bit() -> None:
    of_images = [torch.cat([boxes(7, 1), ODD_BOXES]), boxes(0, 2), ODD_BOXES]
    others = torch.cat([boxes(90, 3), ODD_BOXES, of_images[0]])
    padded, _ = pad(of_images)
    shared = pairwise_iou(padded, others)
    assert torch.equal(pairwise_iou(padded, others.expand(3, -1, -1)), shared)
    for iou, gt in zip(shared, of_images, strict=True):
        assert torch.equal(iou[: len(gt)], detectron2_iou(Boxes(gt), Boxes(others)))
        assert (iou[len(gt) :] == 0).all()


@pytest.mark.gpu
def test_a_gpu_computes_the_same_iou_bit_by_bit() -> None:
    gt = torch.stack([torch.cat([boxes(40, seed), ODD_BOXES]) for seed in range(3)])
    others = torch.cat([boxes(5000, 9), ODD_BOXES, gt[0]])
    for each in (others, others.expand(3, -1, -1)):
        assert torch.equal(pairwise_iou(gt.cuda(), each.cuda()).cpu(), pairwise_iou(gt, each))


RPN_LIKE = ([0.3, 0.7], [0, -1, 1])
ROI_LIKE = ([0.5], [0, 1])
IGNORES_THE_LOWEST = ([0.2, 0.2, 0.9], [-1, 1, 0, 1])


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(("thresholds", "labels"), [RPN_LIKE, ROI_LIKE, IGNORES_THE_LOWEST])
@pytest.mark.parametrize("chunk", [2**17, 100])
def test_matches_are_detectron2s(
    monkeypatch: pytest.MonkeyPatch,
    thresholds: list[float],
    labels: list[int],
    low_quality: bool,
    chunk: int,
) -> None:
    monkeypatch.setattr(matching, "_CHUNK_ON_CPU", chunk)
    far_away = torch.tensor([[900.0, 900.0, 950.0, 950.0]])  # its best IoU is 0
    of_images = [
        torch.cat([boxes(9, 1), boxes(9, 1)]),  # every maximum twice
        boxes(0, 0),
        boxes(1, 4),
        torch.cat([boxes(2, 5), far_away]),
        ODD_BOXES,
    ]
    others = torch.cat([boxes(300, 6), boxes(9, 1), boxes(300, 6), ODD_BOXES])
    padded, valid = pad(of_images)
    found = match_boxes(padded, valid, others, thresholds, labels, low_quality)
    matcher = Matcher(thresholds, labels, low_quality)
    for image, gt in enumerate(of_images):
        wanted = matcher(detectron2_iou(Boxes(gt), Boxes(others)))
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours[image].dtype == theirs.dtype
            assert torch.equal(ours[image], theirs)


def test_without_boxes_there_is_nothing_to_match() -> None:
    padded, valid = pad([boxes(3, 1), boxes(0, 1)])
    indices, labels = match_boxes(padded, valid, boxes(0, 1), *RPN_LIKE, True)
    assert indices.shape == labels.shape == (2, 0)


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn_positives", "drawn_negatives"),
    [(30, 50, 4, 12), (3, 50, 3, 13), (0, 50, 0, 16), (30, 5, 4, 5), (0, 0, 0, 0), (2, 3, 2, 3)],
)
def test_as_many_are_drawn_as_by_detectron2(
    positives: int, negatives: int, drawn_positives: int, drawn_negatives: int
) -> None:
    order = torch.randperm(positives + negatives + 4)
    labels = torch.tensor([7] * positives + [2] * negatives + [-1] * 4)[order]
    torch.manual_seed(1)
    drawn = sample(labels.expand(2, -1), num_samples=16, positive_fraction=0.26, bg_label=2)
    theirs = subsample_labels(labels, 16, 0.26, 2)
    assert [len(each) for each in theirs] == [drawn_positives, drawn_negatives]
    number = drawn_positives + drawn_negatives
    for indices, valid, positive in zip(*drawn, strict=True):
        assert valid.tolist() == [True] * number + [False] * (16 - number)
        assert positive.tolist() == [True] * drawn_positives + [False] * (16 - drawn_positives)
        assert labels[indices[positive]].tolist() == [7] * drawn_positives
        assert labels[indices[valid & ~positive]].tolist() == [2] * drawn_negatives
        assert len(set(indices[valid].tolist())) == number
        assert (indices[~valid] == 0).all()


def test_every_choice_is_as_likely_as_every_other() -> None:
    # 2 of the positives 0, 2, 5, 6 and 2 of the negatives 1, 3, 7: 6 x 3 = 18 choices.
    labels = torch.tensor([1, 0, 1, 0, -1, 1, 1, 0]).expand(9000, -1)
    torch.manual_seed(2)
    indices, valid, _ = sample(labels, num_samples=4, positive_fraction=0.5, bg_label=0)
    assert valid.all()
    counts = Counter((*sorted(row[:2]), *sorted(row[2:])) for row in indices.tolist())
    choices = {(*p, *n) for p in combinations((0, 2, 5, 6), 2) for n in combinations((1, 3, 7), 2)}
    assert set(counts) == choices
    # 500 of each are expected. Chi-square of 17 degrees of freedom is above 40.8 once in 1000.
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 40.8


def test_what_is_drawn_follows_from_the_seed() -> None:
    labels = (torch.arange(400) % 3 - 1).expand(2, -1)
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(sample(labels, num_samples=32, positive_fraction=0.5, bg_label=0).indices)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0][0], draws[0][1])  # each image has numbers of its own
    assert not torch.equal(draws[0], sample(labels, 32, 0.5, bg_label=0).indices)


def test_deltas_are_detectron2s() -> None:
    weights = (10.0, 10.0, 5.0, 5.0)
    source, target = boxes(40, 7) + torch.tensor([0, 0, 1, 1]), boxes(40, 8)
    wanted = Box2BoxTransform(weights=weights).get_deltas(source, target)
    found = box_deltas(source.view(4, 10, 4), target.view(4, 10, 4), weights)
    assert torch.equal(found.view(40, 4), wanted)
