"""Validation losses are the training losses, and measuring them leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from cityscapes_maskrcnn.engine.validation import ValidationLoss, validation_losses

Build = Callable[..., nn.Module]
HEIGHT, WIDTH = 64, 96
RETINANET = """
MODEL.META_ARCHITECTURE RetinaNet MODEL.BACKBONE.NAME build_retinanet_resnet_fpn_backbone
MODEL.RESNETS.OUT_FEATURES ("res3","res4","res5") MODEL.FPN.IN_FEATURES ("res3","res4","res5")
MODEL.RETINANET.NUM_CLASSES 8
"""
# Frozen BatchNorm and every region sampled: a training step has nothing left to chance.
NO_CHANCE = """
MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM FrozenBN
MODEL.RPN.BATCH_SIZE_PER_IMAGE 100000 MODEL.RPN.POSITIVE_FRACTION 1.0
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 100000 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
"""


def batch_of(images: int) -> list[dict[str, Any]]:
    """Examples with semantic labels and two instances each."""
    generator = torch.Generator().manual_seed(images)
    batch = []
    for number in range(images):
        labels = torch.randint(20, (HEIGHT // 8, WIDTH // 8), generator=generator)
        labels[labels == 19] = 255
        large = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
        image = torch.randint(256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
        boxes = torch.tensor([[4.0, 8.0, 40.0, 50.0], [50.0 + number, 10.0, 80.0, 60.0]])
        masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances(
            (HEIGHT, WIDTH),
            gt_boxes=Boxes(boxes),
            gt_classes=torch.tensor([2, number % 8]),
            gt_masks=BitMasks(masks),
        )
        batch.append({"image": image, "sem_seg": large, "instances": instances})
    return batch


def numbers_of(model: nn.Module) -> dict[str, float]:
    """List the attributes of a model's modules that are numbers."""
    return {
        f"{prefix}.{name}": value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float)
    }


@pytest.fixture(scope="module")
def semantic_model(build: Build) -> nn.Module:
    return build("stage_0_backbone")


def test_equals_the_cross_entropy_of_the_model_in_use(semantic_model: nn.Module) -> None:
    batch = batch_of(2)
    semantic_model.eval()
    with torch.no_grad():
        logits = torch.stack([output["sem_seg"] for output in semantic_model(batch)])
    labels = torch.stack([image["sem_seg"] for image in batch])
    by_hand = F.cross_entropy(logits, labels, ignore_index=255)
    losses = validation_losses(semantic_model, [batch])
    assert losses == pytest.approx({"loss_sem_seg": float(by_hand), "total_loss": float(by_hand)})


def test_equals_the_loss_of_a_training_step(build: Build) -> None:
    model = build("stage_1_heads", *NO_CHANCE.split())
    batch = batch_of(2)
    model.train()
    with EventStorage():
        by_hand = {name: loss.item() for name, loss in model(batch).items()}
    assert len(by_hand) == 5
    by_hand["total_loss"] = sum(by_hand.values())
    assert validation_losses(model, [batch]) == pytest.approx(by_hand, rel=1e-5)


def test_is_the_mean_over_images_not_over_batches(semantic_model: nn.Module) -> None:
    one, two = batch_of(1), batch_of(2)
    of_one = validation_losses(semantic_model, [one])["total_loss"]
    of_two = validation_losses(semantic_model, [two])["total_loss"]
    assert of_one != of_two
    both = validation_losses(semantic_model, [two, one])["total_loss"]
    assert both == pytest.approx((of_one + 2 * of_two) / 3)


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize(
    ("stage", "options"),
    [("stage_0_backbone", ""), ("stage_1_heads", ""), ("stage_1_heads", RETINANET)],
    ids=["semantic", "Mask R-CNN", "RetinaNet"],
)
def test_leaves_no_trace(build: Build, stage: str, options: str, steps_before: int) -> None:
    model = build(stage, *options.split())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    model.train()
    model.backbone.eval()  # somebody's frozen part must not be woken up
    modes = [module.training for module in model.modules()]
    batches = [batch_of(2)]
    with EventStorage():
        for _ in range(steps_before):
            model(batches[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # RetinaNet divides its losses by a moving average, a number that is in no state.
    attributes = numbers_of(model)
    with EventStorage() as storage:
        first = validation_losses(model, batches)
        torch.rand(100)  # the regions that are sampled do not depend on earlier draws
        random_state = torch.get_rng_state()
        assert validation_losses(model, batches) == first
        assert storage.latest() == {}
        # After an error too.
        with pytest.raises(KeyError, match="image"):
            validation_losses(model, [[{}]])
    assert [module.training for module in model.modules()] == modes
    assert numbers_of(model) == attributes
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_measures_every_period_and_at_the_end(semantic_model: nn.Module) -> None:
    hook = ValidationLoss(3, lambda: [batch_of(1)])
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(model=semantic_model, max_iter=8, storage=storage, iter=0)
        for iteration in range(8):
            hook.trainer.iter = storage.iter = iteration
            hook.after_step()
    measured = storage.history("validation/total_loss").values()
    # After 3 and 6 iterations, and after the last one, the eighth; iterations count from 0.
    assert [iteration for _, iteration in measured] == [2, 5, 7]
    assert len({loss for loss, _ in measured}) == 1
    assert "validation/loss_sem_seg" in storage.histories()


def test_no_pictures_are_drawn(build: Build) -> None:
    """As training draws them, every VIS_PERIOD iterations: of every batch they took long."""
    model = build("stage_1_heads", "VIS_PERIOD", 1)
    drawn: list[object] = []
    model.visualize_training = lambda *pictured: drawn.append(pictured)
    with EventStorage():
        model.train()(batch_of(1))
        assert len(drawn) == 1
        validation_losses(model, [batch_of(1)] * 2)
    assert len(drawn) == 1
    assert model.vis_period == 1
