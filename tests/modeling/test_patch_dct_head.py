"""PatchDCT's head: its size, its losses, what it decodes, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks, ROIMasks
from detectron2.utils.events import EventStorage
from scipy.fft import dctn
from torch import Tensor

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.evaluation.instances import (
    compact_instances,
    instances_to_predictions,
    leave_masks_unpasted,
)
from cityscapes_maskrcnn.modeling.patch_dct_head import PatchDCTHead
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.utils.errors import InputError

CONFIG = "configs/patchdct_rcnn_R_50_FPN.yaml"
TINY = (Path(__file__).parents[1] / "tiny_network.txt").read_text().split()
TINY += ["MODEL.ROI_MASK_HEAD.FC_DIM", "32", "MODEL.WEIGHTS", ""]
# All anchors and proposals are sampled.
TINY += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "10000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"]
TINY += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "10000"]
LEVELS = {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in (2, 3, 4, 5)}
SIZE = (96, 192)


def config(*options: object) -> CfgNode:
    return build_config(CONFIG, [*TINY, *map(str, options)])


def ellipses(boxes: Tensor) -> list[list[np.ndarray]]:
    """Polygons that fill boxes, with a dent."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = 1 - 0.4 * np.exp(-((angles - 2) ** 2) * 8)
    unit = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1) / 2 + 0.5
    return [[(box[:2] + unit * (box[2:] - box[:2])).ravel()] for box in boxes.double().numpy()]


def objects(boxes: list[list[float]], classes: list[int]) -> Instances:
    corners = torch.tensor(boxes).reshape(-1, 4)
    return Instances(
        SIZE,
        proposal_boxes=Boxes(corners),
        gt_boxes=Boxes(corners),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=FlatPolygons.from_polygons(ellipses(corners)),
    )


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(
            1, 16, SIZE[0] // each.stride, SIZE[1] // each.stride, generator=generator
        )
        for name, each in LEVELS.items()
    }


def test_parameters_are_those_of_the_authors_model() -> None:
    """That of patchdct_mask_head.py in the authors' repository, github.com/olivia-w12/PatchDCT."""
    cfg = build_config(CONFIG, ["MODEL.DEVICE", "cpu"])
    levels = {name: ShapeSpec(channels=256, stride=each.stride) for name, each in LEVELS.items()}
    with torch.device("meta"):
        head = PatchDCTHead(cfg, levels)
    conv = 256 * 256 * 9 + 256
    expected = {
        # Four convolutions; 14 x 14 x 256 = 50,176 inputs; 300 frequencies.
        "coarse": 4 * conv + (50_176 * 1024 + 1024) + (1024 * 1024 + 1024) + (1024 * 300 + 300),
        # One channel to 256; two at 42x42; 3x3 with stride 3 to 14x14 cells; one there.
        "patch": (9 * 256 + 256)
        + 2 * conv
        + (256 * 1024 * 9 + 1024)
        + (1024 * 1024 * 9 + 1024)
        # Three kinds and six frequencies of each of 8 classes.
        + (1024 * 8 * 3 + 8 * 3)
        + (1024 * 8 * 6 + 8 * 6),
    }
    found = dict.fromkeys(expected, 0)
    for name, value in head.named_parameters():
        found[next(part for part in expected if name.startswith(part))] += value.numel()
    assert found == expected
    assert sum(found.values()) == 68_153_716
    # The transforms are no part of a checkpoint.
    assert head.state_dict().keys() == dict(head.named_parameters()).keys()


def test_losses() -> None:
    """Of zeros, in the box of an object that fills the upper left quarter and a bit more."""
    head = PatchDCTHead(config(), LEVELS).train()
    for output in (head.coarse_vector, head.patch_kind, head.patch_vector):
        torch.nn.init.zeros_(output.weight)
    # 56 of 112 columns, 60 of 112 rows: 7 x 7 whole patches and 7 half ones, of 14 x 14.
    corners = np.array([[0.0, 0, 56, 0, 56, 60, 0, 60]])
    one = objects([[0.0, 0.0, 112.0, 112.0]], [2])
    one.gt_masks = FlatPolygons.from_polygons([list(corners)])
    with EventStorage():
        losses = head(features(), [one])
    mask = np.zeros((112, 112))
    mask[:60, :56] = 1
    spectrum = np.abs(dctn(mask, norm="ortho"))
    is_kept = np.add.outer(np.arange(112), np.arange(112)) < 24
    half = np.abs(dctn(mask[56:64, :8], norm="ortho"))
    frequencies = [half[cell] for cell in [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2)]]
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {
            "loss_mask": spectrum[is_kept].mean(),
            "loss_mask_patch_kind": math.log(3),
            "loss_mask_patch_dct": sum(frequencies) / 6,
        },
        rel=1e-5,
    )
    assert head.step_metrics["patch_dct/num_mixed_patches"].item() == 7
    # Kinds: 7 x 7 foreground, 7 mixed, the others background, of the object's class alone.
    with torch.no_grad():
        head.patch_kind.bias.view(8, 3)[2] = torch.tensor([1.0, 2.0, 3.0])
    with EventStorage():
        loss = head(features(), [one])["loss_mask_patch_kind"].item()
    denominator = math.log(math.e + math.e**2 + math.e**3)
    assert loss == pytest.approx(denominator - (49 * 3 + 7 * 2 + 140 * 1) / 196, rel=1e-5)


def test_no_value_is_asked_of_a_gpu_for_the_losses() -> None:
    head = PatchDCTHead(config(), LEVELS).train()
    one = objects([[0.0, 0.0, 112.0, 90.0]], [2])
    with EventStorage(), OperationCounter() as counter:
        head(features(), [one])
    assert counter.waiting["aten::_local_scalar_dense"] == 0


def test_without_objects_losses_are_zero_and_all_parameters_have_gradients() -> None:
    head = PatchDCTHead(config(), LEVELS).train()
    with EventStorage():
        losses = head(features(), [objects([], [])])
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0)
    sum(losses.values()).backward()
    # DistributedDataParallel waits for all of them.
    assert all(each.grad is not None for each in head.parameters())


def test_it_learns_the_masks_of_an_image() -> None:
    torch.manual_seed(0)
    head = PatchDCTHead(config("MODEL.ROI_MASK_HEAD.FC_DIM", 64), LEVELS).train()
    boxes = [[10.0, 8.0, 60.0, 50.0], [70.0, 20.0, 180.0, 90.0], [20.0, 55.0, 44.0, 95.0]]
    own, inputs, steps = objects(boxes, [0, 2, 7]), features(), 80
    optimizer = torch.optim.AdamW(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    totals = []
    with EventStorage():
        for _ in range(steps):
            total = sum(head(inputs, [own]).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            totals.append(total.item())
    assert totals[-1] < totals[0] / 10 < 0.5
    detections = Instances(SIZE, pred_boxes=own.gt_boxes, pred_classes=own.gt_classes)
    with torch.no_grad():
        head.eval()(inputs, [detections])
    masks = detections.pred_masks[:, 0] > 0.5
    expected = own.gt_masks.crop_and_resize(own.gt_boxes.tensor, 112)
    ious = (masks & expected).sum(dim=(1, 2)) / (masks | expected).sum(dim=(1, 2))
    assert ious.min() > 0.9


@pytest.mark.parametrize(("solid_thresh", "values"), [(0.3, [0.0, 1.0, 0.6]), (0.5, [0.6] * 3)])
def test_patches_that_are_probably_all_of_one_kind(
    solid_thresh: float, values: list[float]
) -> None:
    """Of three detections, whose patches are probably mixed, but the first two perhaps not."""
    thresh = ("MODEL.PATCH_DCT_HEAD.SOLID_THRESH", solid_thresh)
    head = PatchDCTHead(config(*thresh, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True), LEVELS)
    probabilities = torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.5, 0.4], [0.25, 0.5, 0.25]])
    kinds = probabilities.log().view(3, 1, 3, 1, 1).expand(-1, -1, -1, 14, 14)
    # The first frequency is 8 times the mean.
    vectors = torch.tensor([8 * 0.6, 0, 0, 0, 0, 0]).view(1, 1, 6, 1, 1).expand(3, -1, -1, 14, 14)
    head.layers = lambda _: (torch.zeros(3, 300), kinds, vectors)
    boxes = Boxes(torch.tensor([[0.0, 0, 50, 50]] * 3))
    images = [Instances(SIZE, pred_boxes=boxes[:2], pred_classes=torch.tensor([3, 1]))]
    images += [Instances(SIZE, pred_boxes=boxes[:0], pred_classes=torch.zeros(0).long())]
    images += [Instances(SIZE, pred_boxes=boxes[:1], pred_classes=torch.tensor([7]))]
    inputs = {name: each.expand(3, -1, -1, -1) for name, each in features().items()}
    head.eval()(inputs, images)
    assert [each.pred_masks.shape for each in images] == [(n, 1, 112, 112) for n in (2, 0, 1)]
    for mask, value in zip(images[0].pred_masks, values[:2], strict=True):
        torch.testing.assert_close(mask, torch.full_like(mask, value))
    torch.testing.assert_close(images[2].pred_masks, torch.full((1, 1, 112, 112), values[2]))


def test_images_without_detections() -> None:
    head = PatchDCTHead(config(), LEVELS).eval()
    nothing = Instances(
        SIZE, pred_boxes=Boxes(torch.zeros(0, 4)), pred_classes=torch.zeros(0, dtype=torch.int64)
    )
    with torch.no_grad():
        head(features(), [nothing])
    assert nothing.pred_masks.shape == (0, 1, 112, 112)


def model(*options: object) -> Any:
    """The same random weights each time, with masks that are no blur."""
    torch.manual_seed(5)
    built = build_model(config(*options))
    for output in (built.roi_heads.mask_head.patch_kind, built.roi_heads.mask_head.patch_vector):
        torch.nn.init.normal_(output.weight, std=0.3)
    return built


def batch(polygon_type: Any) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    images = []
    for boxes in ([[10.0, 8.0, 60.0, 50.0], [70.0, 20.0, 180.0, 90.0]], [[5.0, 5.0, 60.0, 80.0]]):
        own = objects(boxes, [*range(len(boxes))])
        own.remove("proposal_boxes")
        own.gt_masks = polygon_type(ellipses(own.gt_boxes.tensor))
        image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=generator)
        images.append({"image": image, "instances": own, "height": 192, "width": 384})
    return images


def test_losses_do_not_depend_on_who_samples_regions() -> None:
    """All are sampled; Detectron2's heads know neither these polygons nor pool at once."""
    results = []
    kinds = {"BatchedROIHeads": FlatPolygons.from_polygons, "StandardROIHeads": PolygonMasks}
    for name, polygons in kinds.items():
        with EventStorage():
            losses = model("MODEL.ROI_HEADS.NAME", name).train()(batch(polygons))
        results.append({name: loss.item() for name, loss in losses.items()})
    assert len(results[0]) == 7
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_masks_stay_unpasted_and_score_as_pasted_ones() -> None:
    own = model().eval()
    with torch.no_grad():
        inputs = batch(PolygonMasks)
        pasted, unpasted = own(inputs), leave_masks_unpasted(own)(inputs)
    for one, other in zip(pasted, unpasted, strict=True):
        one, other = one["instances"], other["instances"]
        assert isinstance(other.pred_masks, ROIMasks)
        assert compact_instances(other).masks.shape == (10, 112, 112)
        expected = instances_to_predictions(one, 192, 384)
        actual = instances_to_predictions(other, 192, 384)
        assert len(expected) == len(actual) == 10
        for wanted, got in zip(expected, actual, strict=True):
            assert wanted.mask.area() > 0
            assert wanted.mask.starts.tolist() == got.mask.starts.tolist()
            assert wanted.mask.ends.tolist() == got.mask.ends.tolist()


def test_half_precision_moves_no_target() -> None:
    """bfloat16 has 8 bits: an object's mean of 0.9 would be 0.8984."""
    head = PatchDCTHead(config(), LEVELS).train()
    own = objects([[10.0, 8.0, 60.0, 50.0], [70.0, 20.0, 180.0, 90.0]], [0, 2])
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), EventStorage():
            losses = head(features(), [own])
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        results.append({name: loss.item() for name, loss in losses.items()})
    # The outputs are almost nothing at first: the losses are of the targets.
    assert results[0] == pytest.approx(results[1], rel=2e-3)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2", "PatchDCTHead takes its own samples; "),
        ("MODEL.PATCH_DCT_HEAD.SOLID_THRESH", 1.5, r"SOLID_THRESH 1\.5: it must be 0 to 1"),
    ],
)
def test_keys_that_do_not_fit_get_one_line(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(key, value)
