"""Passes through a model in training mode that leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from torch import nn

from cityscapes_maskrcnn.modeling.norm_statistics import kept_statistics

_NORMALIZER: Final = "loss_normalizer"


@contextmanager
def dry_run(model: nn.Module) -> Iterator[EventStorage]:
    """Let a model compute in training mode while nothing about it changes but gradients.

    BatchNorm normalises by the batch and leaves its running statistics alone, the generators of
    random choices (which regions are sampled for a loss) and the moving average that RetinaNet
    divides its losses by are put back afterwards, and a ``VIS_PERIOD`` draws nothing.

    Args:
        model: any Detectron2 model; its mode is restored at the end.

    Returns:
        As a context: the event storage that the model reports to, which is dropped afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    drawing: dict[Any, Any] = {m: m.vis_period for m in modes if hasattr(m, "vis_period")}
    # A plain number, which is there from the first step in training mode on.
    normalizers = {m: vars(m).get(_NORMALIZER) for m in modes if isinstance(m, DenseDetector)}
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        model.train()
        for module in drawing:
            module.vis_period = 0
        with ExitStack() as stack:
            stack.enter_context(kept_statistics(model))
            stack.enter_context(torch.random.fork_rng(devices))
            yield stack.enter_context(EventStorage())
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, period in drawing.items():
            module.vis_period = period
        for module, value in normalizers.items():
            vars(module).pop(_NORMALIZER, None)
            if value is not None:
                setattr(module, _NORMALIZER, value)
