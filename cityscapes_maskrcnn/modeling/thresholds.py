"""Which IoU makes an anchor or a proposal foreground, ignored or background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cityscapes_maskrcnn.utils.errors import InputError


def check_thresholds(cfg: Any) -> None:
    """Check the matching thresholds of the region proposal network and of the box head.

    Args:
        cfg: reads ``IOU_THRESHOLDS`` and ``IOU_LABELS`` of ``MODEL.RPN`` and ``MODEL.ROI_HEADS``.

    Raises:
        InputError: see :func:`check_matching`.
    """
    for name in ("RPN", "ROI_HEADS"):
        node = cfg.MODEL[name]
        check_matching(f"MODEL.{name}", node.IOU_THRESHOLDS, node.IOU_LABELS)


def check_matching(name: str, thresholds: Sequence[float], labels: Sequence[int]) -> None:
    """Check thresholds and labels as Detectron2's ``Matcher`` takes them.

    ``[0.2, 0.4]`` with ``[0, -1, 1]`` means: background (0) below an IoU of 0.2, foreground (1)
    from 0.4 on, and between the two ignored (-1): neither sampled nor part of any loss.

    Args:
        name: of the two keys' node in the config, for messages.
        thresholds: ascending, each above 0 and at most 1.
        labels: one more than thresholds, each 0, -1 or 1.

    Raises:
        InputError: they are not.
    """
    keys = f"{name}.IOU_THRESHOLDS {[*thresholds]}"
    if not thresholds:
        raise InputError(f"{keys}: at least one threshold is needed")
    if any(not 0 < threshold <= 1 for threshold in thresholds):
        raise InputError(f"{keys}: an IoU threshold lies above 0 and is at most 1")
    if [*thresholds] != sorted(thresholds):
        raise InputError(
            f"{keys}: thresholds in the wrong order; they ascend from background to foreground"
        )
    if len(labels) != len(thresholds) + 1:
        raise InputError(
            f"{keys} divide the IoUs into {len(thresholds) + 1} intervals, but {name}.IOU_LABELS "
            f"{[*labels]} names {len(labels)}"
        )
    if any(label not in (0, -1, 1) for label in labels):
        raise InputError(
            f"{name}.IOU_LABELS {[*labels]}: a label is 0 (background), -1 (ignored) or "
            "1 (foreground)"
        )
