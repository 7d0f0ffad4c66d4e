"""Freeze the feature pyramid, and count the trained parameters of a model."""

from __future__ import annotations

import re

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN
from tabulate import tabulate
from torch import nn

from cityscapes_maskrcnn.utils.errors import InputError

# Part -> the start of its modules' names, from the image to the output; the first that fits counts.
_PARTS = {
    "stem": r"backbone\.(bottom_up\.)?stem\.",
    "res2": r"backbone\.(bottom_up\.)?res2\.",
    "res3": r"backbone\.(bottom_up\.)?res3\.",
    "res4": r"backbone\.(bottom_up\.)?res4\.",
    "res5": r"backbone\.(bottom_up\.)?res5\.",
    "FPN": r"backbone\.",
    "RPN": r"proposal_generator\.",
    "box head": r"roi_heads\.box_",
    "mask head": r"roi_heads\.mask_",
    "semantic head": r"sem_seg_head\.",
}


def freeze_fpn(model: nn.Module) -> None:
    """Freeze the feature pyramid's own layers, in place.

    These are its lateral and output convolutions with their normalisation, BatchNorm statistics
    included. The network below is not touched: gradients flow through the frozen layers to the
    parts of it that are trained.

    Args:
        model: its ``backbone`` must be Detectron2's :class:`FPN`.

    Raises:
        InputError: it is not.
    """
    pyramid = getattr(model, "backbone", None)
    if not isinstance(pyramid, FPN):
        raise InputError(
            "MODEL.FPN.FREEZE: the model has no feature pyramid; set it to False or "
            "MODEL.BACKBONE.NAME to build_resnet_fpn_backbone or build_convnext_fpn_backbone"
        )
    for name, layer in pyramid.named_children():
        if name != "bottom_up":
            layer.requires_grad_(False)
            # BatchNorm would go on normalising by the batch and counting it.
            FrozenBatchNorm2d.convert_frozen_batchnorm(layer)


def parameter_table(model: nn.Module) -> str:
    """Count the parameters of every part of a model, and those that are trained.

    Args:
        model: not wrapped by DistributedDataParallel.

    Returns:
        A Markdown table of the parts that the model has, from the image to the output, with the
        total. Other modules than a Mask R-CNN's are listed by the first word of their names.
    """
    counts = {part: [0, 0] for part in _PARTS}
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, FrozenBatchNorm2d):
            # Buffers there; counted, so that freezing does not change the size of a part.
            own += [module.weight, module.bias]
        name = f"{prefix}."
        fitting = (part for part, start in _PARTS.items() if re.match(start, name))
        count = counts.setdefault(next(fitting, name.partition(".")[0]), [0, 0])
        count[0] += sum(tensor.numel() for tensor in own)
        count[1] += sum(tensor.numel() for tensor in own if tensor.requires_grad)
    counts["total"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [(name, f"{size:,}", f"{live:,}") for name, (size, live) in counts.items() if size]
    headers = ("part", "parameters", "trainable")
    align = ("left", "right", "right")
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
