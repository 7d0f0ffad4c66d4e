"""Models built with the widths that pruning has left."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from cityscapes_maskrcnn.modeling.narrowing import layer_widths, narrow_layers
from cityscapes_maskrcnn.utils.errors import InputError

WIDTHS = {"0": [3, 2], "1": [2, 5], "3": [20, 4]}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2d(3, 8, 1, bias=False, norm=nn.BatchNorm2d(8)),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def test_every_layer_gets_its_width() -> None:
    model = network()
    first = model[0].weight.detach()[:2].clone()
    narrow_layers(model, WIDTHS)
    assert layer_widths(model) == WIDTHS
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    assert shapes == {
        "0.weight": (2, 3, 1, 1),
        "0.bias": (2,),
        "1.weight": (2, 5, 2, 2),  # of a transposed convolution inputs come first
        "1.bias": (5,),
        "3.weight": (4, 20),
        "3.bias": (4,),
    }
    # BatchNorm that has seen nothing divides by sqrt(1 + 1e-5).
    torch.testing.assert_close(model[0].weight.detach(), first / (1 + 1e-5) ** 0.5)
    assert model(torch.zeros(1, 3, 1, 1)).shape == (1, 4)
    assert all(each.requires_grad for each in model.parameters())


def test_what_is_frozen_stays_frozen() -> None:
    model = network()
    model[0].norm = FrozenBatchNorm2d(8)
    model[0].requires_grad_(False)
    model[3].requires_grad_(False)
    narrow_layers(model, WIDTHS)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trained == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"3": [24, 5]}, r"MODEL.PRUNED_WIDTHS: 3 \[24, 5\]: .* at most \[24, 4\]"),
        ({"3": [0, 4]}, r"MODEL.PRUNED_WIDTHS: 3 \[0, 4\]"),
        ({"3": [True, 4.0]}, r"MODEL.PRUNED_WIDTHS: 3 \[True, 4.0\]"),
        ({"3": "all"}, r"MODEL.PRUNED_WIDTHS: 3 all"),
        ({"4": [1, 1]}, r"is of another model: 4 is a layer that the model has not"),
    ],
)
def test_widths_of_another_model(change: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        narrow_layers(network(), {**WIDTHS, **change})  # type: ignore[dict-item]


def test_a_layer_without_widths() -> None:
    with pytest.raises(InputError, match="0 is a layer that the model has and the key has not"):
        narrow_layers(network(), {"1": [2, 5], "3": [20, 4]})


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        (nn.GroupNorm(2, 8), "^0: a GroupNorm cannot be pruned"),
        (nn.Conv2d(8, 8, 1, groups=2), "^0: a Conv2d in groups cannot be pruned"),
    ],
)
def test_layers_that_cannot_be_pruned(layer: nn.Module, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        layer_widths(nn.Sequential(layer))
