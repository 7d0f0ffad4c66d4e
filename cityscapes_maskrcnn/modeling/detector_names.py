"""Names of a Mask R-CNN's tensors in torchvision and MMDetection -> Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch

from cityscapes_maskrcnn.modeling.class_rows import class_layers

_FPN: Final = "backbone.fpn"
_RPN: Final = "proposal_generator.rpn_head"
_BOX, _MASK = "roi_heads.box_head", "roi_heads.mask_head"

# A pattern, and what replaces it: a text, or a function of the match.
Rule: TypeAlias = tuple[str, str | Callable[[re.Match[str]], str]]


def _renumbered(name: str, first: int, end: str = ".") -> Callable[[re.Match[str]], str]:
    """Replace a match by ``name``, a number and ``end``: the match's number 0 becomes ``first``."""
    return lambda match: f"{name}{int(match[1]) + first}{end}"


# torchvision's Faster and Mask R-CNN, the first and second version of each, but for the ResNet.
# Layers are Sequentials of a convolution (0) and BatchNorm (1), whose 0 older files do not name.
TORCHVISION_RULES: Final[Sequence[Rule]] = (
    (r"^backbone\.fpn\.inner_blocks\.([0-3])\.(0\.)?(?!1\.)", _renumbered(f"{_FPN}_lateral", 2)),
    (r"^backbone\.fpn\.inner_blocks\.([0-3])\.1\.", _renumbered(f"{_FPN}_lateral", 2, ".norm.")),
    (r"^backbone\.fpn\.layer_blocks\.([0-3])\.(0\.)?(?!1\.)", _renumbered(f"{_FPN}_output", 2)),
    (r"^backbone\.fpn\.layer_blocks\.([0-3])\.1\.", _renumbered(f"{_FPN}_output", 2, ".norm.")),
    # Only one convolution: Detectron2 numbers several.
    (r"^rpn\.head\.conv\.(\d)\.0\.", rf"{_RPN}.conv.conv\1."),
    (r"^rpn\.head\.conv\.", f"{_RPN}.conv."),
    (r"^rpn\.head\.cls_logits\.", f"{_RPN}.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", f"{_RPN}.anchor_deltas."),
    (r"^roi_heads\.box_head\.fc6\.", f"{_BOX}.fc1."),
    (r"^roi_heads\.box_head\.fc7\.", f"{_BOX}.fc2."),
    (r"^roi_heads\.box_head\.([0-3])\.0\.", _renumbered(f"{_BOX}.conv", 1)),
    (r"^roi_heads\.box_head\.([0-3])\.1\.", _renumbered(f"{_BOX}.conv", 1, ".norm.")),
    # Number 4 flattens.
    (r"^roi_heads\.box_head\.5\.", f"{_BOX}.fc1."),
    (r"^roi_heads\.mask_head\.([0-3])\.0\.", _renumbered(f"{_MASK}.mask_fcn", 1)),
    (r"^roi_heads\.mask_head\.([0-3])\.1\.", _renumbered(f"{_MASK}.mask_fcn", 1, ".norm.")),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", f"{_MASK}.deconv."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", f"{_MASK}.predictor."),
)
# MMDetection 2 and 3; a convolution with normalisation is .conv and .bn (or .gn) there.
MMDETECTION_RULES: Final[Sequence[Rule]] = (
    (r"^((?:neck|rpn_head|roi_head)\..+)\.conv\.(?=weight|bias)", r"\1."),
    (r"^((?:neck|rpn_head|roi_head)\..+)\.(?:bn|gn)\.", r"\1.norm."),
    (r"^neck\.lateral_convs\.([0-3])\.", _renumbered(f"{_FPN}_lateral", 2)),
    (r"^neck\.fpn_convs\.([0-3])\.", _renumbered(f"{_FPN}_output", 2)),
    (r"^rpn_head\.rpn_conv\.(\d)\.", rf"{_RPN}.conv.conv\1."),
    (r"^rpn_head\.rpn_conv\.", f"{_RPN}.conv."),
    (r"^rpn_head\.rpn_cls\.", f"{_RPN}.objectness_logits."),
    (r"^rpn_head\.rpn_reg\.", f"{_RPN}.anchor_deltas."),
    (r"^roi_head\.bbox_head\.shared_convs\.([0-3])\.", _renumbered(f"{_BOX}.conv", 1)),
    (r"^roi_head\.bbox_head\.shared_fcs\.([01])\.", _renumbered(f"{_BOX}.fc", 1)),
    (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"^roi_head\.mask_head\.convs\.([0-3])\.", _renumbered(f"{_MASK}.mask_fcn", 1)),
    (r"^roi_head\.mask_head\.upsample\.", f"{_MASK}.deconv."),
    (r"^roi_head\.mask_head\.conv_logits\.", f"{_MASK}.predictor."),
)

# Where torchvision's detectors have their ResNet.
_DETECTOR: Final = re.compile(r"(?:.*\.)?backbone\.body\.layer1\.0\.conv1\.weight")
# The one file whose frozen BatchNorm adds nothing to the variances: torchvision's own loader too
# treats it apart from all others.
_WITHOUT_EPS: Final = re.compile(
    r"torchvision://maskrcnn_resnet50_fpn|.*\bmaskrcnn_resnet50_fpn_coco-bf2d0c1e\.pth"
)
_EPS: Final = 1e-5


def from_torchvision(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rearrange a detector of torchvision as Detectron2 has its values; other files stay.

    The background is torchvision's first class and Detectron2's last; it has boxes and masks of its
    own there, which no prediction uses.

    Args:
        state: the file's tensors by name.
        source: the file, as ``MODEL.WEIGHTS`` names it.

    Returns:
        All tensors, under the names in the file.
    """
    result = dict(state)
    if not any(map(_DETECTOR.fullmatch, state)):
        return result
    for name, _, values, has_background in class_layers(state):
        rows = state[name]
        result[name] = torch.cat([rows[1:], rows[:1]]) if has_background else rows[values:]
    if _WITHOUT_EPS.fullmatch(source):
        for name, variance in state.items():
            weight = name.replace("running_var", "weight")
            if weight != name and weight in state and variance.shape == state[weight].shape:
                # weight / sqrt(variance), by a layer that adds _EPS to the variance.
                scale = (1 + _EPS / variance.double().clamp(min=1e-30)).sqrt()
                result[weight] = (state[weight] * scale).to(state[weight].dtype)
    return result
