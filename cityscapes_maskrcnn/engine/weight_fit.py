"""Fit the tensors of a file to a model: its classes, its names, and a place for every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from cityscapes_maskrcnn.engine.checkpoint_origin import classes_in, foreign_classes_in
from cityscapes_maskrcnn.engine.class_check import coco_classes
from cityscapes_maskrcnn.modeling.class_rows import count_classes, match_classes
from cityscapes_maskrcnn.modeling.deeplab_weights import (
    ConversionReport,
    canonical_names,
    find_backbone,
    translate,
)
from cityscapes_maskrcnn.modeling.weight_files import check_values
from cityscapes_maskrcnn.utils.errors import InputError

# Parts of a detector that are trained, and loaded, as a whole: FPN, RPN head, heads of regions.
_PART: Final = re.compile(
    r"backbone\.fpn_|proposal_generator\.rpn_head\.|roi_heads\.\w+_(?:head|predictor)\."
)


@dataclass(frozen=True)
class WeightFit:
    """The tensors of a file as a model takes them, and the account of them.

    Attributes:
        source: the file.
        tensors: by the model's names, those that it does not have among them. Shapes are the
            model's, but for parameters that may differ.
        backbone: prefix of the model's backbone, see :func:`.find_backbone`; None: it has none of
            a known kind.
        report: what became of every tensor, if this project translated the names; None: Detectron2
            did.
    """

    source: str
    tensors: Mapping[str, Tensor]
    backbone: str | None
    report: ConversionReport | None

    def check_unexpected(self, names: Sequence[str]) -> None:
        """Verify that all blocks of a file's backbone found a place in the model's.

        Args:
            names: tensors that the model had no place for when they were loaded.

        Raises:
            InputError: it is a deeper ResNet of the zoo.
        """
        if self.backbone is None:
            return
        blocks = [name for name in names if re.search(r"(^|\.)res[2-5]\.\d+\.", name)]
        extra = [name for name in blocks if not name.endswith("num_batches_tracked")]
        if extra:
            raise InputError(
                f"{self.source}: weights of another backbone than the model's: "
                f"{len(extra)} of its tensors, first {extra[0]}, do not fit"
            )

    def count_equal(self, loaded: Mapping[str, Tensor]) -> tuple[int, int]:
        """Count the backbone's tensors that a model has bit for bit as the file.

        Args:
            loaded: the model's tensors by name, after loading.

        Returns:
            How many are equal, and how many the report counts to the backbone: 0 without a report.
        """
        names = () if self.report is None else self.report.backbone
        equal = sum(
            torch.equal(loaded[name].cpu(), self.tensors[name].to(loaded[name].dtype))
            for name in names
        )
        return equal, len(names)


def match_heads(
    content: Mapping[str, Any],
    source: str,
    initial: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    weights_classes: Sequence[str],
    require_all: bool,
) -> tuple[dict[str, Any], str]:
    """Give the heads of a file a model's classes, by name, if both are known.

    Args:
        content: of the file, as :func:`.from_torchvision` returns its tensors.
        source: the file, for messages.
        initial: the model's tensors by name.
        classes: names of the model's classes; empty: not known.
        weights_classes: ``MODEL.WEIGHTS_CLASSES``, for files that do not name their classes.
        require_all: the model is scored as the file has it. A file that names its classes is left
            as it is then, and every class must have rows.

    Returns:
        The tensors under the file's names, and a table of which rows came from where; empty:
        nothing was matched.

    Raises:
        InputError: the model's classes are not known where ``weights_classes`` has to be matched,
            classes have no rows that need them, or see :func:`.match_classes`.
    """
    tensors: dict[str, Any] = content["model"]
    own, count = classes_in(content), count_classes(tensors)
    if count is None or (own and require_all):
        return tensors, ""
    theirs = own or foreign_classes_in(content) or list(weights_classes)
    if theirs == ["coco"]:
        theirs = coco_classes(count)
    if not theirs or theirs == list(classes):
        return tensors, ""
    if not classes:
        raise InputError(
            "MODEL.WEIGHTS_CLASSES: the config's datasets have no names of classes to match"
        )
    matched, missing, table = match_classes(tensors, source, theirs, classes, initial)
    if missing and (require_all or (not own and missing == list(classes))):
        raise InputError(
            f"{source}: has no rows for {', '.join(missing)}; the classes of its heads are "
            f"{', '.join(theirs[:10])}{', ...' if len(theirs) > 10 else ''}"
        )
    return matched, table


def fit_weights(
    content: Mapping[str, Any],
    source: str,
    model: nn.Module,
    *,
    may_differ: Sequence[str],
    require_all: bool,
) -> WeightFit:
    """Name a file's tensors as a model does, and verify that they are weights of that model.

    Args:
        content: of the file, with the tensors that :func:`match_heads` returns.
        source: the file, as ``MODEL.WEIGHTS`` names it; one that ends in ``.pkl`` is the zoo's.
        model: not wrapped; nothing is loaded into it.
        may_differ: prefixes of parameter names that may have another shape in the file.
        require_all: every tensor without which a model is not the one that was trained must be
            there.

    Raises:
        InputError: a tensor has another shape, or values that cannot be weights; the file has none
            of the model's parameters, not all of its backbone's, or a part (FPN, RPN or a head)
            with other layers; or as :func:`.translate`.
    """
    ours = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    backbone = find_backbone(shapes)
    report = None
    if backbone is not None and not source.endswith(".pkl"):
        tensors, report = translate(content["model"], source, shapes, may_differ)
        # Those that found no place too.
        names = {*canonical_names(content["model"], source)}
    else:
        tensors = _align(content, ours)
        names = {*tensors}
    _check_shapes(tensors, source, shapes, may_differ=may_differ, require_all=require_all)
    _check_not_foreign(tensors, source, model, first=next(iter(content["model"])))
    _check_missing(tensors, source, _needed(model), backbone=backbone, require_all=require_all)
    _check_parts(names, source, ours, may_differ=may_differ)
    check_values(
        {name: value for name, value in tensors.items() if name in ours},
        source,
        integers=[name for name, value in ours.items() if not value.is_floating_point()],
    )
    return WeightFit(source, tensors, backbone, report)


def _align(content: Mapping[str, Any], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name a file's tensors as a model does, by Detectron2's own means."""
    state = {name: each for name, each in content["model"].items() if torch.is_tensor(each)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): each for name, each in state.items()}
    if not content.get("matching_heuristics"):
        return state
    aligned: dict[str, Tensor] = align_and_update_state_dicts(
        ours, state, c2_conversion=content.get("__author__") == "Caffe2"
    )
    return aligned


def _check_shapes(
    tensors: Mapping[str, Tensor],
    source: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    may_differ: Sequence[str],
    require_all: bool,
) -> None:
    """Raise if a tensor has another shape than the model's, and may not."""
    wrong = [
        f"{name} is {tuple(value.shape)} in the file and {shapes[name]} in the model"
        for name, value in tensors.items()
        if tuple(value.shape) != shapes.get(name, tuple(value.shape))
        and not name.startswith(tuple(may_differ))
    ]
    if wrong:
        advice = ""
        if not require_all:
            advice = "; to start parts from scratch, see MODEL.WEIGHTS_MAY_DIFFER"
        raise InputError(f"{source}: weights of another model: {'; '.join(wrong[:4])}{advice}")


def _check_not_foreign(
    tensors: Mapping[str, Tensor], source: str, model: nn.Module, *, first: str
) -> None:
    """Raise if a file has none of the model's parameters.

    Args:
        tensors: by the model's names.
        source: the file, for the message.
        model: not wrapped.
        first: a name in the file.
    """
    # Buffers that fit are no sign of the right network.
    if not any(name in tensors for name, _ in model.named_parameters()):
        raise InputError(
            f"{source}: none of its tensors belongs to this model (its first is "
            f"{first!r}); is it a checkpoint of another network?"
        )


def _check_missing(
    tensors: Mapping[str, Tensor],
    source: str,
    needed: Sequence[str],
    *,
    backbone: str | None,
    require_all: bool,
) -> None:
    """Raise if a file lacks some of the backbone's tensors, or any where all must be.

    Args:
        tensors: by the model's names.
        source: the file, for the message.
        needed: see :func:`_needed`.
        backbone: prefix of the model's backbone, if it has one of a known kind.
        require_all: all must be.
    """
    missing = [name for name in needed if name not in tensors]
    # BatchNorm that is trained can do without the statistics, which Caffe2's files lack.
    layers = re.compile(rf"{re.escape(backbone or '')}(stem|res[2-5])\.(?!.*\.running_)")
    of_backbone = [] if backbone is None else [*filter(layers.match, missing)]
    if of_backbone and any(map(layers.match, tensors)):
        raise InputError(
            f"{source}: weights of another backbone than the model's: lacks "
            f"{len(of_backbone)} of its tensors, first {of_backbone[0]}"
        )
    if missing and require_all:
        parts = Counter(name.partition(".")[0] for name in missing)
        raise InputError(
            f"{source}: lacks "
            f"{', '.join(f'{count} tensors of {part}' for part, count in parts.items())} "
            f"(first {missing[0]}), which would stay random; name a checkpoint of the whole "
            "model in MODEL.WEIGHTS"
        )


def _needed(model: nn.Module) -> list[str]:
    """List the tensors without which a model is not the one that was trained."""
    frozen = {
        name for name, module in model.named_modules() if isinstance(module, FrozenBatchNorm2d)
    }
    return [
        name
        for name in model.state_dict()
        if not name.endswith("num_batches_tracked")
        # Caffe2's files have the statistics of frozen ones folded into weight and bias.
        and not (".running_" in name and name.rpartition(".")[0] in frozen)
    ]


def _check_parts(
    names: Iterable[str], source: str, ours: Iterable[str], *, may_differ: Sequence[str]
) -> None:
    """Raise if a file has some tensors of an FPN or a head, but not just those of the model's.

    Its layers, or their normalisation, are others then: they would be mixed with random ones.

    Args:
        names: all of the file's tensors, by the names that a model would have for them.
        source: the file, for the message.
        ours: names in the model.
        may_differ: prefixes of names that are not compared.
    """
    theirs = _parts(names, may_differ)
    for part, expected in sorted(_parts(ours, may_differ).items()):
        other = theirs.get(part, set())
        if expected & other and expected != other:
            rows = (("lacks", expected - other), ("adds", other - expected))
            what = " and ".join(f"{verb} {min(each)}" for verb, each in rows if each)
            raise InputError(
                f"{source}: its {part.rstrip('._')} has other layers, or other "
                f"normalisation, than the model's: it {what}; set the config's keys of it as "
                "they were in training, or name the part in MODEL.WEIGHTS_MAY_DIFFER to start "
                "it from scratch"
            )


def _parts(names: Iterable[str], may_differ: Sequence[str]) -> dict[str, set[str]]:
    """Group the names of a detector by the part that they are of; others are left out."""
    found: dict[str, set[str]] = {}
    for name in names:
        match = _PART.match(name)
        if (
            match
            and not name.startswith(tuple(may_differ))
            and not name.endswith("num_batches_tracked")
        ):
            found.setdefault(match[0], set()).add(name)
    return found
