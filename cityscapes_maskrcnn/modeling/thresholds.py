"""Which IoU makes an anchor or a proposal foreground, ignored or background."""

from __future__ import annotations

from typing import Any

from cityscapes_maskrcnn.utils.errors import InputError


def check_thresholds(cfg: Any) -> None:
    """Check the matching thresholds of the region proposal network and of the box head.

    Thresholds ``[0.2, 0.4]`` with labels ``[0, -1, 1]`` mean: background (0) below an IoU of 0.2,
    foreground (1) from 0.4 on, and between the two ignored (-1): neither sampled nor part of any
    loss. Detectron2's ``Matcher`` only asserts, and not all of this.

    Args:
        cfg: reads ``IOU_THRESHOLDS`` and ``IOU_LABELS`` of ``MODEL.RPN`` and ``MODEL.ROI_HEADS``.

    Raises:
        InputError: thresholds that do not ascend or are not above 0 and at most 1; labels other
            than 0, -1 and 1, or not one more of them than thresholds.
    """
    for name in ("MODEL.RPN", "MODEL.ROI_HEADS"):
        node = cfg.MODEL[name.removeprefix("MODEL.")]
        thresholds, labels = list(node.IOU_THRESHOLDS), list(node.IOU_LABELS)
        keys = f"{name}.IOU_THRESHOLDS {thresholds}"
        if not thresholds:
            raise InputError(f"{keys}: at least one threshold is needed")
        if any(not 0 < threshold <= 1 for threshold in thresholds):
            raise InputError(f"{keys}: an IoU threshold is above 0 and at most 1")
        if thresholds != sorted(thresholds):
            raise InputError(
                f"{keys}: thresholds in the wrong order; they ascend from background to foreground"
            )
        if len(labels) != len(thresholds) + 1:
            raise InputError(
                f"{keys} divide the IoUs into {len(thresholds) + 1} intervals, but "
                f"{name}.IOU_LABELS {labels} names {len(labels)}"
            )
        if any(label not in (0, -1, 1) for label in labels):
            raise InputError(
                f"{name}.IOU_LABELS {labels}: a label is 0 (background), -1 (ignored) or "
                "1 (foreground)"
            )
