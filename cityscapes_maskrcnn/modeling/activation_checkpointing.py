"""Activation checkpointing: recompute activations in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from detectron2.modeling import FPN
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cityscapes_maskrcnn.modeling.norm_statistics import kept_statistics
from cityscapes_maskrcnn.utils.errors import InputError

#: What ``MODEL.ACTIVATION_CHECKPOINTING`` may name.
PARTS: Final = (
    "stem",
    "res2",
    "res3",
    "res4",
    "res5",
    "fpn",
    "rpn_head",
    "box_head",
    "mask_head",
)


def checkpoint_activations(model: nn.Module, parts: Sequence[str]) -> nn.Module:
    """Have parts of a model keep their inputs alone for the backward pass, in place.

    There they are computed once more, with the same random choices and in the same precision:
    gradients are the same. Running statistics of BatchNorm move once. Parameters keep their names.
    In inference nothing changes.

    Args:
        model: a Detectron2 model, before it is compiled. Parts that it does not have, or does not
            train, are left alone. Of ``res2`` to ``res5`` each block is a part of its own.
        parts: of :data:`PARTS`.

    Returns:
        The model.

    Raises:
        InputError: there is no such part.
    """
    unknown = [each for each in parts if each not in PARTS]
    if unknown:
        raise InputError(
            f"MODEL.ACTIVATION_CHECKPOINTING: there is no part {unknown[0]!r}; there are "
            f"{', '.join(PARTS)}"
        )
    backbone = getattr(model, "backbone", None)
    resnet = getattr(backbone, "bottom_up", backbone)
    heads = getattr(model, "roi_heads", None)
    found: dict[str, list[Any]] = {
        "stem": [getattr(resnet, "stem", None)],
        **{name: list(getattr(resnet, name, ())) for name in ("res2", "res3", "res4", "res5")},
        "fpn": [backbone] if isinstance(backbone, FPN) else [],
        "rpn_head": [getattr(getattr(model, "proposal_generator", None), "rpn_head", None)],
        "box_head": [getattr(heads, "box_head", None)],
        "mask_head": [getattr(heads, "mask_head", None)],
    }
    for module in (module for part in dict.fromkeys(parts) for module in found[part]):
        if module is None or not any(each.requires_grad for each in module.parameters()):
            continue
        if isinstance(module, FPN):
            _derive(module.bottom_up, _BottomUp)
            _derive(module, _Pyramid)
        elif isinstance(module, BaseMaskRCNNHead):
            _derive(module, _MaskHead)
        else:
            _derive(module, _Whole)
    return model


def _derive(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make a module one of a subclass of its class; all else about it stays what it is."""
    cls = type(module)
    module.__class__ = type(cls.__name__, (kind, cls), {"__module__": cls.__module__})


def _checkpointed(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a method of a module; in training without keeping what it computes on the way."""
    if not (module.training and torch.is_grad_enabled()):
        return function(*inputs)
    if torch.compiler.is_compiling():
        # What is compiled moves the statistics apart from what is computed anew.
        return checkpoint(function, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), kept_statistics(module)

    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


class _Whole(nn.Module):
    """A module of which the whole forward pass is computed anew."""

    def forward(self, *inputs: Any) -> Any:
        return _checkpointed(self, super().forward, *inputs)


class _MaskHead(nn.Module):
    """A mask head whose layers are computed anew, and not its targets, loss and metrics."""

    def layers(self, x: Tensor) -> Any:
        return _checkpointed(self, super().layers, x)  # type: ignore[misc]


class _Pyramid(nn.Module):
    """A feature pyramid whose own layers are computed anew, and not the backbone below it."""

    bottom_up: nn.Module

    def forward(self, images: Tensor) -> Any:
        return _checkpointed(self, super().forward, self.bottom_up(images))


class _BottomUp(nn.Module):
    """The backbone of a :class:`_Pyramid`, which is asked for its features a second time."""

    def forward(self, given: Any) -> Any:
        return given if isinstance(given, dict) else super().forward(given)
