"""timm's names and shapes of a ConvNeXt's tensors -> those of :mod:`.convnext`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from cityscapes_maskrcnn.modeling.detector_names import Rule

# The stem has the same names. Of another ConvNeXt, such as a V2 with its mlp.grn, names remain that
# the model does not have.
TIMM_RULES: Final[Sequence[Rule]] = (
    (r"^stages\.(\d)\.(?:blocks\.)?", lambda match: f"res{int(match[1]) + 2}."),
    (r"^(res\d\.\d+)\.conv_dw\.", r"\1.block.0."),
    # Numbers 1, 4 and 6 have no tensors.
    (r"^(res\d\.\d+)\.norm\.", r"\1.block.2."),
    (r"^(res\d\.\d+)\.mlp\.fc1\.", r"\1.block.3."),
    (r"^(res\d\.\d+)\.mlp\.fc2\.", r"\1.block.5."),
    (r"^(res\d\.\d+)\.gamma$", r"\1.layer_scale"),
)
_GAMMA: Final = re.compile(r"(?:.*\.)?stages\.\d\.blocks\.\d+\.gamma")


def reshape_layer_scales(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give the layer scales of timm's ConvNeXt, (C,), the model's shape, (C, 1, 1).

    Args:
        state: the tensors of any file by name; those of other files stay as they are.

    Returns:
        All of them under the names in the file, not copied.
    """
    return {
        name: value[:, None, None]
        if _GAMMA.fullmatch(name) and torch.is_tensor(value) and value.ndim == 1
        else value
        for name, value in state.items()
    }


def has_timm_names(state: Mapping[str, Any]) -> bool:
    """Whether a file holds a ConvNeXt under timm's names."""
    return any(map(_GAMMA.fullmatch, state))
