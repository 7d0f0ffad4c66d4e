"""Convert weights of any program to the content of a file that Detectron2 loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, read_history, to_plain
from cityscapes_maskrcnn.engine.weight_conventions import author_of
from cityscapes_maskrcnn.modeling.deeplab_weights import ConversionReport, translate
from cityscapes_maskrcnn.modeling.weight_files import (
    PUBLISHED_SCHEMES,
    fetch_published,
    read_checkpoint,
)


def convert_checkpoint(source: str, *, keep_names: bool) -> tuple[dict[str, Any], ConversionReport]:
    """Read a file of weights, running no code from it, and name its tensors as Detectron2 does.

    Args:
        source: a ``.pth`` or ``.safetensors`` file, or a name of :func:`.fetch_published`.
        keep_names: take all tensors of any network, with unchanged names.

    Returns:
        ``model``, the tensors by name, with what Detectron2's checkpointer has to know of them and
        the images that they have seen; and what became of every tensor of the file.

    Raises:
        InputError: the file cannot be fetched or read, or see :func:`.translate`.
    """
    is_name = source.startswith(PUBLISHED_SCHEMES)
    path = fetch_published(source) if is_name else Path(source)
    checkpoint = read_checkpoint(path, skip_objects=True)
    convert = take_as_named if keep_names else translate
    tensors, report = convert(checkpoint["model"], source)
    content: dict[str, Any] = {"model": tensors}
    if not keep_names:
        # Detectron2 looks for names that end in these, wherever the model keeps its backbone.
        content["matching_heuristics"] = True
        # What the network expects of images is known then, see check_conventions.
        content["__author__"] = author_of(source) or "convert_weights.py"
    if history := read_history(checkpoint, source):
        content[SEEN_IMAGES_KEY] = to_plain(history)
    return content, report


def take_as_named(
    state: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Take all tensors of a file under their own names.

    Args:
        state: tensors by name, perhaps with other values among them, which are skipped.
        source: the file, for the report.
    """
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    report = ConversionReport(
        source=source,
        used={name: name for name in tensors},
        skipped={name: "not tensors" for name in state if name not in tensors},
        missing=(),
        backbone=(),
    )
    return tensors, report
