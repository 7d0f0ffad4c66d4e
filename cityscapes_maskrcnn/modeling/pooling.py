"""RoIAlign over a feature pyramid, for several heads at once, at boxes in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.functional import pad

from cityscapes_maskrcnn.modeling.cpu_roi_align import cpu_roi_align

# Of features in half precision no more is held in float32 at a time, and in the backward pass as
# much of a gradient for each head: half of the finest level of four 1024x2048 images.
_MOST_BYTES = 2**28


class BatchedROIPooler(ROIPooler):
    """Detectron2's pooler with one synchronisation and with boxes that stay in float32.

    Results in float32 are equal to those of :class:`ROIPooler` (on a CPU up to rounding, see
    :func:`.cpu_roi_align`), which finds the boxes of each level by ``nonzero`` and rounds boxes to
    the type of the features: to 8 pixels at the right border of an image 2048 pixels wide, in
    bfloat16.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool regions as :meth:`ROIPooler.forward`; the result has the type of the features.

        Args:
            x: a level each, shape (N, C, H, W).
            box_lists: an image each, in pixels of the network's input.

        Returns:
            Shape (K, C, *output_size), K boxes in the order of ``box_lists``.
        """
        if torch.jit.is_tracing():
            pooled: Tensor = super().forward(x, box_lists)
            return pooled
        return pool_regions(x, [self], [box_lists])[0]


def pool_at_exact_boxes(model: nn.Module) -> nn.Module:
    """Have Detectron2's own poolers, which other heads than this project's use, round no boxes.

    They round them to the features' precision, see :class:`BatchedROIPooler`. In float32 nothing
    changes, and nothing if a model is given again.

    Args:
        model: any; it is changed.

    Returns:
        The model.
    """
    for module in model.modules():
        rounds = isinstance(module, ROIPooler) and not isinstance(module, BatchedROIPooler)
        if rounds and _pool_in_float32 not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_pool_in_float32)
    return model


def _pool_in_float32(_pooler: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert the features that regions are pooled from; torchvision computes in float32 anyway."""
    features, *others = inputs
    return ([feature.float() for feature in features], *others)


def pool_regions(
    features: Sequence[Tensor],
    poolers: Sequence[ROIPooler],
    boxes: Sequence[Sequence[Boxes]],
) -> list[Tensor]:
    """Pool the regions of several heads from one pyramid, with one synchronisation for all.

    torchvision's kernel takes boxes in the type of the features, has no variant for bfloat16 and
    computes coordinates in half precision for float16. So features are converted to float32: a
    level at a time, large ones some channels at a time, once for all heads together, and in the
    same copy to the layout that the kernels read. Kernels that read half precision at exact boxes
    would need a compiled extension.

    Boxes whose corners are exchanged, or NaN, give zeros, as in Detectron2. Forward hooks of the
    levels' layers are not called on a CPU.

    Args:
        features: a level each, shape (N, C, H, W).
        poolers: a head each, of one scale per level.
        boxes: for every head, an image each, in pixels of the network's input.

    Returns:
        For every head shape (K, C, *output_size) in the type of the features, K boxes in the
        order in which they were given.
    """
    on_cpu = features[0].device.type == "cpu"
    layout = torch.channels_last if on_cpu else torch.contiguous_format
    regions = [_regions(each) for each in boxes]
    if len(features) == 1:
        orders = [torch.arange(len(each), device=each.device) for each in regions]
        counts = [[len(each)] for each in regions]
    else:
        orders, counts = _group_by_level(poolers, regions)
    grouped = [each[order] for each, order in zip(regions, orders, strict=True)]
    pooled: list[list[Tensor]] = [[] for _ in poolers]
    starts = [0] * len(poolers)
    for level, feature in enumerate(features):
        numbers = [count[level] for count in counts]
        chosen = [
            each[start : start + number]
            for each, start, number in zip(grouped, starts, numbers, strict=True)
        ]
        starts = [start + number for start, number in zip(starts, numbers, strict=True)]
        # A level without boxes stays in the graph of the gradients, but is not converted.
        used = feature if any(numbers) else feature[..., :1, :1]
        of_heads: list[list[Tensor]] = [[] for _ in poolers]
        for part in _parts_to_convert(used):
            exact = part.to(
                torch.promote_types(feature.dtype, torch.float32),
                memory_format=layout,
            )
            for parts, pooler, rows in zip(of_heads, poolers, chosen, strict=True):
                parts.append(
                    _pool_level(pooler.level_poolers[level], exact, rows).to(feature.dtype)
                )
            del exact  # before the next one is converted
        for levels, parts in zip(pooled, of_heads, strict=True):
            levels.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    results = []
    for parts, order in zip(pooled, orders, strict=True):
        rows = torch.cat(parts)
        if len(rows) < len(order):  # boxes without a level: zeros
            rows = torch.cat([rows, rows.new_zeros(len(order) - len(rows), *rows.shape[1:])])
        results.append(_InOrder.apply(rows, order))
    return results


def _pool_level(pooler: Any, feature: Tensor, regions: Tensor) -> Tensor:
    """Call the layer of a level, or on a CPU what computes the same in less time."""
    # Subclasses may compute something else.
    if type(pooler) is ROIAlign and feature.device.type == "cpu":
        return cpu_roi_align(
            feature,
            regions,
            output_size=pooler.output_size,
            spatial_scale=pooler.spatial_scale,
            sampling_ratio=pooler.sampling_ratio,
            aligned=pooler.aligned,
        )
    pooled: Tensor = pooler(feature, regions)
    return pooled


def _parts_to_convert(feature: Tensor) -> Sequence[Tensor]:
    """Divide features that are not in float32 by channels, where they would take much memory."""
    if feature.dtype.itemsize >= torch.float32.itemsize:
        return (feature,)
    channels = feature.shape[1]
    bytes_of_one = feature.numel() // max(1, channels) * torch.float32.itemsize
    return feature.split(max(1, _MOST_BYTES // max(1, bytes_of_one)), dim=1)


def _regions(boxes: Sequence[Boxes]) -> Tensor:
    """Put the index of the image before the corners of every box; shape (K, 5)."""
    return torch.cat(
        [pad(each.tensor, (1, 0), value=float(image)) for image, each in enumerate(boxes)]
    )


def _group_by_level(
    poolers: Sequence[ROIPooler], regions: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[int]]]:
    """Find for every head the order of its regions by level, and how many each level has."""
    orders, counts = [], []
    for pooler, each in zip(poolers, regions, strict=True):
        levels = assign_boxes_to_levels(
            [Boxes(each[:, 1:])],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        # Of a negative area, or NaN, where the conversion to integers depends on the machine.
        levels.masked_fill_(levels < 0, len(pooler.level_poolers))
        # Stable: gradients are then summed in the same order as Detectron2's.
        orders.append(levels.argsort(stable=True))
        numbers = torch.arange(len(pooler.level_poolers), device=levels.device)
        counts.append((levels[:, None] == numbers).sum(dim=0))
    return orders, torch.stack(counts).tolist()


class _InOrder(torch.autograd.Function):
    """Put row i of the first tensor at ``order[i]``; ``order`` holds every row's number once.

    The backward pass keeps the order only and selects rows. Those of torch's own operations keep
    the rows too (``index_copy_``), or add each to zeros, by atomic operations (``index_select``).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, order.argsort())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None
