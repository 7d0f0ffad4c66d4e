"""Other programs' names of a backbone's and a DeepLabv3's tensors -> the model's, with a report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cityscapes_maskrcnn.modeling.detector_names import (
    MMDETECTION_RULES,
    TORCHVISION_RULES,
    Rule,
)
from cityscapes_maskrcnn.modeling.timm_names import TIMM_RULES, reshape_layer_scales
from cityscapes_maskrcnn.modeling.weight_files import check_values
from cityscapes_maskrcnn.utils.errors import InputError

Shape = tuple[int, ...]

_COUNTER = "num_batches_tracked"
# The first block of a ResNet or (group 2) ConvNeXt, by torchvision's name, timm's or the model's;
# what stands before it (group 1) is the prefix of the whole backbone.
_FIRST_BLOCK = re.compile(
    r"((?:.*\.)?)(?:(?:layer1|res2)\.0\.conv1\.weight"
    r"|((?:features\.1|res2)\.0\.block\.0\.weight|stages\.0\.blocks\.0\.conv_dw\.weight))"
)
_BACKBONE = re.compile(r"(stem|res[2-5])\.(?!fc\.)")

# torchvision's names -> Detectron2's. Every rule is applied; Detectron2's own names stay.
_BACKBONE_RULES = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
# Those of a ConvNeXt -> :mod:`.convnext`'s.
_CONVNEXT_RULES = (
    (r"^features\.0\.", "stem."),
    (r"^features\.1\.", "res2."),
    (r"^features\.2\.", "res3.downsample."),
    (r"^features\.3\.", "res3."),
    (r"^features\.4\.", "res4.downsample."),
    (r"^features\.5\.", "res4."),
    (r"^features\.6\.", "res5.downsample."),
    (r"^features\.7\.", "res5."),
    *TIMM_RULES,
)
_HEAD_RULES = (
    (r"^classifier\.0\.convs\.([0-3])\.0\.", r"sem_seg_head.aspp.convs.\1."),
    (r"^classifier\.0\.convs\.([0-3])\.1\.", r"sem_seg_head.aspp.convs.\1.norm."),
    # Number 0 of the pooling branch is the pooling.
    (r"^classifier\.0\.convs\.4\.1\.", "sem_seg_head.aspp.convs.4."),
    (r"^classifier\.0\.convs\.4\.2\.", "sem_seg_head.aspp.convs.4.norm."),
    (r"^classifier\.0\.project\.0\.", "sem_seg_head.aspp.project."),
    (r"^classifier\.0\.project\.1\.", "sem_seg_head.aspp.project.norm."),
    (r"^classifier\.1\.", "sem_seg_head.conv."),
    (r"^classifier\.2\.", "sem_seg_head.conv.norm."),
    (r"^classifier\.4\.", "sem_seg_head.predictor."),
)
# Where torchvision's Faster and Mask R-CNN have their ResNet.
_DETECTOR = "backbone.body."
_RPN_CONV = "proposal_generator.rpn_head.conv."
# A ConvNeXt's first convolutions.
_STEM, _BLOCK = "stem.0.weight", "res2.0.block.0.weight"
_PREDICTOR = "sem_seg_head.predictor.weight"
_ASPP = "sem_seg_head.aspp.convs.0.weight"


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor of a file, and of every tensor of the model.

    Attributes:
        source: the file.
        used: name in the model -> name in the file.
        skipped: name in the file -> why it is not used.
        missing: names in the model that keep their initial values. BatchNorm's counters are not
            counted: with a momentum BatchNorm does not use them.
        backbone: names in the model of the backbone's tensors. All are used.
    """

    source: str
    used: dict[str, str]
    skipped: dict[str, str]
    missing: tuple[str, ...]
    backbone: tuple[str, ...]

    def summary(self) -> str:
        """Count the tensors of each part that are used, skipped and missing, in a few lines."""
        used = Counter(
            "the backbone" if name in self.backbone else _part(name) for name in self.used
        )
        skipped, missing = Counter(self.skipped.values()), Counter(map(_part, self.missing))
        lines = [f"{self.source}:"]
        lines += [f"  used    {count:4}  of {part}" for part, count in used.items()]
        lines += [f"  skipped {count:4}  {reason}" for reason, count in skipped.items()]
        lines += [
            f"  missing {count:4}  of {part}: start from scratch" for part, count in missing.items()
        ]
        return "\n".join(lines)


@cache
def deeplab_shapes(num_classes: int | None = None, depth: int = 50) -> Mapping[str, Shape]:
    """Get the shapes of torchvision's deeplabv3_resnet50 or deeplabv3_resnet101.

    Args:
        num_classes: None: without the head.
        depth: 50 or 101.

    Returns:
        The tensors of the backbone, named as in Detectron2's ResNet, and those of the head, as
        :mod:`.semantic_head` names them. BatchNorm's counters are left out.
    """
    # Imported here: it takes a second, which no other import of this file should wait for.
    from torchvision.models import segmentation

    with torch.device("meta"):
        network = getattr(segmentation, f"deeplabv3_resnet{depth}")(
            weights=None, weights_backbone=None, num_classes=num_classes or 1
        )
    state = network.state_dict()
    return {
        name: tuple(state[old].shape)
        for name, old in canonical_names(state, "torchvision").items()
        if not name.endswith(_COUNTER) and (num_classes or _BACKBONE.match(name))
    }


@cache
def convnext_shapes(size: str = "tiny") -> Mapping[str, Shape]:
    """Get the shapes of torchvision's ConvNeXt, without classifier, named as :mod:`.convnext`'s.

    Args:
        size: "tiny", "small", "base" or "large".
    """
    from torchvision import models  # as above

    with torch.device("meta"):
        state = getattr(models, f"convnext_{size}")(weights=None).state_dict()
    return {
        name: tuple(state[old].shape)
        for name, old in canonical_names(state, "torchvision").items()
        if is_of_backbone(name)
    }


def find_backbone(names: Iterable[str]) -> str | None:
    """Find the ResNet or ConvNeXt in a Detectron2 model.

    Args:
        names: of the model's tensors.

    Returns:
        The prefix of its tensors, such as ``"backbone.bottom_up."``; None when the model has no
        ResNet with BatchNorm and no ConvNeXt, of all four stages.
    """
    names = {*names}
    for prefix in sorted(_prefixes(names)):
        blocks = [f"{prefix}res{stage}.0" for stage in (2, 3, 4, 5)]
        if all(
            f"{block}.conv1.norm.running_var" in names or f"{block}.layer_scale" in names
            for block in blocks
        ):
            return prefix
    return None


def translate(
    state: Mapping[str, Any],
    source: str,
    target: Mapping[str, Shape] | None = None,
    may_differ: Sequence[str] = (),
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Give the tensors of a file the names that a Detectron2 model has for them.

    Args:
        state: the file's tensors by name: torchvision's names, MMDetection's, timm's (of a
            ConvNeXt) or Detectron2's, under any prefix (``module.``, ``net.module.``); a whole
            network or its backbone. Of a detector of torchvision's, what :func:`.from_torchvision`
            returns.
        source: the file, for messages.
        target: names and shapes of the model's tensors, among them a backbone
            (:func:`find_backbone`). None: torchvision's DeepLabv3 of the file's depth, or ConvNeXt
            of the file's size, its backbone without a prefix, as Detectron2's zoo names backbones,
            its head under ``sem_seg_head.``.
        may_differ: prefixes of names in the model whose shapes may differ: these start anew.

    Returns:
        The tensors by their names in the model, not copied, and the report.

    Raises:
        InputError: the model has no such backbone; the file holds none or another one, a DeepLabv3
            head with tensors missing, a tensor of another shape, or values that are not finite.
    """
    prefix = "" if target is None else find_backbone(target)
    if prefix is None:
        raise InputError(
            f"{source}: cannot be loaded: the model has no ResNet with BatchNorm and no ConvNeXt"
        )
    state = reshape_layer_scales(state)
    names = canonical_names(state, source)
    if target is None:
        target = _nearest_network({name: tuple(state[old].shape) for name, old in names.items()})
    backbone = [
        name
        for name in target
        if name.startswith(prefix) and is_of_backbone(name.removeprefix(prefix))
    ]
    _require_same(
        f"{source}: its backbone",
        expected={name.removeprefix(prefix) for name in backbone},
        found={*filter(is_of_backbone, names)},
    )
    if _ASPP in names:
        _require_same(
            f"{source}: its DeepLabv3 head",
            expected={*deeplab_shapes(1)} - {*deeplab_shapes()},
            found={name for name in names if name.startswith("sem_seg_head.")},
        )

    used: dict[str, str] = {}
    skipped = {name: "not tensors" for name, value in state.items() if not torch.is_tensor(value)}
    for name, old in names.items():
        new = prefix + name if is_of_backbone(name) else name
        if new not in target:
            skipped[old] = _why_skipped(name)
            continue
        here, there = tuple(state[old].shape), tuple(target[new])
        if here != there and new.startswith(tuple(may_differ)):
            skipped[old] = f"of {_part(new)}: {here} here, {there} in the model"
        elif here != there:
            raise InputError(
                f"{source}: weights of another model: {old} is {here} in the file, {new} is "
                f"{there} in the model"
            )
        else:
            used[new] = old
    check_values(
        {old: state[old] for old in used.values()},
        source,
        integers=[old for old in used.values() if old.endswith(_COUNTER)],
    )
    report = ConversionReport(
        source=source,
        used=used,
        skipped=skipped,
        missing=tuple(n for n in target if n not in used and not n.endswith(_COUNTER)),
        backbone=tuple(name for name in backbone if not name.endswith(_COUNTER)),
    )
    return {new: state[old] for new, old in used.items()}, report


def is_of_backbone(name: str) -> bool:
    """Whether a name of :func:`canonical_names` is one of a backbone's tensors."""
    return bool(_BACKBONE.match(name))


def _nearest_network(shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """Get torchvision's network that a file is to be compared with, by its depth and width."""
    # A tensor without dimensions is refused later, by its shape.
    if _BLOCK in shapes:
        deep = any(re.match(r"res4\.(9|\d\d)\.", name) for name in shapes)
        width = max([0, *shapes.get(_STEM, ())[:1]])
        return convnext_shapes({128: "base", 192: "large"}.get(width, "small" if deep else "tiny"))
    deep = any(re.match(r"res4\.([6-9]|\d\d)\.", name) for name in shapes)
    classes = max([1, *shapes[_PREDICTOR][:1]]) if _PREDICTOR in shapes else None
    return deeplab_shapes(classes, depth=101 if deep else 50)


def canonical_names(state: Mapping[str, Any], source: str) -> dict[str, str]:
    """Map the model's names of a backbone and the heads beside it to the names in a file.

    Args:
        state: the file's tensors by name, as :func:`translate` takes them.
        source: the file, for messages.

    Returns:
        ``stem.*``, ``res2.*``, ``sem_seg_head.*``, without a prefix -> the name in the file; and
        FPN, RPN and heads of a detector (:mod:`.detector_names`). Other tensors keep their names.

    Raises:
        InputError: the file holds no backbone, or several.
    """
    tensors = [name for name, value in state.items() if torch.is_tensor(value)]
    prefixes = _prefixes(tensors)
    if len(prefixes) != 1:
        raise InputError(
            f"{source}: holds {len(prefixes) or 'no'} ResNets or ConvNeXts ({len(tensors)} "
            f"tensors, such as {', '.join(tensors[:3])}); expected one"
        )
    (prefix,) = prefixes
    # What torchvision and Detectron2 put between the network's own prefix and the ResNet.
    of_detector = prefix.endswith(_DETECTOR)
    outer = prefix.removesuffix(_DETECTOR).removesuffix("bottom_up.").removesuffix("backbone.")
    is_convnext = any(match[2] for match in map(_FIRST_BLOCK.fullmatch, tensors) if match)
    backbone_rules = _CONVNEXT_RULES if is_convnext else _BACKBONE_RULES
    # Some of Detectron2's names of heads are torchvision's of other layers.
    rules: Sequence[Rule] = TORCHVISION_RULES if of_detector else (*_HEAD_RULES, *MMDETECTION_RULES)
    if is_convnext:
        # torchvision's classifier has some of a DeepLabv3's names.
        rules = ()
    names = {}
    for old in tensors:
        new = _rename(old.removeprefix(prefix), backbone_rules) if old.startswith(prefix) else ""
        if not is_of_backbone(new):
            new = _rename(old.removeprefix(outer), rules)
        names[new] = old
    if not any(f"{_RPN_CONV}conv1." in name for name in names):
        # The only one has no number in Detectron2.
        names = {name.replace(f"{_RPN_CONV}conv0.", _RPN_CONV): old for name, old in names.items()}
    return names


def _prefixes(names: Iterable[str]) -> set[str]:
    """Get the prefix of every backbone among the names."""
    return {match[1] for match in map(_FIRST_BLOCK.fullmatch, names) if match}


def _rename(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _require_same(subject: str, expected: set[str], found: set[str]) -> None:
    """Raise unless exactly the expected tensors are there, BatchNorm's counters apart."""
    expected = {name for name in expected if not name.endswith(_COUNTER)}
    found = {name for name in found if not name.endswith(_COUNTER)}
    different = [
        f"{problem} {len(names)}, such as {min(names)}"
        for names, problem in ((expected - found, "lacks"), (found - expected, "adds"))
        if names
    ]
    if different:
        raise InputError(
            f"{subject} is not the expected one of {len(expected)} tensors: it "
            f"{', and it '.join(different)}"
        )


def _why_skipped(name: str) -> str:
    if name.endswith(_COUNTER):
        return "BatchNorm's counters, which this model does not keep"
    if name.startswith("aux_classifier."):
        return "of the auxiliary classifier, which serves torchvision's training only"
    return f"of {_part(name)}, which this model does not have"


def _part(name: str) -> str:
    """``roi_heads.box_head.fc1.weight`` -> ``roi_heads.box_head``."""
    parts = name.split(".")[:-1]
    return re.sub(r"\d+$", "*", ".".join(parts[:2])) if len(parts) > 1 else (parts or [name])[0]
