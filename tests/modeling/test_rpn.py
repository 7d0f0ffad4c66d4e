from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN, proposal_utils
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.modeling import nms
from cityscapes_maskrcnn.modeling.matching import sample
from cityscapes_maskrcnn.modeling.rpn import BatchedRPN

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
SIZES = [(96, 192), (96, 130), (64, 192), (50, 61)]  # of the images, padded to the first

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")


@pytest.fixture(params=["on_cpu", "as_on_gpu"])
def device_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: request.param == "as_on_gpu")


@pytest.fixture(autouse=True)
def nms_a_level_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's NMS as it is meant.

    For few boxes torchvision moves the levels apart and rounds coordinates; for many it puts them
    together again by a sort that may swap equal scores.
    """

    def batched_nms(boxes: Tensor, scores: Tensor, levels: Tensor, thresh: float) -> Tensor:
        keep = torch.zeros_like(scores, dtype=torch.bool)
        for level in levels.unique():
            places = (levels == level).nonzero()[:, 0]
            keep[places[torchvision.ops.nms(boxes[places], scores[places], thresh)]] = True
        order = scores.sort(descending=True, stable=True).indices
        return order[keep[order]]

    monkeypatch.setattr(proposal_utils, "batched_nms", batched_nms)


class FixedHead(nn.Module):
    """A head whose outputs are parameters, level by level."""

    def __init__(self, logits: list[Tensor], deltas: list[Tensor]) -> None:
        super().__init__()
        self.logits = nn.ParameterList(logits)
        self.deltas = nn.ParameterList(deltas)

    def forward(self, _: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.logits), list(self.deltas)


def random_outputs(seed: int = 0) -> FixedHead:
    """Logits of shape (4, 3, H, W) and deltas of shape (4, 12, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, -(-96 // stride), -(-192 // stride)) for stride in STRIDES.values()]
    return FixedHead(
        [torch.randn(n, 3, h, w, generator=generator) for n, h, w in shapes],
        [torch.randn(n, 12, h, w, generator=generator) * 0.3 for n, h, w in shapes],
    )


def networks(head: nn.Module, *options: Any) -> tuple[RPN, BatchedRPN]:
    """Detectron2's and ours, with the outputs of one head."""
    few = ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 300, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 200)
    options = (*few, "MODEL.RPN.PRE_NMS_TOPK_TEST", 400, *options)
    cfg = build_config("configs/Base-MaskRCNN-R50-FPN.yaml", [str(each) for each in options])
    shapes = {name: ShapeSpec(channels=2, stride=stride) for name, stride in STRIDES.items()}
    both = RPN(cfg, shapes), BatchedRPN(cfg, shapes)
    for network in both:
        network.rpn_head = head
    return both


def run(network: RPN, gt: list[Instances] | None = None) -> tuple[list[Instances], Any]:
    head = network.rpn_head
    features = {
        name: level.new_zeros(4, 2, *level.shape[2:])
        for name, level in zip(STRIDES, head.logits, strict=True)
    }
    with EventStorage():
        return network(ImageList(torch.zeros(4, 3, 96, 192), SIZES), features, gt)


def ground_truth(seed: int = 5) -> list[Instances]:
    """Boxes of all sizes; the third image has none, and one of the last is far outside."""
    generator = torch.Generator().manual_seed(seed)
    instances = []
    for size, number in zip(SIZES, (5, 1, 0, 12), strict=True):
        corners = torch.rand(number, 2, generator=generator) * 60
        sides = 5 + torch.rand(number, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + sides], dim=1)
        instances.append(Instances(size, gt_boxes=Boxes(boxes)))
    instances[3].gt_boxes.tensor[3] = torch.tensor([5000.0, 5000.0, 5100.0, 5100.0])
    return instances


def assert_same(found: list[Instances], wanted: list[Instances]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.image_size == theirs.image_size
        assert torch.equal(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)


def leave_alone(_: FixedHead) -> None:
    pass


def equal_scores(head: FixedHead) -> None:
    for level in head.logits:
        level.data.round_()


def one_score(head: FixedHead) -> None:
    for level in head.logits:
        level.data.fill_(0.25)


def outside_of_the_images(head: FixedHead) -> None:
    # To the right by up to many widths: some boxes are cut, others have nothing left.
    for level in head.deltas:
        level.data[:, ::4] += 4


def not_finite(head: FixedHead) -> None:
    head.logits[0].data[0, 0, :3] = torch.inf
    head.logits[1].data[1, 1, 0] = -torch.inf
    head.logits[2].data[2, 0, 0, :2] = torch.nan
    head.deltas[0].data[0, 0, 5] = torch.nan
    head.deltas[3].data[3, 1] = torch.inf
    head.deltas[4].data[:] = torch.nan  # nothing of a whole level counts


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize(
    "change", [leave_alone, equal_scores, one_score, outside_of_the_images, not_finite]
)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 60),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 8, "MODEL.RPN.NMS_THRESH", 0.3),
    ],
)
def test_proposals_are_detectron2s(change: Callable[[FixedHead], None], options: Any) -> None:
    head = random_outputs()
    change(head)
    theirs, ours = networks(head, *options)
    with torch.no_grad():
        wanted, _ = run(theirs.eval())
        found, losses = run(ours.eval())
    assert losses == {}
    assert_same(found, wanted)
    assert sum(map(len, found)) > 50


@pytest.mark.usefixtures("device_path")
def test_proposals_in_training_are_detectron2s() -> None:
    theirs, ours = networks(random_outputs())
    wanted, _ = run(theirs, ground_truth())
    found, _ = run(ours, ground_truth())
    assert_same(found, wanted)
    assert not found[0].proposal_boxes.tensor.requires_grad


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("name", ["logits", "deltas"])
def test_what_is_not_finite_stops_training(name: str) -> None:
    head = random_outputs()
    getattr(head, name)[2].data[1, 0, 3, 4] = torch.inf
    _, ours = networks(head)
    with pytest.raises(FloatingPointError, match="Predicted boxes or scores contain Inf/NaN"):
        run(ours, ground_truth())


def test_many_rounds_of_suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = networks(random_outputs(), "MODEL.RPN.NMS_THRESH", 0.2)
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    monkeypatch.setattr(nms, "_ROUNDS", 1)
    with torch.no_grad(), OperationCounter() as counter:
        found, _ = run(ours.eval())
    assert counter.waiting["Tensor.tolist"] > 3
    with torch.no_grad():
        assert_same(found, run(theirs.eval())[0])


def losses_of_detectron2(
    network: RPN, gt: list[Instances], seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Losses and metrics of Detectron2's code from the anchors that we draw with a seed."""
    head = network.rpn_head
    anchors = network.anchor_generator([*head.logits])
    all_anchors = Boxes.cat(anchors)
    labels, matched = [], []
    for each in gt:
        indices, of_image = network.anchor_matcher(pairwise_iou(each.gt_boxes, all_anchors))
        if network.anchor_boundary_thresh >= 0:
            of_image[~all_anchors.inside_box(each.image_size, network.anchor_boundary_thresh)] = -1
        labels.append(of_image)
        boxes = each.gt_boxes.tensor
        matched.append(boxes[indices] if len(boxes) else torch.zeros_like(all_anchors.tensor))
    torch.manual_seed(seed)
    stacked = torch.stack(labels)
    drawn = sample(stacked, network.batch_size_per_image, network.positive_fraction, bg_label=0)
    drawn_labels = []
    for of_image, indices, valid in zip(stacked, drawn.indices, drawn.valid, strict=True):
        drawn_labels.append(torch.full_like(of_image, -1))
        drawn_labels[-1][indices[valid]] = of_image[indices[valid]]
    with EventStorage() as storage:
        losses = network.losses(
            anchors,
            [each.permute(0, 2, 3, 1).flatten(1) for each in head.logits],
            drawn_labels,
            [
                each.unflatten(1, (3, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                for each in head.deltas
            ],
            matched,
        )
        return losses, {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("MODEL.RPN.SMOOTH_L1_BETA", 0.5, "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 3.0),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou", "MODEL.RPN.LOSS_WEIGHT", 0.5),
        ("MODEL.RPN.BOUNDARY_THRESH", 0),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 20_000),  # more than there are
        (
            "MODEL.RPN.BBOX_REG_WEIGHTS",
            "(10.0, 10.0, 5.0, 5.0)",
            "MODEL.RPN.POSITIVE_FRACTION",
            0.1,
        ),
    ],
)
def test_losses_and_gradients_are_detectron2s(options: Any) -> None:
    head = random_outputs()
    theirs, ours = networks(head, *options)
    results = []
    for network in (ours, theirs):
        torch.manual_seed(11)
        if network is ours:
            losses = run(ours, ground_truth())[1]
        else:
            losses, metrics = losses_of_detectron2(theirs, ground_truth(), seed=11)
        gradients = torch.autograd.grad(sum(losses.values()), list(head.parameters()))
        results.append((losses, gradients))
    (found, found_gradients), (wanted, wanted_gradients) = results
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(found_gradients, wanted_gradients, rtol=1e-5, atol=1e-9)
    assert {name: float(value) for name, value in ours.step_metrics.items()} == metrics
    assert metrics["rpn/num_pos_anchors"] > 3


def test_images_without_ground_truth_have_a_loss_of_zero_for_boxes() -> None:
    theirs, ours = networks(random_outputs())
    gt = [Instances(size, gt_boxes=Boxes(torch.empty(0, 4))) for size in SIZES]
    torch.manual_seed(1)
    _, losses = run(ours, gt)
    wanted, _ = losses_of_detectron2(theirs, gt, seed=1)
    assert losses["loss_rpn_loc"] == wanted["loss_rpn_loc"] == 0
    torch.testing.assert_close(losses["loss_rpn_cls"], wanted["loss_rpn_cls"], rtol=1e-6, atol=0)


def test_half_precision_is_that_of_the_head_only() -> None:
    head = random_outputs()
    # Scores that bfloat16 tells apart: those of one level, and lower ones of all others.
    for level in head.logits:
        level.data.fill_(-torch.inf)
    order = torch.randperm(72, generator=torch.Generator().manual_seed(1))
    head.logits[3].data = (order.view(1, 3, 3, 8) / 16 - 2).repeat(4, 1, 1, 1)[:, :, :, :6]
    rounded = FixedHead(
        [each.bfloat16() for each in head.logits], [each.bfloat16() for each in head.deltas]
    )
    exact = FixedHead(
        [each.float() for each in rounded.logits], [each.float() for each in rounded.deltas]
    )
    _, ours = networks(exact)
    with torch.no_grad():
        wanted, _ = run(ours.eval())
        ours.rpn_head = rounded
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = run(ours)
    assert len(found[0]) > 10
    assert_same(found, wanted)
    for level in (*rounded.logits, *exact.logits):
        level.data.clamp_(min=-20)
    losses = []
    for each in (exact, rounded):
        ours.train().rpn_head = each
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=each is rounded):
            losses.append(run(ours, ground_truth())[1])
    torch.testing.assert_close(losses[1], losses[0])


def test_a_step_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    theirs, ours = networks(random_outputs())
    gt = ground_truth()
    run(ours, gt)  # the anchors of this size are kept
    waiting = []
    for network in (theirs, ours):
        with OperationCounter() as counter:
            sum(run(network, gt)[1].values()).backward()
        waiting.append(counter.waiting)
    assert waiting[1] == {"Tensor.tolist": 1}
    assert waiting[0].total() > 60


@pytest.mark.gpu
def test_a_step_on_a_gpu_waits_once() -> None:
    _, ours = networks(random_outputs())
    ours.cuda()
    gt = [each.to("cuda") for each in ground_truth()]
    run(ours, gt)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sum(run(ours, gt)[1].values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchronizing" in str(each.message)]
    assert len(waits) == 1, waits


def test_anchors_of_few_sizes_are_kept_and_good_for_training() -> None:
    _, ours = networks(random_outputs())
    with torch.inference_mode():
        run(ours.eval())
    (kept,) = ours._kept_anchors.values()
    sum(run(ours.train(), ground_truth())[1].values()).backward()
    assert [id(each) for each in ours._kept_anchors.values()] == [id(kept)]
    for height in range(20, 40):
        ours._anchors([torch.zeros(1, 2, height, 8)] * 5)
    assert len(ours._kept_anchors) == 8
    assert ours._anchors([torch.zeros(1, 2, 39, 8)] * 5).shape == (5 * 39 * 8 * 3, 4)


def test_parameters_have_detectron2s_names() -> None:
    cfg = build_config("configs/Base-MaskRCNN-R50-FPN.yaml", [])
    shapes = {name: ShapeSpec(channels=2, stride=stride) for name, stride in STRIDES.items()}
    assert BatchedRPN(cfg, shapes).state_dict().keys() == RPN(cfg, shapes).state_dict().keys()
