"""Activations that are computed anew: the same gradients, and how much less is kept for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.activation_checkpointing import PARTS, checkpoint_activations
from cityscapes_maskrcnn.utils.errors import InputError

TINY = """
MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 8
MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.BATCH_SIZE_PER_IMAGE 8 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8
"""


def build(*options: object) -> nn.Module:
    """The tiny network of stage 1, always with the same random weights."""
    torch.manual_seed(5)
    words = [*TINY.split(), *map(str, options)]
    return build_model(build_config("configs/stage_1_heads.yaml", words)).train()


def images() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    batch = []
    for _ in range(2):
        masks = torch.zeros(2, 64, 96, dtype=torch.bool)
        masks[:, 10:50, 20:60] = True
        objects = Instances(
            (64, 96),
            gt_boxes=Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0], [5.0, 30.0, 25.0, 60.0]])),
            gt_classes=torch.tensor([0, 3]),
            gt_masks=BitMasks(masks),
        )
        image = torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": objects})
    return batch


def step(model: nn.Module, autocast: bool = False) -> tuple[dict[str, Tensor], int]:
    """One forward and backward pass: gradients and statistics, and the bytes that were kept.

    Parameters are kept anyway.
    """
    kept: dict[int, int] = {}
    parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(2)
    with EventStorage(), torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = sum(model(images()).values())
        size = sum(kept.values())
        loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return {**gradients, **dict(model.named_buffers())}, size


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(("autocast", "share"), [(False, 0.5), (True, 0.4)])
def test_gradients_and_statistics_are_bit_equal(autocast: bool, share: float) -> None:
    plain, anew = build(), checkpoint_activations(build(), PARTS)
    assert list(plain.state_dict()) == list(anew.state_dict())
    (expected, size), (found, smaller) = (step(each, autocast) for each in (plain, anew))
    assert different(expected, found) == []
    # The second pass through a layer does not move its statistics.
    assert found["backbone.bottom_up.res4.3.conv2.norm.num_batches_tracked"] == 1
    assert smaller < share * size  # 889 of 2,530 KB, and 486 of 1,867 KB
    with torch.no_grad():
        images = ImageList.from_tensors([torch.ones(3, 64, 96)])
        features = [each.eval().backbone(images.tensor) for each in (plain, anew)]
    assert different(*features) == []


def test_every_part_keeps_less() -> None:
    _, size = step(build())
    sizes = {part: step(checkpoint_activations(build(), [part]))[1] for part in PARTS}
    assert {part for part in PARTS if sizes[part] < size} == set(PARTS)


def test_it_can_be_compiled() -> None:
    results = []
    short = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    for parts in ((), PARTS):
        model = checkpoint_activations(build(*short), parts)
        stage = model.backbone.bottom_up.res5
        compiled = torch.compile(
            type(stage).forward, fullgraph=True, dynamic=False, backend="aot_eager"
        )
        stage.forward = partial(compiled, stage)
        results.append(step(model))
    (expected, size), (found, smaller) = results
    assert different(expected, found) == []
    assert found["backbone.bottom_up.res5.1.conv2.norm.num_batches_tracked"] == 1
    assert smaller < 0.5 * size


def test_parts_that_do_not_train_are_left_alone() -> None:
    model = checkpoint_activations(build("MODEL.BACKBONE.FREEZE_AT", 4), PARTS)
    blocks = [type(stage[0]) is BottleneckBlock for stage in model.backbone.bottom_up.stages]
    assert blocks == [True, True, True, False]  # res2, res3, res4; res5 trains
    assert checkpoint_activations(nn.Linear(1, 1), PARTS)(torch.zeros(1, 1)).shape == (1, 1)


def test_a_part_may_be_named_twice() -> None:
    once, twice = build(), build()
    checkpoint_activations(once, ("res5", "fpn"))
    checkpoint_activations(twice, ("res5", "fpn", "res5", "fpn"))
    assert different(step(once)[0], step(twice)[0]) == []


def test_unknown_parts_are_refused() -> None:
    message = r"^MODEL\.ACTIVATION_CHECKPOINTING: there is no part 'res1'; there are stem, res2"
    with pytest.raises(InputError, match=message):
        Trainer.build_model(build_config("", ["MODEL.ACTIVATION_CHECKPOINTING", "('res1',)"]))
