"""Keep the statistics of live BatchNorm unchanged in passes that should not count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of BatchNorm alone in a ``with`` block.

    The layers compute what they always do; the statistics that move are copies. (Without any, they
    would save fewer tensors for the backward pass, which activation checkpointing refuses.)
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(module._buffers) for module in layers]
    try:
        for module, buffers in zip(layers, kept, strict=True):
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, buffers in zip(layers, kept, strict=True):
            module._buffers.update(buffers)
