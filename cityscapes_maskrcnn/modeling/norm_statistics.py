"""Live BatchNorm in passes that are not to be counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of BatchNorm alone in a ``with`` block.

    In training mode the layers normalise by the batch, as always; in evaluation mode by the running
    statistics, as always.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    settings = [(module.track_running_stats, module.momentum) for module in layers]
    try:
        for module in layers:
            module.track_running_stats = False
            # Detectron2's naiveSyncBN looks at this one alone.
            module.momentum = 0.0
        yield
    finally:
        for module, (tracks, momentum) in zip(layers, settings, strict=True):
            module.track_running_stats = tracks
            module.momentum = momentum
