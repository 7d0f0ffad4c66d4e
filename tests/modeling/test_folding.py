from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from torch import Tensor, nn

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.modeling.folding import (
    FoldedConv2d,
    activate_in_place,
    fold_frozen_norms,
)

Norm = FrozenBatchNorm2d | nn.BatchNorm2d


def randomise(model: nn.Module) -> nn.Module:
    """Give norms values that fold_frozen_norms must not get wrong, and activations that last."""
    for name, norm in model.named_modules():
        if isinstance(norm, Norm) and norm.weight is not None:
            with torch.no_grad():
                norm.weight.uniform_(0.4, 0.9).mul_(0.3 if name.endswith("conv3.norm") else 1)
                norm.bias.normal_(0, 0.3)
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.6, 1.6)
    return model


def convolution(norm: nn.Module | None, *, bias: bool = False, frozen: bool = True) -> Conv2d:
    torch.manual_seed(0)
    layer = Conv2d(3, 8, 3, stride=2, padding=1, bias=bias, norm=norm, activation=nn.ReLU())
    randomise(layer)
    return layer.requires_grad_(not frozen)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def resnet(freeze_at: int) -> nn.Module:
    cfg = build_config("configs/stage_1_heads.yaml", ["MODEL.BACKBONE.FREEZE_AT", str(freeze_at)])
    torch.manual_seed(0)
    return randomise(build_resnet_backbone(cfg, ShapeSpec(channels=3)))


def test_a_resnet_50_computes_the_same_features():
    plain = resnet(freeze_at=5)
    folded = fold_frozen_norms(copy.deepcopy(plain))
    assert sum(isinstance(module, FoldedConv2d) for module in folded.modules()) == 53
    image = torch.randn(1, 3, 64, 128)
    for name, expected in plain(image).items():
        assert relative_error(folded(image)[name], expected) < 1e-5, name


def test_gradients_of_a_resnet_50_are_the_same():
    # The stem and res2 are frozen, the rest learns.
    plain = resnet(freeze_at=2)
    folded = fold_frozen_norms(copy.deepcopy(plain))
    image = torch.randn(1, 3, 64, 64)
    for network in (plain, folded):
        sum(each.mean() for each in network(image).values()).backward()
    compared = 0
    for (name, ours), theirs in zip(folded.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            assert relative_error(ours.grad, theirs.grad) < 1e-5, name
            compared += 1
    # 53 convolutions without the stem's and the 10 of res2.
    assert compared == 42


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_saved_is_not_folded(bias, frozen):
    plain = convolution(FrozenBatchNorm2d(8), bias=bias, frozen=frozen)
    before = copy.deepcopy(plain.state_dict())
    folded = fold_frozen_norms(copy.deepcopy(plain))
    image = torch.randn(2, 3, 8, 8)
    folded(image)
    saved = folded.state_dict()
    assert list(saved) == list(before)
    assert all(torch.equal(saved[name], before[name]) for name in before)
    assert [*dict(folded.named_parameters())] == [*dict(plain.named_parameters())]
    other = convolution(FrozenBatchNorm2d(8), bias=bias)
    other.load_state_dict(saved)
    torch.testing.assert_close(other(image), folded(image), rtol=1e-5, atol=1e-6)


def change_norm_in_place(layer: Conv2d) -> None:
    layer.norm.running_mean.add_(1)


def load_state(layer: Conv2d) -> None:
    layer.load_state_dict({name: each + 0.5 for name, each in layer.state_dict().items()})


def swap_weights(layer: Conv2d) -> None:
    """As an average of weights is swapped in for an evaluation."""
    layer.weight.data, layer.kept = torch.full_like(layer.weight, 0.1), layer.weight.data


def write_through_data(layer: Conv2d) -> None:
    layer.weight.data.fill_(0.1)
    layer.eval()


def fuse_step(layer: Conv2d) -> None:
    layer.weight.requires_grad_(True)
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.AdamW([layer.weight], lr=0.1, fused=True).step()
    layer.eval()


def cast(layer: Conv2d) -> None:
    layer.to(torch.float64)


CHANGES = [
    change_norm_in_place,
    load_state,
    swap_weights,
    write_through_data,
    fuse_step,
    cast,
    lambda layer: layer.to(memory_format=torch.channels_last),
    lambda layer: setattr(layer.norm, "weight", torch.full((8,), 3.0)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_product_is_never_stale(change: Callable[[Conv2d], Any]):
    plain = convolution(FrozenBatchNorm2d(8))
    folded = fold_frozen_norms(copy.deepcopy(plain))
    image = torch.randn(2, 3, 8, 8)
    folded(image)
    for layer in (plain, folded):
        change(layer)
    image = image.to(plain.weight.dtype)
    with torch.no_grad():
        found, expected = folded(image), plain(image)
    assert found.is_contiguous(memory_format=torch.channels_last) == expected.is_contiguous(
        memory_format=torch.channels_last
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_layer_multiplies_once():
    layer = fold_frozen_norms(convolution(FrozenBatchNorm2d(8)))
    image = torch.randn(2, 3, 8, 8)
    layer(image)
    product = layer._product
    layer(image)
    assert layer._product is product
    with torch.inference_mode():
        layer(image)
    assert layer._product is product
    # Training in bfloat16, and not a cast in a step from the second one on.
    with torch.autocast("cpu", torch.bfloat16):
        layer(image)
        product = layer._product
        half = image.bfloat16()
        with OperationCounter() as counter:
            layer(half)
    assert layer._product is product
    assert product.weight.dtype is product.bias.dtype is torch.bfloat16
    assert counter.operations == {"aten::convolution": 1, "aten::relu": 1}


def test_a_product_from_inference_mode_serves_training():
    layer = fold_frozen_norms(convolution(FrozenBatchNorm2d(8)))
    image = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        layer(image)
    learnt = image.clone().requires_grad_()
    layer(learnt).sum().backward()
    assert learnt.grad is not None


def test_channels_last_stays_without_copies():
    layer = convolution(FrozenBatchNorm2d(8)).to(memory_format=torch.channels_last)
    fold_frozen_norms(layer)
    image = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert layer(image).is_contiguous(memory_format=torch.channels_last)
    assert layer._product.weight.is_contiguous(memory_format=torch.channels_last)


def test_live_norm_is_folded_in_evaluation_only():
    plain = convolution(nn.BatchNorm2d(8), frozen=False)
    folded = fold_frozen_norms(copy.deepcopy(plain))
    image = torch.randn(4, 3, 8, 8)
    for _ in range(2):
        for layer in (plain.train(), folded.train()):
            layer(image).sum().backward()
        # While learning bit for bit what Detectron2 computes, statistics included.
        for name, value in plain.state_dict().items():
            assert torch.equal(folded.state_dict()[name], value), name
        assert torch.equal(folded.weight.grad, plain.weight.grad)
        with torch.no_grad():
            # The kernel that moves the statistics does not count as a change of them.
            plain.norm.eval()
            folded.norm.eval()
            torch.testing.assert_close(folded(image), plain(image), rtol=1e-5, atol=1e-6)
            assert folded._product is not None


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 8), nn.BatchNorm2d(8, affine=False)])
def test_other_layers_stay_as_they_are(norm):
    assert type(fold_frozen_norms(convolution(norm))) is Conv2d


def test_copies_and_pickles_have_products_of_their_own():
    layer = fold_frozen_norms(convolution(FrozenBatchNorm2d(8)))
    image = torch.randn(2, 3, 8, 8)
    expected = layer(image)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert other._product is None
        assert torch.equal(other(image), expected)


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.float32, torch.contiguous_format),
        (torch.bfloat16, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last),
    ],
)
def test_a_frozen_trunk_is_53_convolutions_and_keeps_nothing_for_backward(
    dtype: torch.dtype, memory_format: torch.memory_format
):
    trunk = fold_frozen_norms(resnet(freeze_at=5).to(memory_format=memory_format))
    image = torch.randn(1, 3, 64, 64)
    half = dtype is not torch.float32
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autocast("cpu", dtype if half else torch.bfloat16, enabled=half):
        trunk(image)
        with (
            OperationCounter() as counter,
            torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
        ):
            features = trunk(image)
    assert not saved
    for each in features.values():
        assert not each.requires_grad
        assert each.dtype is dtype
        assert each.is_contiguous(memory_format=memory_format)
    # 1 + 3 x 16 convolutions and 4 shortcuts; a ReLU after each but the last one of a block and
    # the shortcut, then one after the sum, all in place. The image alone is converted.
    assert counter.operations == {
        "aten::convolution": 53,
        "aten::relu_": 49,
        "aten::add_": 16,
        "aten::max_pool2d_with_indices": 1,
        **({"aten::_to_copy": 1} if half else {}),
    }


@pytest.mark.parametrize(
    ("size", "number", "call"),
    [
        (8, 1, lambda model, x: model.proposal_generator.rpn_head([x])[1][0]),
        (7, 2, lambda model, x: model.roi_heads.box_head(x)),
        # Four convolutions and the transposed one.
        (14, 5, lambda model, x: model.roi_heads.mask_head.layers(x)),
    ],
)
def test_activations_in_place_change_no_bit(
    size: int, number: int, call: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    words = "MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 "
    words += "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16"
    torch.manual_seed(0)
    plain = build_model(build_config("configs/stage_1_heads.yaml", words.split()))
    in_place = activate_in_place(copy.deepcopy(plain))
    found = []
    x = torch.randn(3, 16, size, size)
    for model, operation in ((plain, "aten::relu"), (in_place, "aten::relu_")):
        learnt = x.clone().requires_grad_()
        with OperationCounter() as counter:
            output = call(model, learnt)
        relu = {name: n for name, n in counter.operations.items() if "relu" in name}
        assert relu == {operation: number}
        output.square().sum().backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        found.append([output, learnt.grad, *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
