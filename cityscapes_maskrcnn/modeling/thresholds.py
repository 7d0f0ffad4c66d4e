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
        problems = {
            "at least one threshold is needed": not thresholds,
            "an IoU threshold is above 0 and at most 1": any(not 0 < t <= 1 for t in thresholds),
            "thresholds in the wrong order; they ascend from background to foreground": (
                thresholds != sorted(thresholds)
            ),
            f"they divide the IoUs into {len(thresholds) + 1} intervals, but {name}.IOU_LABELS "
            f"{labels} names {len(labels)}": len(labels) != len(thresholds) + 1,
            f"{name}.IOU_LABELS {labels}: a label is 0 (background), -1 (ignored) or "
            "1 (foreground)": not {*labels} <= {0, -1, 1},
        }
        for problem, present in problems.items():
            if present:
                raise InputError(f"{name}.IOU_THRESHOLDS {thresholds}: {problem}")
