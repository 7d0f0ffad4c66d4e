from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from cityscapes_maskrcnn.modeling import nms
from cityscapes_maskrcnn.modeling.nms import BatchedNMS, soft_nms


@pytest.fixture(params=["on_cpu", "as_on_gpu"])
def device_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: request.param == "as_on_gpu")


def crowd(rows: int, number: int, spread: float, seed: int) -> Tensor:
    """Boxes around a tenth as many objects."""
    generator = torch.Generator().manual_seed(seed)
    objects = max(1, number // 10)
    corners = torch.rand(rows, objects, 2, generator=generator) * 1000
    sides = torch.exp(torch.randn(rows, objects, 2, generator=generator) * 0.7 + 4)
    chosen = torch.randint(objects, (rows, number), generator=generator)
    boxes = torch.cat([corners, corners + sides], 2)
    boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    noise = torch.randn(rows, number, 4, generator=generator) * spread
    return boxes + noise * (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)


def by_torchvision(boxes: Tensor, valid: Tensor, thresh: float) -> list[list[int]]:
    """Indices that are kept in every row."""
    kept = []
    for row, mask in zip(boxes, valid, strict=True):
        places = mask.nonzero()[:, 0]
        scores = torch.arange(len(places), 0, -1.0)
        kept.append(places[torchvision.ops.nms(row[places], scores, thresh)].tolist())
    return kept


def batched_nms_keep(boxes: Tensor, valid: Tensor, thresh: float) -> Tensor:
    found = BatchedNMS(boxes, valid, thresh)
    while not found.converged:
        found.advance()
    return found.keep


def indices(keep: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in keep]


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1, 0.3])
def test_keeps_what_torchvision_keeps(
    monkeypatch: pytest.MonkeyPatch, spread: float, thresh: float
) -> None:
    monkeypatch.setattr(nms, "_PAIRS", 5 * 300 * 64)  # 64 columns of the matrices at once
    boxes = crowd(rows=5, number=300, spread=spread, seed=1)
    valid = torch.rand(5, 300, generator=torch.Generator().manual_seed(2)) < 0.8
    valid[1] = True
    valid[2] = False
    valid[3, 100:] = False  # padding
    keep = batched_nms_keep(boxes, valid, thresh)
    assert indices(keep) == by_torchvision(boxes, valid, thresh)


@pytest.mark.usefixtures("device_path")
def test_a_chain_takes_as_many_rounds_as_it_is_long() -> None:
    # Boxes of 10x1, each 2 to the right of the one before: IoU 8 / 12 with the next, 6 / 14 with
    # the one after it. Every other box is kept, and the last is only known when all others are.
    number = 301
    left = 2.0 * torch.arange(number)
    boxes = torch.stack([left, torch.zeros(number), left + 10, torch.ones(number)], dim=1)
    keep = batched_nms_keep(boxes[None], torch.ones(1, number, dtype=torch.bool), 0.6)
    assert indices(keep) == [list(range(0, number, 2))]


@pytest.mark.usefixtures("device_path")
def test_odd_boxes() -> None:
    inf, nan = torch.inf, torch.nan
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 10.0],  # a duplicate
            [3.0, 3.0, 3.0, 3.0],
            [3.0, 3.0, 3.0, 3.0],  # neither has an area: an IoU of 0 / 0 suppresses nothing
            [9.0, 9.0, 1.0, 1.0],  # inverted
            [-inf, 0.0, inf, 10.0],
            [-inf, 0.0, inf, 10.0],
            [0.0, 0.0, inf, inf],
            [0.0, 0.0, 3e30, 3e30],  # an area that overflows
            [0.0, 0.0, 3e30, 3e30],
            [nan, 0.0, 10.0, 10.0],
            [nan, nan, nan, nan],
            [0.0, 0.0, 10.0, 10.0],
        ]
    )[None]
    valid = torch.ones(1, 13, dtype=torch.bool)
    keep = batched_nms_keep(boxes, valid, 0.5)
    assert indices(keep) == by_torchvision(boxes, valid, 0.5)
    assert indices(keep) == [[0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    # Without the first, the first of its duplicates is kept.
    valid[0, 0] = False
    assert indices(batched_nms_keep(boxes, valid, 0.5))[0][0] == 1


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize(("rows", "number"), [(0, 5), (3, 0), (3, 1)])
def test_few_boxes_or_none(rows: int, number: int) -> None:
    valid = torch.ones(rows, number, dtype=torch.bool)
    assert torch.equal(batched_nms_keep(torch.rand(rows, number, 4), valid, 0.5), valid)


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize(
    ("width", "thresh", "kept"),
    [
        # 7 / 10 in float32 is 0.699999988079..., which is not above 0.7.
        (7.0, 0.7, [0, 1]),
        (7.0, 0.699999988, [0]),
        # 6 / 10 in float32 is 0.600000023841..., which is above 0.6: torch would round 0.6 to it.
        (6.0, 0.6, [0]),
        (6.0, 0.600000024, [0, 1]),
    ],
)
def test_the_threshold_is_not_rounded(width: float, thresh: float, kept: list[int]) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, width, 1.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert by_torchvision(boxes, valid, thresh) == [kept]
    assert indices(batched_nms_keep(boxes, valid, thresh)) == [kept]


def test_autocast_leaves_the_matrix_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    boxes = crowd(rows=2, number=100, spread=0.1, seed=3)
    valid = torch.ones(2, 100, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = BatchedNMS(boxes, valid, 0.7)
    assert found._kept.dtype == torch.float16
    assert found.converged
    assert indices(found.keep) == by_torchvision(boxes, valid, 0.7)


@pytest.mark.gpu
def test_a_gpu_keeps_the_same_boxes() -> None:
    boxes = crowd(rows=20, number=2000, spread=0.1, seed=4)
    valid = torch.rand(20, 2000) < 0.9
    keep = batched_nms_keep(boxes.cuda(), valid.cuda(), 0.7)
    assert indices(keep.cpu()) == by_torchvision(boxes, valid, 0.7)


def test_soft_nms_by_hand() -> None:
    # The second box is half of the first, the third a quarter of it, the fourth lies apart.
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 5, 5], [20, 20, 30, 30]]]).float()
    scores = torch.tensor([[0.9, 0.8, 0.5, 0.7]])
    linear = {"method": "linear", "iou_thresh": 0.5, "sigma": 0.0}
    taken, lowered = soft_nms(boxes, scores, most=10, **linear)
    # 0.8 * (1 - 0.5): an IoU of exactly the threshold counts. The third has 0.25 with the first;
    # it is taken next, its IoU with the second is 0.5 too: 0.4 * (1 - 0.5).
    assert taken.tolist() == [[0, 3, 2, 1]]
    torch.testing.assert_close(lowered, torch.tensor([[0.9, 0.7, 0.5, 0.2]]))
    gaussian = {"method": "gaussian", "iou_thresh": 0.0, "sigma": 0.5}
    taken, lowered = soft_nms(boxes, scores, most=3, **gaussian)
    # After the first: 0.8 * exp(-0.25 / 0.5) = 0.4852, and 0.5 * exp(-0.0625 / 0.5) = 0.4412.
    # The second lowers the third to 0.4412 * exp(-0.25 / 0.5) = 0.2676, which is not asked for.
    assert taken.tolist() == [[0, 3, 1]]
    torch.testing.assert_close(lowered, torch.tensor([[0.9, 0.7, 0.4852]]), atol=1e-4, rtol=0)
    # Only the fourth and the third take part.
    taken, lowered = soft_nms(boxes, torch.tensor([[-1, -1, 0.5, 0.7]]), most=3, **gaussian)
    assert taken[0, :2].tolist() == [3, 2]
    assert lowered.tolist() == [[pytest.approx(0.7), 0.5, -1]]
    assert soft_nms(boxes[:, :0], scores[:, :0], most=3, **gaussian)[1].shape == (1, 0)


def soft_nms_by_the_paper(
    boxes: list[list[float]], scores: list[float], factor: Callable[[float], float]
) -> list[tuple[int, float]]:
    """Take the best box, lower all others, one by one."""
    left, taken = dict(enumerate(scores)), []
    while left:
        best = max(left, key=lambda index: left[index])
        taken.append((best, left.pop(best)))
        x0, y0, x1, y1 = boxes[best]
        for index in left:
            u0, v0, u1, v1 = boxes[index]
            common = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - common
            left[index] *= factor(common / union)
    return taken


@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_is_the_papers(method: str, spread: float) -> None:
    boxes = crowd(rows=3, number=60, spread=spread, seed=4)
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(5))
    factors = {
        "linear": lambda iou: 1 - iou if iou >= 0.3 else 1.0,
        "gaussian": lambda iou: math.exp(-iou * iou / 0.5),
    }
    taken, lowered = soft_nms(boxes, scores, method=method, iou_thresh=0.3, sigma=0.5, most=99)
    assert taken.shape == (3, 60)
    for row in range(3):
        expected = soft_nms_by_the_paper(boxes[row].tolist(), scores[row].tolist(), factors[method])
        assert taken[row].tolist() == [index for index, _ in expected]
        wanted = torch.tensor([score for _, score in expected])
        torch.testing.assert_close(lowered[row], wanted, rtol=1e-4, atol=1e-6)
