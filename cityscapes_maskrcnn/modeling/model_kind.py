"""The name of a model as shown in titles and captions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def model_kind(config: Mapping[str, Any]) -> str:
    """Name the architecture and backbone of a config, such as ``Mask R-CNN ResNet-50``.

    Args:
        config: a config, or what its file holds.

    Raises:
        KeyError, TypeError, AttributeError: it is no config of a model.
    """
    model = config["MODEL"]
    architecture = model["META_ARCHITECTURE"]
    if architecture == "GeneralizedRCNN":
        architecture = "Mask R-CNN" if model["MASK_ON"] else "Faster R-CNN"
    elif architecture == "SemanticSegmentor" and "DeepLabV3" in model["SEM_SEG_HEAD"]["NAME"]:
        architecture = "DeepLabv3"
    backbone = model["BACKBONE"]["NAME"].removeprefix("build_").removesuffix("_backbone")
    if "resnet" in backbone:
        backbone = f"ResNet-{model['RESNETS']['DEPTH']}"
    return f"{architecture} {backbone}"


def known_model_kind(config: Any) -> str:
    """Name a config as :func:`model_kind` does; empty if it is damaged, or of another program."""
    with suppress(KeyError, TypeError, AttributeError):
        return model_kind(config)
    return ""
