"""How far each part of a backbone moved in training, relative to where it started."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

import torch
from tabulate import tabulate
from torch import Tensor

from cityscapes_maskrcnn.modeling.deeplab_weights import canonical_names, is_of_backbone
from cityscapes_maskrcnn.modeling.timm_names import reshape_layer_scales
from cityscapes_maskrcnn.utils.errors import InputError

GROUPS: Final = ("stem", "res2", "res3", "res4", "res5")
WHOLE: Final = "backbone"

# The normalisations of a ResNet and of a ConvNeXt.
_NORM: Final = re.compile(r"(\.norm|stem\.1|\.downsample\.0|\.block\.2)\.(weight|bias)$")


@dataclass(frozen=True)
class GroupDrift:
    """How far one group of layers moved.

    The last four are ``||end - start|| / ||start||``, the Euclidean norm running over all values of
    that kind in the group: 0.01 is 1 % of the length. Infinite where only the start is all zeros.

    Attributes:
        group: of :data:`GROUPS`, or :data:`WHOLE` for all of them together.
        num_parameters: how many values the optimizer may move.
        parameters: all of them.
        convolutions: those of convolutions and, in a ConvNeXt, of linear layers and layer scales.
        norms: weights and biases of BatchNorm or LayerNorm.
        statistics: BatchNorm running means and variances. These follow the images, not the
            gradient: they move even at a learning rate of 0. NaN where there are none.
    """

    group: str
    num_parameters: int
    parameters: float
    convolutions: float
    norms: float
    statistics: float


def measure_drift(start: Mapping[str, Any], end: Mapping[str, Any]) -> list[GroupDrift]:
    """Compare the backbones of two networks: ResNets of any depth and width, or ConvNeXts.

    Args:
        start: tensors by name: torchvision's names, timm's or Detectron2's, under any prefix, of a
            whole network or its backbone. Of a model that is still to be trained, a copy: its
            ``state_dict()`` would move along.
        end: the same; the names may be of the other kind.

    Returns:
        One entry for each of :data:`GROUPS`, and one for :data:`WHOLE`.

    Raises:
        InputError: one of the two holds no backbone or values that are not finite, or they have
            other layers.
    """
    before = _backbone(start, "start of the drift report")
    after = _backbone(end, "end of the drift report")
    # Squared lengths of the way and of the start of every tensor.
    squares: dict[str, tuple[float, float]] = {}
    if other := before.keys() ^ after.keys():
        raise InputError(
            f"end of the drift report: another backbone than at the start: {len(other)} tensors "
            f"are in one of them only, such as {min(other)}"
        )
    for name, first in before.items():
        last = after[name]
        if first.shape != last.shape:
            raise InputError(
                f"end of the drift report: {name} is {tuple(last.shape)}, but "
                f"{tuple(first.shape)} at the start"
            )
        squares[name] = float((last - first).square().sum()), float(first.square().sum())

    def relative(names: Sequence[str]) -> float:
        if not names:
            return math.nan
        moved, length = (sum(squares[name][index] for name in names) for index in (0, 1))
        if not moved:
            return 0.0
        return math.sqrt(moved / length) if length else math.inf

    result = []
    for group in (*GROUPS, WHOLE):
        names = [name for name in before if group in (name.partition(".")[0], WHOLE)]
        statistics = [name for name in names if ".running_" in name]
        norms = [name for name in names if _NORM.search(name)]
        convolutions = [name for name in names if name not in {*statistics, *norms}]
        result.append(
            GroupDrift(
                group=group,
                num_parameters=sum(before[name].numel() for name in (*convolutions, *norms)),
                parameters=relative([*convolutions, *norms]),
                convolutions=relative(convolutions),
                norms=relative(norms),
                statistics=relative(statistics),
            )
        )
    return result


def drift_to_csv(drift: Sequence[GroupDrift]) -> str:
    """Write the result of :func:`measure_drift` as CSV: a header, fractions in full precision."""
    rows = [[field.name for field in fields(GroupDrift)], *map(astuple, drift)]
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def format_drift(drift: Sequence[GroupDrift]) -> str:
    """Lay out the result of :func:`measure_drift` as a Markdown table in percent."""
    rows = [
        {
            "layers": row.group,
            "parameters": f"{row.num_parameters:,}",
            "moved by (%)": format_percent(row.parameters),
            "convolutions (%)": format_percent(row.convolutions),
            "norm weights (%)": format_percent(row.norms),
            "BatchNorm statistics (%)": format_percent(row.statistics),
        }
        for row in drift
    ]
    align = ("left", *["right"] * 5)
    return tabulate(rows, headers="keys", tablefmt="github", colalign=align, disable_numparse=True)


def format_percent(fraction: float) -> str:
    """Write a fraction as percent, without the sign: 0.00123 is "0.123", 12.5 is "1,250".

    NaN, which stands for nothing to be measured, is "-".
    """
    if math.isnan(fraction):
        return "-"
    percent = 100 * fraction
    return f"{percent:.3g}" if percent < 100 else f"{percent:,.0f}"


def _backbone(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Get a backbone in float64, by the model's names without a prefix."""
    tensors = {}
    state = reshape_layer_scales(state)
    for name, old in canonical_names(state, source).items():
        if not is_of_backbone(name) or name.endswith("num_batches_tracked"):
            continue
        tensors[name] = state[old].detach().to("cpu", torch.float64)
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{source}: {old} holds values that are not finite")
    return tensors
