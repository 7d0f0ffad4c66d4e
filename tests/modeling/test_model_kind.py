from __future__ import annotations

from typing import Any

import pytest

from cityscapes_maskrcnn.modeling.model_kind import model_kind


def config(architecture: str, backbone: str, *, masks: bool = True) -> dict[str, Any]:
    return {
        "MODEL": {
            "META_ARCHITECTURE": architecture,
            "MASK_ON": masks,
            "BACKBONE": {"NAME": backbone},
            "RESNETS": {"DEPTH": 101},
            "SEM_SEG_HEAD": {"NAME": "TorchvisionDeepLabV3Head"},
        }
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (config("GeneralizedRCNN", "build_resnet_fpn_backbone"), "Mask R-CNN ResNet-101"),
        (
            config("GeneralizedRCNN", "build_resnet_fpn_backbone", masks=False),
            "Faster R-CNN ResNet-101",
        ),
        (config("SemanticSegmentor", "build_dilated_resnet_backbone"), "DeepLabv3 ResNet-101"),
        (config("RetinaNet", "build_convnext_backbone"), "RetinaNet convnext"),
    ],
)
def test_architecture_and_backbone(content: dict[str, Any], expected: str) -> None:
    assert model_kind(content) == expected


def test_what_is_no_config() -> None:
    with pytest.raises(KeyError):
        model_kind({})
