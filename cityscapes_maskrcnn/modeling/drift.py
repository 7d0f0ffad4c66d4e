"""How far each part of a ResNet-50 moved in training, relative to where it started."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

import torch
from tabulate import tabulate
from torch import Tensor

from cityscapes_maskrcnn.modeling.deeplab_weights import backbone_shapes, translate

GROUPS: Final = ("stem", "res2", "res3", "res4", "res5")
WHOLE: Final = "backbone"
_KINDS: Final = ("convolutions", "norms", "statistics")


@dataclass(frozen=True)
class GroupDrift:
    """How far one group of layers moved.

    Every number but the first two is ``||end - start|| / ||start||``, the Euclidean norm running
    over all values of that kind in the group at once: 0 is not moved, 0.01 is by 1 % of its length.
    Infinite where the start is all zeros and the end is not.

    Attributes:
        group: of :data:`GROUPS`, or :data:`WHOLE` for all of them together.
        num_parameters: how many values the optimizer may move.
        parameters: convolution weights and BatchNorm weights and biases.
        convolutions: convolution weights only.
        norms: BatchNorm weights and biases only.
        statistics: BatchNorm running means and variances. These follow the images, not the
            gradient: they move even at a learning rate of 0.
    """

    group: str
    num_parameters: int
    parameters: float
    convolutions: float
    norms: float
    statistics: float


def measure_drift(start: Mapping[str, Any], end: Mapping[str, Any]) -> list[GroupDrift]:
    """Compare the ResNet-50 of two networks.

    Args:
        start: tensors by name: torchvision's names or Detectron2's, under any prefix, of a whole
            network or its backbone. Of a model that is still to be trained, a copy: its
            ``state_dict()`` would move along.
        end: the same; the names may be of the other kind.

    Returns:
        One entry for each of :data:`GROUPS`, and one for :data:`WHOLE`.

    Raises:
        InputError: one of the two holds no ResNet-50 or values that are not finite.
    """
    # Any width of ResNet-50, but the same one in both.
    shapes = backbone_shapes(start, "start of the drift report")
    before, _ = translate(start, "start of the drift report", shapes)
    after, _ = translate(end, "end of the drift report", shapes)
    # Kind and group of layers -> squared lengths of the way and of the start, and count of values.
    sums = {(kind, group): [0.0, 0.0, 0] for kind in _KINDS for group in (*GROUPS, WHOLE)}
    for name in shapes:
        first, last = (_double(tensors[name]) for tensors in (before, after))
        moved, length = float((last - first).square().sum()), float(first.square().sum())
        for group in (name.partition(".")[0], WHOLE):
            entry = sums[_kind(name), group]
            entry[0] += moved
            entry[1] += length
            entry[2] += first.numel()
    result = []
    for group in (*GROUPS, WHOLE):
        convolutions, norms, statistics = (sums[kind, group] for kind in _KINDS)
        parameters = [one + other for one, other in zip(convolutions, norms, strict=True)]
        result.append(
            GroupDrift(
                group=group,
                num_parameters=int(parameters[2]),
                parameters=_relative(parameters),
                convolutions=_relative(convolutions),
                norms=_relative(norms),
                statistics=_relative(statistics),
            )
        )
    return result


def drift_to_csv(drift: Sequence[GroupDrift]) -> str:
    """Write the result of :func:`measure_drift` as CSV: a header, fractions in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(GroupDrift)])
    writer.writerows(astuple(row) for row in drift)
    return text.getvalue()


def format_drift(drift: Sequence[GroupDrift]) -> str:
    """Lay out the result of :func:`measure_drift` as a Markdown table in percent."""
    rows = [
        (
            row.group,
            f"{row.num_parameters:,}",
            *(
                format_percent(value)
                for value in (row.parameters, row.convolutions, row.norms, row.statistics)
            ),
        )
        for row in drift
    ]
    headers = (
        "layers",
        "parameters",
        "moved by (%)",
        "convolutions (%)",
        "BatchNorm weights (%)",
        "BatchNorm statistics (%)",
    )
    align = ("left", *["right"] * 5)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def format_percent(fraction: float) -> str:
    """Write a fraction as percent, without the sign: 0.00123 is "0.123", 12.5 is "1,250"."""
    percent = 100 * fraction
    return f"{percent:.3g}" if percent < 100 else f"{percent:,.0f}"


def _kind(name: str) -> str:
    """Tell which of the kinds a tensor of the backbone is."""
    if ".norm." not in name:
        return "convolutions"
    return "statistics" if ".running_" in name else "norms"


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _relative(sums: Sequence[float]) -> float:
    """Length of the way by length of the start, from the squares of both."""
    moved, length = sums[:2]
    if not moved:
        return 0.0
    return math.sqrt(moved / length) if length else math.inf
