from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.modeling import nms, roi_heads
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.modeling.step_metrics import collect_step_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")

TINY = (Path(__file__).parents[1] / "tiny_network.txt").read_text().split()
STOCK = "StandardROIHeads"
BATCHED = "BatchedROIHeads"
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SIZE = (96, 192)
# To draw from both sides, and to have regions that are ignored.
IOU = ["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.2, 0.5]", "MODEL.ROI_HEADS.IOU_LABELS", "[0, -1, 1]"]


def model(name: str, *options: object) -> nn.Module:
    """Build the tiny Mask R-CNN, always with the same random weights."""
    # Of both: another head rounds otherwise.
    mask_head = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    words = [*TINY, *IOU, *mask_head, "MODEL.ROI_HEADS.NAME", name, *map(str, options)]
    torch.manual_seed(5)
    return build_model(build_config("configs/stage_1_heads.yaml", words)).train()


def ground_truth(number: int, seed: int = 0) -> Instances:
    """Triangles in boxes of 10 to 50 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * torch.tensor([140.0, 45.0])
    size = 10 + 40 * torch.rand(number, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], dim=1)
    polygons = [
        [np.array([x0, y0, x1, y0, (x0 + x1) / 2, y1])] for x0, y0, x1, y1 in boxes.tolist()
    ]
    return Instances(
        SIZE,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(8, (number,), generator=generator),
        gt_masks=PolygonMasks(polygons),
    )


def proposals_near(targets: Instances, number: int, seed: int = 0) -> Instances:
    """Boxes around the ground truth, if there is any, and at random."""
    generator = torch.Generator().manual_seed(seed)
    boxes = ground_truth(number, seed + 1).gt_boxes.tensor
    if len(targets):
        near = targets.gt_boxes.tensor.repeat(20, 1)[: number // 2]
        boxes[: len(near)] = near + torch.randn(near.shape, generator=generator)
    return Instances(
        SIZE,
        proposal_boxes=Boxes(boxes),
        objectness_logits=torch.randn(number, generator=generator),
    )


def batch(*numbers: int, flat: bool = False) -> list[dict[str, Any]]:
    """Images with these numbers of instances."""
    images = []
    for seed, number in enumerate(numbers):
        instances = ground_truth(number, seed)
        if flat:
            instances.gt_masks = FlatPolygons.from_polygons(instances.gt_masks.polygons)
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=generator)
        images.append({"image": image, "instances": instances})
    return images


def heads(name: str, *options: object) -> Any:
    return model(name, *options).roi_heads


def test_parameters_are_detectron2_s() -> None:
    stock, batched = model(STOCK).state_dict(), model(BATCHED).state_dict()
    assert stock.keys() == batched.keys()
    assert all(torch.equal(stock[name], batched[name]) for name in stock)


Step = tuple[dict[str, float], dict[str, float], list[Tensor | None]]


def step(network: Any, inputs: list[dict[str, Any]]) -> Step:
    """Return losses, the metrics of the heads, and gradients."""
    torch.manual_seed(1)  # for the samples of the RPN
    with EventStorage() as storage:
        losses = network(inputs)
        sum(losses.values()).backward()
    metrics = {name: value for name, (value, _) in storage.latest().items()}
    metrics |= {name: float(value) for name, value in collect_step_metrics(network).items()}
    return (
        {name: loss.item() for name, loss in losses.items()},
        {name: value for name, value in metrics.items() if name[:3] in ("roi", "fas", "mas")},
        [parameter.grad for parameter in network.parameters()],
    )


def both_from_the_same_samples(
    inputs: list[dict[str, Any]], options: list[object]
) -> tuple[Step, Step]:
    stock, batched = model(STOCK, *options), model(BATCHED, *options)
    # On a CPU this project's pooling rounds in another way, which has tests of its own.
    stock.roi_heads.box_pooler = batched.roi_heads.box_pooler
    if batched.roi_heads.mask_on:
        stock.roi_heads.mask_pooler = batched.roi_heads.mask_pooler
    samples: list[Any] = []
    draw = batched.roi_heads._label_and_sample

    def noted(*arguments: Any) -> Any:
        sampled, num_foreground = draw(*arguments)
        samples[:] = [Instances(each.image_size, **each.get_fields()) for each in sampled]
        return sampled, num_foreground

    batched.roi_heads._label_and_sample = noted
    stock.roi_heads.label_and_sample_proposals = lambda *_: samples
    other = step(batched, inputs)
    return step(stock, inputs), other


@pytest.mark.parametrize(
    ("numbers", "options"),
    [
        ((5, 0, 3, 1), []),
        ((2,), []),
        ((0, 0), []),
        ((5, 2), ["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.5]),
        ((5, 2), ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0]),
        ((5, 0), ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"]),
        ((5, 0), ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]),
        ((5, 2), ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True]),
        ((5, 2), ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True]),
        ((5, 2), ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True]),
        ((5, 2), ["MODEL.MASK_ON", False]),
        ((2, 1), ["VIS_PERIOD", 1]),
    ],
    ids=str,
)
def test_a_step_has_the_losses_metrics_and_gradients_of_detectron2(
    numbers: tuple[int, ...], options: list[object]
) -> None:
    (losses, metrics, gradients), (own_losses, own_metrics, own_gradients) = (
        both_from_the_same_samples(batch(*numbers), options)
    )
    assert own_losses == pytest.approx(losses, rel=1e-6)
    if sum(numbers):
        assert losses["loss_box_reg"] > 0
    counts = {name: own_metrics.pop(f"roi_head/num_{name}_samples") for name in ("fg", "bg")}
    assert counts["fg"] + counts["bg"] == 16
    assert own_metrics == pytest.approx(metrics, rel=1e-5)
    for expected, actual in zip(gradients, own_gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [FlatPolygons, BitMasks])
def test_kinds_of_masks(kind: type) -> None:
    losses = []
    for number in range(2):
        inputs = batch(5, 3)
        for each in inputs if number else ():
            polygons = each["instances"].gt_masks.polygons
            each["instances"].gt_masks = (
                FlatPolygons.from_polygons(polygons)
                if kind is FlatPolygons
                else BitMasks.from_polygon_masks(polygons, *SIZE)
            )
        losses.append(step(model(BATCHED), inputs)[0]["loss_mask"])
    # Bitmaps are the polygons but for their borders.
    assert losses[1] == pytest.approx(losses[0], rel=0 if kind is FlatPolygons else 1e-3)


def rows(sampled: Instances, has_gt: bool) -> list[tuple[float, ...]]:
    """Sort a sample: box, score, class and, of foreground, the ground truth."""
    columns = [sampled.proposal_boxes.tensor, sampled.objectness_logits[:, None]]
    columns.append(sampled.gt_classes[:, None])
    table = torch.cat(columns, dim=1).tolist()
    if has_gt:
        areas = [polygon[0].tolist() for polygon in sampled.gt_masks.polygons]
        boxes = sampled.gt_boxes.tensor.tolist()
        table = [
            [*row, *(gt + area if row[5] < 8 else [])]
            for row, gt, area in zip(table, boxes, areas, strict=True)
        ]
    return sorted(tuple(row) for row in table)


@pytest.mark.parametrize("append", [True, False])
def test_everything_that_can_be_sampled_is_what_detectron2_samples(append: bool) -> None:
    targets = [ground_truth(number, seed) for seed, number in enumerate((5, 0, 1, 17))]
    proposals = [
        proposals_near(each, number) for each, number in zip(targets, (60, 40, 9, 0), strict=True)
    ]
    options = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100]
    options += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0]
    options += ["MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", append]
    with EventStorage() as storage:
        expected = heads(STOCK, *options).label_and_sample_proposals(proposals, targets)
        expected_counts = storage.latest()
    with EventStorage() as storage:
        actual = heads(BATCHED, *options).label_and_sample_proposals(proposals, targets)
        assert storage.latest() == expected_counts
    assert [each.image_size for each in actual] == [SIZE] * 4
    for image, (one, other) in enumerate(zip(expected, actual, strict=True)):
        assert list(one.get_fields()) == list(other.get_fields())
        assert rows(one, image != 1) == rows(other, image != 1)
        foreground = (other.gt_classes < 8).tolist()
        assert foreground == sorted(foreground, reverse=True)
        assert one.gt_classes.dtype == other.gt_classes.dtype


def test_samples_are_distributed_as_detectron2_s() -> None:
    targets = [ground_truth(3), ground_truth(0)]
    proposals = [proposals_near(targets[0], 30), proposals_near(targets[1], 12)]
    means = []
    for name in (STOCK, BATCHED):
        roi = heads(name, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8)
        torch.manual_seed(0)
        counts = torch.zeros(2, 33)
        for _ in range(150):
            with EventStorage():
                sampled = roi.label_and_sample_proposals(proposals, targets)
            for image, each in enumerate(sampled):
                known = torch.cat(
                    [proposals[image].proposal_boxes.tensor, targets[image].gt_boxes.tensor]
                )
                same = (each.proposal_boxes.tensor[:, None] == known).all(dim=2)
                counts[image, : len(known)] += same.sum(dim=0)
                assert len(each) == 8
        means.append(counts / 150)
    # Five standard deviations of the difference of two means of 150 draws: 5 * 0.5 * sqrt(2 / 150).
    assert (means[0] - means[1]).abs().max() < 0.29
    assert 0.0 in means[1][0]  # those that are ignored
    torch.testing.assert_close(means[1][1, :12], torch.full((12,), 8 / 12), atol=0.2, rtol=0)


def test_a_step_waits_as_often_for_four_images_as_for_one() -> None:
    network: Any = model(BATCHED)
    waiting = []
    for numbers in ((4,), (4, 0, 7, 2)):
        forward = network.roi_heads.forward

        def counted(*arguments: Any, forward: Callable[..., Any] = forward) -> Any:
            with OperationCounter() as count:
                result = forward(*arguments)
            waiting.append(count.waiting)
            return result

        network.roi_heads.forward = counted
        with EventStorage():
            network(batch(*numbers, flat=True))
        network.roi_heads.forward = forward
    # The numbers of samples, and of regions by level.
    assert waiting[0]["Tensor.tolist"] == 2
    assert waiting[0] == waiting[1]
    assert not [name for name in waiting[0] if name.startswith("aten::")]


def test_soft_nms_of_a_model_keeps_what_overlaps_at_a_lower_score() -> None:
    options = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "TEST.DETECTIONS_PER_IMAGE", 1000]
    found = {}
    for method in ("off", "linear", "gaussian"):
        network = model(BATCHED, *options, "MODEL.ROI_HEADS.SOFT_NMS.METHOD", method).eval()
        with torch.no_grad():
            (found[method],) = network(batch(2))
    off, linear = found["off"]["instances"], found["linear"]["instances"]
    assert 0 < len(off) < len(linear)
    assert linear.pred_masks.shape == (len(linear), *SIZE)
    for each in (linear, found["gaussian"]["instances"]):
        # The best detection of all overlaps no better one.
        assert each.scores[0] == off.scores[0]
        assert each.scores.tolist() == sorted(each.scores.tolist(), reverse=True)
        assert each.scores.min() > 0.05


@pytest.mark.parametrize("device", ["cpu", "as on a GPU", GPU])
def test_outputs_of_the_same_weights(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    if device == "as on a GPU":
        device = "cpu"
        monkeypatch.setattr(roi_heads, "_on_cpu", lambda _: False)
        monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    inputs = batch(3, 2)
    stock: Any
    stock, batched = (
        model(name, "MODEL.DEVICE", device).eval()(inputs) for name in (STOCK, BATCHED)
    )
    for one, other in zip(stock, batched, strict=True):
        expected, actual = one["instances"], other["instances"]
        assert len(expected) == 10
        assert torch.equal(expected.pred_classes, actual.pred_classes)
        torch.testing.assert_close(
            actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.1
        )
        masks = expected.pred_masks, actual.pred_masks
        assert (masks[0] & masks[1]).sum() >= 0.999 * (masks[0] | masks[1]).sum() > 0


def test_mixed_precision() -> None:
    losses = []
    for name in (STOCK, BATCHED):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16), EventStorage():
            network = model(name, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0)
            total: Any = sum(network(batch(5, 2)).values())
            total.backward()
        losses.append(total.item())
        assert all(
            each.grad.isfinite().all() for each in network.parameters() if each.grad is not None
        )
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # of other samples, at rounded boxes


def test_inference_waits_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_heads, "_on_cpu", lambda _: False)
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    monkeypatch.setattr(nms, "_ROUNDS", 60)  # boxes of random weights can take more than usual
    network: Any = model(BATCHED).eval()
    for numbers in ((2,), (2, 2, 2, 2)):
        inputs = [{"image": each["image"]} for each in batch(*numbers)]
        with torch.no_grad(), OperationCounter() as count:
            network.inference(inputs, do_postprocess=False)
        # Proposals, levels of their boxes, detections, and levels of those.
        assert count.waiting["Tensor.tolist"] == 4
        assert not {"aten::nonzero", "aten::index", "torchvision::nms"} & count.waiting.keys()
