"""torchvision's names of a DeepLabv3's tensors -> Detectron2's, with an account of every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cityscapes_maskrcnn.utils.errors import InputError

Shape = tuple[int, ...]

_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"
_BLOCKS = (3, 4, 6, 3)

# The first block of a ResNet, by torchvision's name or Detectron2's; what stands before it is the
# prefix of the whole backbone.
_FIRST_BLOCK = re.compile(r"((?:.*\.)?)(layer1|res2)\.0\.conv1\.weight")
_BACKBONE_FOLDERS = ("backbone.bottom_up.", "bottom_up.", "backbone.body.", "backbone.")

_HEAD = "sem_seg_head."
_HEAD_RULES = (
    (r"classifier\.0\.convs\.([0-3])\.0\.", r"sem_seg_head.aspp.convs.\1."),
    (r"classifier\.0\.convs\.([0-3])\.1\.", r"sem_seg_head.aspp.convs.\1.norm."),
    # Number 0 of the pooling branch is the pooling.
    (r"classifier\.0\.convs\.4\.1\.", "sem_seg_head.aspp.convs.4."),
    (r"classifier\.0\.convs\.4\.2\.", "sem_seg_head.aspp.convs.4.norm."),
    (r"classifier\.0\.project\.0\.", "sem_seg_head.aspp.project."),
    (r"classifier\.0\.project\.1\.", "sem_seg_head.aspp.project.norm."),
    (r"classifier\.1\.", "sem_seg_head.conv."),
    (r"classifier\.2\.", "sem_seg_head.conv.norm."),
    (r"classifier\.4\.", "sem_seg_head.predictor."),
)
_PREDICTOR = "sem_seg_head.predictor.weight"
_ASPP = "sem_seg_head.aspp.convs.0.weight"

_EXPECTED = (
    "expected the weights of torchvision's deeplabv3_resnet50, whose ResNet-50 has 265 tensors "
    "(53 convolutions and 53 x 4 of BatchNorm)"
)


# How image classifiers name their last layer: torchvision, Detectron2's zoo, timm, Detectron2.
_CLASSIFIERS = ("fc.weight", "stem.fc.weight", "head.fc.weight", "linear.weight")
_IMAGENET = (
    "; to start from ImageNet all the same, set MODEL.WEIGHTS to "
    "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
)


@dataclass(frozen=True)
class Account:
    """What became of every tensor of a file, and of every tensor of the model.

    Attributes:
        source: the file.
        kind: what the file holds, in words.
        used: name in the model -> name in the file.
        left: name in the file -> why it is not used.
        missing: names in the model that start anew. BatchNorm's counters are not counted: with a
            momentum BatchNorm does not use them.
        backbone: names in the model of the ResNet's tensors, 265 for a ResNet-50. All are used.
    """

    source: str
    kind: str
    used: dict[str, str]
    left: dict[str, str]
    missing: tuple[str, ...]
    backbone: tuple[str, ...]

    def summary(self) -> str:
        """Make a text of a few lines: how many tensors of which part were used or left, and why."""
        backbone = {*self.backbone}
        used = Counter("the backbone" if name in backbone else _part(name) for name in self.used)
        lines = [f"{self.source}: {self.kind}"]
        lines += [f"  used    {count:4}  of {part}" for part, count in used.items()]
        lines += [
            f"  left    {count:4}  {reason}"
            for reason, count in Counter(self.left.values()).items()
        ]
        lines += [
            f"  missing {count:4}  of {part}: start anew"
            for part, count in Counter(map(_part, self.missing)).items()
        ]
        return "\n".join(lines)

    def listing(self) -> str:
        """Make a text of one line per tensor."""
        lines = [f"used     {old} -> {new}" for new, old in self.used.items()]
        lines += [f"left     {name}: {reason}" for name, reason in self.left.items()]
        lines += [f"missing  {name}" for name in self.missing]
        return "\n".join(lines)


def resnet50_shapes() -> dict[str, Shape]:
    """Get the 265 backbone tensors, named as in Detectron2's ResNet, with their shapes."""
    shapes: dict[str, Shape] = {}
    _add_conv(shapes, "stem.conv1", (64, 3, 7, 7))
    channels = 64
    for stage, blocks in enumerate(_BLOCKS):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"res{stage + 2}.{block}"
            if block == 0:
                _add_conv(shapes, f"{name}.shortcut", (4 * width, channels, 1, 1))
            _add_conv(shapes, f"{name}.conv1", (width, channels, 1, 1))
            _add_conv(shapes, f"{name}.conv2", (width, width, 3, 3))
            _add_conv(shapes, f"{name}.conv3", (4 * width, width, 1, 1))
            channels = 4 * width
    return shapes


def backbone_shapes(state: Mapping[str, Any], source: str) -> dict[str, Shape]:
    """Get the 265 backbone tensors with the shapes they have in a file, which may be narrower.

    Args:
        state: the file's tensors by name, as :func:`translate` takes them.
        source: the file, for messages.

    Returns:
        As :func:`resnet50_shapes`; tensors that the file lacks have torchvision's shapes.

    Raises:
        InputError: the file holds no ResNet.
    """
    names, _ = _canonical_names(state, source)
    return {
        name: tuple(state[names[name]].shape) if name in names else shape
        for name, shape in resnet50_shapes().items()
    }


def head_shapes(num_classes: int) -> dict[str, Shape]:
    """Get the 37 tensors of DeepLabv3's head, as :mod:`.semantic_head` names them."""
    shapes: dict[str, Shape] = {}
    for branch, kernel in enumerate((1, 3, 3, 3, 1)):
        _add_conv(shapes, f"sem_seg_head.aspp.convs.{branch}", (256, 2048, kernel, kernel))
    _add_conv(shapes, "sem_seg_head.aspp.project", (256, 5 * 256, 1, 1))
    _add_conv(shapes, "sem_seg_head.conv", (256, 256, 3, 3))
    shapes[_PREDICTOR] = (num_classes, 256, 1, 1)
    shapes["sem_seg_head.predictor.bias"] = (num_classes,)
    return shapes


def find_resnet(names: Iterable[str]) -> str | None:
    """Find the ResNet in a Detectron2 model.

    Args:
        names: of the model's tensors.

    Returns:
        The prefix of its tensors, such as ``"backbone.bottom_up."``; None when the model has no
        ResNet of at least the 265 tensors of a ResNet-50, or one without BatchNorm.
    """
    names = {*names}
    for prefix in sorted(_prefixes(names)):
        if names.issuperset(prefix + name for name in resnet50_shapes()):
            return prefix
    return None


def translate(
    state: Mapping[str, Any],
    source: str,
    target: Mapping[str, Shape] | None = None,
    may_differ: Sequence[str] = (),
) -> tuple[dict[str, Tensor], Account]:
    """Give the tensors of a file the names that a Detectron2 model has for them.

    Args:
        state: the file's tensors by name: torchvision's names or Detectron2's, under any prefix
            (``module.``, ``net.module.``); a whole network or its backbone.
        source: the file, for messages.
        target: names and shapes of the model's tensors, among them a ResNet
            (:func:`find_resnet`). None: deeplabv3_resnet50 itself, its backbone without a prefix,
            as Detectron2's zoo names backbones, and its head under ``sem_seg_head.``.
        may_differ: prefixes of names in the model whose shapes may differ: these start anew.

    Returns:
        The tensors by their names in the model, not copied, and the account.

    Raises:
        InputError: the file holds no ResNet or another one than the model, not all of it, another
            kind of network, a tensor of another shape or with values that are not finite. The
            message says what the file holds and what was expected.
    """
    prefix = "" if target is None else find_resnet(target)
    if prefix is None:
        raise InputError(f"{source}: cannot be loaded: the model has no ResNet with BatchNorm")
    names, from_torchvision = _canonical_names(state, source)
    shapes = {new: tuple(state[old].shape) for new, old in names.items()}
    if target is None:
        head = head_shapes(shapes.get(_PREDICTOR, (0,))[0]) if _ASPP in shapes else {}
        target = {**resnet50_shapes(), **head}
    backbone = {
        name.removeprefix(prefix): shape
        for name, shape in target.items()
        if name.startswith(prefix) and _is_backbone(name.removeprefix(prefix))
    }
    kind = _describe(shapes, from_torchvision, backbone, source)
    _require_all(f"{source}: {kind}", "backbone", backbone, filter(_is_backbone, shapes))
    if _ASPP in shapes:
        found = [name for name in shapes if name.startswith(_HEAD)]
        _require_all(f"{source}: {kind}", "head", head_shapes(1), found)

    tensors: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    left = {name: "not tensors" for name, value in state.items() if not torch.is_tensor(value)}
    for name, old in names.items():
        new = prefix + name if _is_backbone(name) else name
        if new not in target or (
            name.startswith(_HEAD) and _ASPP in shapes and _ASPP not in target
        ):
            left[old] = _why_left(name)
            continue
        if shapes[name] != tuple(target[new]):
            if new.startswith(tuple(may_differ) or "\0"):
                left[old] = (
                    f"of {_part(new)}: {shapes[name]} here, {tuple(target[new])} in the model"
                )
                continue
            raise InputError(
                f"{source}: weights of another model: {old} is {shapes[name]} in the file, {new} "
                f"is {tuple(target[new])} in the model"
            )
        if not torch.isfinite(state[old]).all():
            raise InputError(f"{source}: {old} holds values that are not finite")
        tensors[new], used[new] = state[old], old
    missing = tuple(name for name in target if name not in used and not name.endswith(_COUNTER))
    names_in_model = tuple(prefix + name for name in backbone if not name.endswith(_COUNTER))
    return tensors, Account(source, kind, used, left, missing, names_in_model)


def _add_conv(shapes: dict[str, Shape], name: str, shape: Shape) -> None:
    """Add a convolution without bias and its BatchNorm."""
    shapes[f"{name}.weight"] = shape
    shapes.update({f"{name}.norm.{each}": shape[:1] for each in _NORM})


def _is_backbone(name: str) -> bool:
    """Whether a canonical name is of the ResNet."""
    return re.match(r"(stem|res[2-5])\.(?!fc\.)", name) is not None


def _prefixes(names: Iterable[str]) -> dict[str, bool]:
    """Get the prefix of every ResNet among the names, and whether torchvision named it."""
    found = [match for match in map(_FIRST_BLOCK.fullmatch, names) if match]
    return {match[1]: match[2] == "layer1" for match in found}


def _canonical_names(state: Mapping[str, Any], source: str) -> tuple[dict[str, str], bool]:
    """Map canonical names to those in the file: ``stem.``, ``res2.``, ``sem_seg_head.``, others.

    Returns:
        The map, for all tensors, and whether the file's names are torchvision's.
    """
    tensors = [name for name, value in state.items() if torch.is_tensor(value)]
    prefixes = _prefixes(tensors)
    if len(prefixes) != 1:
        if prefixes:
            what = f"several ResNets, named {' and '.join(sorted(prefixes))}; leave one of them"
        elif any(re.search(r"backbone\.0\.0\.weight$", name) for name in tensors):
            what = "a network on a MobileNet"
        else:
            examples = ", ".join(f"{name} {tuple(state[name].shape)}" for name in tensors[:3])
            what = f"{len(tensors)} tensors without a ResNet among them, such as {examples}"
        raise InputError(f"{source}: {what}; {_EXPECTED}")
    prefix, from_torchvision = next(iter(prefixes.items()))
    folder = next((each for each in _BACKBONE_FOLDERS if prefix.endswith(each)), "")
    outer = prefix.removesuffix(folder)
    names: dict[str, str] = {}
    for old in tensors:
        new = _backbone_name(old.removeprefix(prefix)) if old.startswith(prefix) else ""
        if not _is_backbone(new):
            new = _head_name(old.removeprefix(outer))
        if new in names:
            raise InputError(f"{source}: {names[new]} and {old} are the same tensor of the network")
        names[new] = old
    return names, from_torchvision


def _backbone_name(name: str) -> str:
    """``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``; Detectron2's own names stay."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer([1-4])\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    return re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)


def _head_name(name: str) -> str:
    """``classifier.4.bias`` -> ``sem_seg_head.predictor.bias``; other names stay."""
    for pattern, replacement in _HEAD_RULES:
        name, replaced = re.subn(f"^{pattern}", replacement, name)
        if replaced:
            break
    return name


def _describe(
    shapes: Mapping[str, Shape],
    from_torchvision: bool,
    backbone: Mapping[str, Shape],
    source: str,
) -> str:
    """Say what network has tensors of these canonical names; raise if it does not fit."""
    resnet = _describe_resnet(shapes)
    wanted = _describe_resnet(backbone)
    fits = resnet == wanted
    hint = ""
    starts = {name.partition(".")[0] for name in shapes if not _is_backbone(name)}
    classes = next((shapes[name][0] for name in _CLASSIFIERS if name in shapes), None)
    if _ASPP in shapes:
        kind = f"DeepLabv3 with {resnet}, {shapes.get(_PREDICTOR, '?')[0]} classes"
    elif classes is not None:
        kind = f"an image classifier, {resnet} with {classes} classes"
        hint = _IMAGENET if resnet == "a ResNet-50" else ""
        fits = False
    elif from_torchvision and "roi_heads" in starts:
        kind, fits = f"torchvision's detection model on {resnet}", False
    elif from_torchvision and "classifier" in starts:
        kind, fits = f"a semantic model on {resnet}, with another head than DeepLabv3's", False
    else:
        kind = f"a model on {resnet}" if starts else f"{resnet} backbone"
    if not fits:
        model = "" if wanted == "a ResNet-50" else f"; the model has {wanted}"
        raise InputError(f"{source}: {kind}; {_EXPECTED}{model}{hint}")
    return kind


def _describe_resnet(shapes: Mapping[str, Shape]) -> str:
    """Tell a ResNet's depth, width and stem, with an article."""
    blocks: tuple[int, ...] = tuple(
        len({name.split(".")[1] for name in shapes if name.startswith(f"res{stage}.")})
        for stage in (2, 3, 4, 5)
    )
    conv1, conv2 = shapes["res2.0.conv1.weight"], shapes.get("res2.0.conv2.weight", (0, 0))
    depths: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "34"}
    if "res2.0.conv3.weight" in shapes:
        depths = {(3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}
    depth = depths.get(blocks)
    if len(conv2) > 1 and conv1[0] != conv2[1]:
        family = "a ResNeXt"
    else:
        family = "a wide ResNet" if conv1[0] == 128 else "a ResNet"
    known = resnet50_shapes()
    stem = [name for name in shapes if name.startswith("stem.") and not name.endswith(_COUNTER)]
    deep = " with a deep stem" if any(name not in known for name in stem) else ""
    return f"{family}-{depth or '?'}{deep}" + ("" if depth else f" of {blocks} blocks")


def _require_all(subject: str, part: str, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise unless exactly the expected tensors are there, BatchNorm's counters apart."""
    wanted = [name for name in expected if not name.endswith(_COUNTER)]
    there = [name for name in found if not name.endswith(_COUNTER)]
    absent = [name for name in wanted if name not in {*there}]
    extra = [name for name in there if name not in {*wanted}]
    for names, problem in ((absent, "are missing"), (extra, "too many are there")):
        if names:
            raise InputError(
                f"{subject}, but of the {len(wanted)} tensors of its {part} {len(names)} {problem}"
                f", such as {names[0]}; {_EXPECTED}"
            )


def _why_left(name: str) -> str:
    if name.endswith(_COUNTER):
        return "BatchNorm's counters, which this model does not keep"
    if name.startswith("aux_classifier."):
        return "of the auxiliary classifier, which serves torchvision's training only"
    return f"of {_part(name)}, which this model does not have"


def _part(name: str) -> str:
    """``roi_heads.box_head.fc1.weight`` -> ``roi_heads.box_head``."""
    parts = name.split(".")[:-1]
    return re.sub(r"\d+$", "*", ".".join(parts[:2])) if len(parts) > 1 else (parts or [name])[0]
