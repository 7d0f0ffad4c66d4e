"""Map the rows of a detector's heads by class name, from COCO's 80 to those of a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from cityscapes_maskrcnn.utils.errors import InputError

# A class of Cityscapes that other datasets annotate under another name.
_STAND_INS: Final = {"rider": "person"}


@dataclass(frozen=True)
class _Layer:
    """One of the layers whose outputs are classes.

    Attributes:
        name: in Detectron2's model, without ``.weight``; a cascade numbers its predictors.
        others: its names in files of torchvision and MMDetection, a regular expression; None: it
            has none.
        values: rows of a class.
        has_background: whether one row for the background follows.
    """

    name: str
    others: str | None
    values: int
    has_background: bool


_LAYERS: Final = (
    _Layer("roi_heads.box_predictor.cls_score", r"roi_head\.bbox_head\.fc_cls", 1, True),
    _Layer("roi_heads.box_predictor.bbox_pred", r"roi_head\.bbox_head\.fc_reg", 4, False),
    _Layer(
        "roi_heads.mask_head.predictor",
        r"roi_heads\.mask_predictor\.mask_fcn_logits|roi_head\.mask_head\.conv_logits",
        1,
        False,
    ),
    # PatchDCT's, which only this project names so.
    _Layer("roi_heads.mask_head.patch_kind", None, 3, False),
    _Layer("roi_heads.mask_head.patch_vector", None, 6, False),
)

# PointRend's: what it makes of one class also follows from the coarse masks of all others.
_OF_ALL_CLASSES: Final = re.compile(
    r"(?:.*\.)?(roi_heads\.mask_head\.(?:coarse_head\.prediction|point_head))\..*"
)


def class_layers(state: Mapping[str, Any]) -> Iterator[tuple[str, str, int, bool]]:
    """Find the tensors of a file whose rows are classes.

    Args:
        state: the file's tensors by name: Detectron2's, torchvision's or MMDetection's names, under
            any prefix.

    Yields:
        Name in the file, name in Detectron2's model, rows of a class, and whether the last row is
        the background's.
    """
    for layer in _LAYERS:
        own = re.escape(layer.name).replace(r"box_predictor\.", r"box_predictor\.(?:\d+\.)?")
        others = "" if layer.others is None else f"|{layer.others}"
        pattern = re.compile(rf"(?:.*\.)?(?:({own}){others})\.(weight|bias)")
        for name, value in state.items():
            match = pattern.fullmatch(name)
            if match and torch.is_tensor(value) and value.dim():
                yield (
                    name,
                    f"{match[1] or layer.name}.{match[2]}",
                    layer.values,
                    layer.has_background,
                )


def count_classes(state: Mapping[str, Any]) -> int | None:
    """Count the classes of a file's box head; None: it has none. Arguments as `class_layers`."""
    counts = (len(state[name]) - 1 for name, _, _, scores in class_layers(state) if scores)
    return next(counts, None)


def match_classes(
    state: Mapping[str, Any],
    source: str,
    theirs: Sequence[str],
    ours: Sequence[str],
    initial: Mapping[str, Tensor],
) -> tuple[dict[str, Any], list[str], str]:
    """Put the rows of a file's heads in the order of a model's classes, by their names.

    A rider takes the rows of a person where the file has no riders. A class without rows keeps the
    model's own. PointRend's output layers and its point head are left out: they mix the classes.
    Layers without classes (class-agnostic boxes and masks), and those of another width
    than the model's, stay as they are.

    Args:
        state: the file's tensors, as :func:`class_layers` takes them; the background last.
        source: the file, for messages.
        theirs: names of the file's classes, in the order of its rows.
        ours: names of the model's classes, by contiguous id.
        initial: the model's tensors, by Detectron2's names.

    Returns:
        The tensors under the file's names, those of the classes with new rows; the model's classes
        that the file has no rows for; and a table of which rows came from where.

    Raises:
        InputError: the file's heads have another number of classes than ``theirs``.
    """
    rows = [_row_of(name, theirs) for name in ours]
    result = dict(state)
    changed = []
    for name, target, values, has_background in class_layers(state):
        given, own = state[name], initial.get(target)
        if own is None or own.shape[1:] != given.shape[1:]:
            continue
        if not has_background and len(given) == values != len(theirs) * values:
            continue
        if len(given) != len(theirs) * values + has_background:
            raise InputError(
                f"{source}: {name} has {len(given)} rows, which are not those of {len(theirs)} "
                "classes; name the classes of its heads in MODEL.WEIGHTS_CLASSES, or leave it empty"
            )
        taken = [
            # The initial rows of a class that the file does not have.
            own[index * values : (index + 1) * values].to(given)
            if row is None
            else given[row * values : (row + 1) * values]
            for index, row in enumerate(rows)
        ]
        result[name] = torch.cat([*taken, given[-1:]] if has_background else taken)
        changed.append(f"{name} {tuple(given.shape)} -> {tuple(result[name].shape)}")
    for name in state:
        if mixed := _OF_ALL_CLASSES.fullmatch(name):
            del result[name]
            changed.append(f"{mixed[1]} starts from scratch")
    changed = [*dict.fromkeys(changed)]
    width = max(map(len, [*ours, "background"]))
    lines = [
        f"  {name:{width}}  "
        + ("starts from scratch" if row is None else f"row {row:3}  {theirs[row]}")
        for name, row in zip(ours, rows, strict=True)
    ]
    lines.append(f"  {'background':{width}}  row {len(theirs):3}")
    header = f"{source}: its heads by class, of {len(theirs)}:"
    missing = [name for name, row in zip(ours, rows, strict=True) if row is None]
    return result, missing, "\n".join([header, *lines, *(f"  {line}" for line in changed)])


def _row_of(name: str, theirs: Sequence[str]) -> int | None:
    for candidate in (name, _STAND_INS.get(name)):
        if candidate in theirs:
            return theirs.index(candidate)
    return None
