"""Layers with fewer channels than the other keys give them: ``MODEL.PRUNED_WIDTHS``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cityscapes_maskrcnn.modeling.folding import fold_for_good
from cityscapes_maskrcnn.utils.errors import InputError


def weighted_layers(model: nn.Module) -> dict[str, Any]:
    """List the layers of a model with parameters of their own, by name.

    Args:
        model: folded, see :func:`fold_for_good`.

    Raises:
        InputError: one is no plain convolution, transposed convolution or linear layer.
    """
    layers = {}
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        is_plain = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        if not is_plain or getattr(module, "groups", 1) != 1:
            kind = f"{type(module).__name__}{' in groups' if is_plain else ''}"
            raise InputError(
                f"{name}: a {kind} cannot be pruned, only convolutions, BatchNorm behind them and"
                " linear layers"
            )
        layers[name] = module
    return layers


def layer_widths(model: nn.Module) -> dict[str, list[int]]:
    """Get the numbers of input and output channels of every layer, as ``MODEL.PRUNED_WIDTHS``."""
    return {name: _widths(layer) for name, layer in weighted_layers(model).items()}


def narrow_layers(model: nn.Module, widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """Fold BatchNorm for good and give every layer its pruned width.

    Parameters keep their first channels: values for a checkpoint to replace. What is frozen stays
    frozen.

    Args:
        model: built by a config's other keys; changed in place.
        widths: ``MODEL.PRUNED_WIDTHS``.

    Returns:
        The model.

    Raises:
        InputError: the layers are others than the model's, or wider.
    """
    layers = weighted_layers(fold_for_good(model))
    if layers.keys() != widths.keys():
        name = min(layers.keys() ^ widths.keys())
        where = "the model has and the key has not" if name in layers else "the model has not"
        raise InputError(
            f"MODEL.PRUNED_WIDTHS: is of another model: {name} is a layer that {where}; take the"
            " config.yaml that was written beside the pruned checkpoint"
        )
    for name, layer in layers.items():
        _narrow(name, layer, widths[name])
    return model


def _widths(layer: Any) -> list[int]:
    if isinstance(layer, nn.Linear):
        return [layer.in_features, layer.out_features]
    return [layer.in_channels, layer.out_channels]


def _narrow(name: str, layer: Any, width: Any) -> None:
    full = _widths(layer)
    fits = isinstance(width, (list, tuple)) and len(width) == 2
    if not fits or not all(
        isinstance(each, int) and 1 <= each <= most for each, most in zip(width, full, strict=True)
    ):
        raise InputError(
            f"MODEL.PRUNED_WIDTHS: {name} {width}: it must be inputs and outputs, at most {full}"
        )
    inputs, outputs = width
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    else:
        layer.in_channels, layer.out_channels = inputs, outputs
    rows, columns = (inputs, outputs) if isinstance(layer, nn.ConvTranspose2d) else width[::-1]
    weight = layer.weight
    layer.weight = nn.Parameter(
        weight.detach()[:rows, :columns].clone(), requires_grad=weight.requires_grad
    )
    if layer.bias is not None:
        layer.bias = nn.Parameter(
            layer.bias.detach()[:outputs].clone(), requires_grad=layer.bias.requires_grad
        )
