"""Statistics of live BatchNorm: find, average and keep them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """List the running means and variances of BatchNorm, by name in the model's state."""
    return {
        f"{prefix}.{name}": statistic
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for name in ("running_mean", "running_var")
        if (statistic := getattr(module, name)) is not None
    }


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in place; all processes call this."""
    if comm.get_world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= comm.get_world_size()


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
