"""What weights require of a config: how images are normalised, and where the ResNet strides."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Final

from cityscapes_maskrcnn.engine.checkpoint_origin import config_in
from cityscapes_maskrcnn.modeling.timm_names import has_timm_names
from cityscapes_maskrcnn.modeling.weight_files import TIMM_SCHEME, TORCHVISION_SCHEME
from cityscapes_maskrcnn.utils.config_keys import value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable

_FORMAT: Final = "INPUT.FORMAT"
_STRIDE: Final = "MODEL.RESNETS.STRIDE_IN_1X1"
_NORM: Final = "MODEL.RESNETS.NORM"
_WIDTHS: Final = "MODEL.PRUNED_WIDTHS"
_KEYS: Final = (_FORMAT, "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", _STRIDE, _NORM, _WIDTHS)
# Kinds of BatchNorm, whose tensors are the same.
_BATCH_NORMS: Final = ("BN", "FrozenBN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

# The files of torchvision, and what Detectron2's zoo made of them.
_TORCHVISION: Final = {
    _FORMAT: "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    _STRIDE: False,
    _NORM: "BN",
}
_TORCHVISION_FILE: Final = re.compile(r"\w*(?:resnet\d+|convnext_)\w*-[0-9a-f]{8}\.pth")
# timm's ConvNeXts take the same images, but for those with a tag that begins with clip_.
_CLIP: Final = {
    _FORMAT: "RGB",
    "MODEL.PIXEL_MEAN": [122.771, 116.746, 104.094],
    "MODEL.PIXEL_STD": [68.501, 66.632, 70.323],
}
_TIMM_FILE: Final = re.compile(r"convnext_[a-z]+\.\w+\.safetensors")
# What :func:`author_of` says.
_BY_AUTHOR: Final[Mapping[str, dict[str, Any]]] = {
    "torchvision": _TORCHVISION,
    "timm": _TORCHVISION,
    "timm, CLIP": _CLIP,
}
# The ResNets of ImageNet that Detectron2's models began with, but for those of other training code.
_MSRA: Final = {
    _FORMAT: "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    _STRIDE: True,
    _NORM: "BN",
}
_FAIR: Final = {**_MSRA, "MODEL.PIXEL_STD": [57.375, 57.12, 58.395], _STRIDE: False}
# Parts of addresses; Detectron2's project PointRend has weights of its own.
_BY_ADDRESS: Final = {
    "ImageNetPretrained/torchvision/": _TORCHVISION,
    "ImageNetPretrained/MSRA/": _MSRA,
    "ImageNetPretrained/FAIR/X-101-32x8d": _FAIR,
    "PointRend/InstanceSegmentation/pointrend_rcnn_R_": _MSRA,
    "PointRend/InstanceSegmentation/pointrend_rcnn_X_101_32x8d": _FAIR,
}


def conventions_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Get what a config says of images and ResNet; see :func:`check_conventions`.

    Args:
        cfg: a config of Detectron2's keys, or a part of one.

    Returns:
        Values of ``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` and, of a ResNet,
        ``MODEL.RESNETS.STRIDE_IN_1X1`` and ``NORM``, and ``MODEL.PRUNED_WIDTHS``: of those keys
        that it has.
    """
    found = {key: value_at(cfg, key) for key in _KEYS}
    if "resnet" not in str(value_at(cfg, "MODEL.BACKBONE.NAME")):
        found = {key: value for key, value in found.items() if "RESNETS" not in key}
    return {key: value for key, value in found.items() if value is not None}


def check_conventions(path: str, content: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Verify that weights get the images, and are in the ResNet, that they were trained with.

    Nothing else shows it: their shapes are the same, and the loss falls with swapped colours too.

    Args:
        path: what ``MODEL.WEIGHTS`` names.
        content: of the file.
        ours: :func:`conventions_of` the config.

    Raises:
        InputError: a file whose conventions are known (torchvision's, timm's, those of Detectron2's
            zoo, MMDetection's and this project's checkpoints) has others than the config.
    """
    theirs = _conventions_of_file(path, content)
    different = [key for key in theirs if key in ours and not _same(theirs[key], ours[key])]
    if _WIDTHS in different:
        state = "is a pruned checkpoint" if theirs[_WIDTHS] else "was not pruned"
        raise InputError(
            f"{path}: {state}, and the config has other {_WIDTHS}; take the config.yaml that was"
            " written beside the checkpoint"
        )
    if different:
        pairs = (f"{key} {printable(theirs[key], 100)}, not {ours[key]}" for key in different)
        raise InputError(
            f"{path}: was trained with {'; '.join(pairs)}; set what it was trained with, or name "
            "other weights"
        )


def author_of(path: str) -> str | None:
    """Find out whose own weights these are, by their name or that of the file.

    Args:
        path: what ``MODEL.WEIGHTS`` names.

    Returns:
        ``"torchvision"``, ``"timm"`` or, where the images are CLIP's, ``"timm, CLIP"``; None: it is
        not known.
    """
    name = PurePosixPath(path.partition("?")[0]).name
    if path.startswith(TORCHVISION_SCHEME) or _TORCHVISION_FILE.fullmatch(name):
        return "torchvision"
    if path.startswith(TIMM_SCHEME) or _TIMM_FILE.fullmatch(name):
        return "timm, CLIP" if ".clip_" in name else "timm"
    return None


def _conventions_of_file(path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Find out what weights were trained with; empty: it is not known."""
    if config := config_in(content):
        return conventions_of(config)
    meta = content.get("meta")
    if isinstance(meta, Mapping):
        # MMDetection 3 and 2.
        return _conventions_of_mmdetection(str(meta.get("cfg", meta.get("config"))))
    author = author_of(path) or content.get("__author__")
    if isinstance(author, str) and author in _BY_AUTHOR:
        return _BY_AUTHOR[author]
    file = PurePosixPath(path.partition("?")[0])
    for part, conventions in _BY_ADDRESS.items():
        if part in path:
            return conventions
    # Caffe2's names of tensors: one of the zoo's files of ImageNet, perhaps renamed.
    if "res2_0_branch2a_w" in content["model"]:
        return {_FORMAT: _MSRA[_FORMAT]}
    if has_timm_names(content["model"]):
        return {_FORMAT: _TORCHVISION[_FORMAT]}
    return _conventions_of_zoo(file.name) if file.suffix == ".pkl" else {}


def _conventions_of_mmdetection(config: str) -> dict[str, Any]:
    """Find in a config, which is Python's source, how its first lines of the kind have it."""
    found: dict[str, Any] = {}
    if match := re.search(r"\b(?:bgr_)?to_rgb=(True|False)", config):
        found[_FORMAT] = "RGB" if match[1] == "True" else "BGR"
    if match := re.search(r"\bstd=\[([\d., ]+)\]", config):
        with suppress(ValueError):
            found["MODEL.PIXEL_STD"] = [float(each) for each in match[1].split(",")]
    if match := re.search(r"\bstyle='(caffe|pytorch)'", config):
        found[_STRIDE] = match[1] == "caffe"
    return found


def _conventions_of_zoo(filename: str) -> dict[str, Any]:
    """Look up a detector of Detectron2's model zoo, by the unique names of its files."""
    # Imported here: few need it, and it warns of pkg_resources, which setup.py sees to.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from detectron2 import model_zoo
        from detectron2.model_zoo.model_zoo import _ModelZooUrls

    for config, suffix in _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX.items():
        if PurePosixPath(suffix).name != filename:
            continue
        if config.startswith("new_baselines/"):
            # Not in yaml. Their ResNets keep Detectron2's defaults, and train from scratch.
            return _MSRA if "mask_rcnn_R_" in config else {}
        return conventions_of(model_zoo.get_config(f"{config}.yaml"))
    return {}


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        # The same means are written as 123.675 and 123.68.
        return len(theirs) == len(ours) and all(
            isinstance(a, (int, float)) and (a == b or 0.99 * b < a < 1.01 * b)
            for a, b in zip(theirs, ours, strict=True)
        )
    return bool(theirs == ours or (theirs in _BATCH_NORMS and ours in _BATCH_NORMS))
