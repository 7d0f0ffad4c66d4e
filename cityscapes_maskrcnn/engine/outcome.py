"""The result of a training or an evaluation, in a few words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cityscapes_maskrcnn.utils.progress import format_time
from cityscapes_maskrcnn.utils.training_metrics import TOTAL_LOSS, VALIDATION_LOSS

SUMMARY_FILE: Final = "summary.json"
SCORES_FILE: Final = "scores.json"

# Ends of the scores' names, the most important first -> what they are called.
_SCORES: Final = {
    "segm/AP": "AP",
    "coco_segm/AP": "COCO-style mask AP",
    "coco_bbox/AP": "COCO-style box AP",
    "sem_seg/IoU": "mean IoU",
    "sem_seg/mIoU": "mean IoU",
}
_LOSSES: Final = {TOTAL_LOSS: "loss", VALIDATION_LOSS: "validation loss"}


def describe_run(summary: Mapping[str, Any]) -> list[str]:
    """Describe a training that has ended in a few short lines.

    Args:
        summary: of :class:`.summary.RunSummary`.
    """
    final = summary["final"]
    scores = ", ".join(_scores(final))
    measured = summary["measured"]
    if scores and len(measured) == 1:
        scores += f" on {short_name(measured[0])}"
    epochs = f", {summary['epochs']:.3g} epochs," if summary["epochs"] else ""
    memory = f"{summary['peak_memory_bytes'] / 2**30:.1f} GB {summary['memory']}"
    lines = [
        f"{summary['iterations']:,} iterations{epochs} in {format_time(summary['seconds'])}, "
        f"of which evaluation {format_time(summary['evaluation_seconds'])}",
        scores,
        ", ".join([*_losses(final), f"peak {memory}"]),
    ]
    return [line for line in lines if line]


def short_name(dataset: str) -> str:
    """``val parts 3-4 of 4`` for ``cityscapes_instance_val_part3and4of4``."""
    name = dataset.removeprefix("cityscapes_").removeprefix("instance_")
    name = name.replace("coarse_semantic_", "coarse ")
    name = re.sub(r"_part(\d+)and(\d+)of(\d+)$", r" parts \1-\2 of \3", name)
    return re.sub(r"_part(\d+)of(\d+)$", r" part \1 of \2", name)


def short_names(datasets: Iterable[str]) -> str:
    """``train, val parts 1 and 2 of 4`` for three datasets; see :func:`short_name`."""
    text = ", ".join(map(short_name, datasets))
    return re.sub(
        r"(\S+) part (\d+) of (\d+), \1 part (\d+) of \3$", r"\1 parts \2 and \4 of \3", text
    )


def outcome(latest: Mapping[str, float]) -> list[str]:
    """Describe what a model reached: ``["AP 8.9", "AP50 18.2", "loss 2.09", ...]``.

    Args:
        latest: the last value of everything in ``metrics.json``. Of several scores, or datasets,
            the first is named.
    """
    return _scores(latest) + _losses(latest)


def _scores(latest: Mapping[str, float]) -> list[str]:
    found = [(name, end) for end in _SCORES for name in latest if f"/{name}".endswith(f"/{end}")]
    parts = [f"{_SCORES[end]} {latest[name]:.1f}" for name, end in found[:1]]
    if found and f"{found[0][0]}50" in latest:
        parts.append(f"AP50 {latest[f'{found[0][0]}50']:.1f}")
    return parts


def _losses(latest: Mapping[str, float]) -> list[str]:
    return [f"{text} {latest[name]:.3g}" for name, text in _LOSSES.items() if name in latest]


def final_values(latest: Mapping[str, float]) -> dict[str, float]:
    """Choose, of the last value of everything in ``metrics.json``, the losses and main scores."""
    ends = tuple(f"/{end}" for name in _SCORES for end in (name, f"{name}50"))
    return {
        name: value
        for name, value in latest.items()
        if math.isfinite(value) and (name in _LOSSES or f"/{name}".endswith(ends))
    }
