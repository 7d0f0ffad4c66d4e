"""The numbers of a training by iteration: read from ``metrics.json``, smoothed, compared."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.utils.config_keys import names_at
from cityscapes_maskrcnn.utils.errors import InputError

logger = logging.getLogger(__name__)

METRICS_FILE: Final = "metrics.json"
#: Detectron2's name for the sum of the losses.
TOTAL_LOSS: Final = "total_loss"
#: That of the validation loss.
VALIDATION_LOSS: Final = f"validation/{TOTAL_LOSS}"

# Iteration -> value, in order of iterations. As everywhere in Detectron2 the first one is 0: what
# is measured after 100 iterations is at 99, except for the scores at the end of training: at 100.
Curve = dict[int, float]


@dataclass(frozen=True)
class Gap:
    """How far validation lies above training at the end of a run.

    Attributes:
        training: the smoothed training loss at the end, where the drawn line ends.
        validation: the last validation loss.
        lowest: the iteration of the lowest validation loss; None: there is only one.
        last: the iteration of the last one.
    """

    training: float
    validation: float
    lowest: int | None
    last: int

    @property
    def percent(self) -> float:
        """How far validation lies above training, in percent of training."""
        return 100 * (self.validation - self.training) / max(self.training, 1e-12)

    @property
    def lowest_when(self) -> str:
        """When validation was lowest, in words; empty if it was measured once."""
        if self.lowest is None:
            return ""
        return "at the end" if self.lowest == self.last else f"at iteration {self.lowest:,}"


def read_curves(metrics_json: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read Detectron2's ``metrics.json``.

    Args:
        metrics_json: a JSON object a line, with ``iteration`` and any metrics. An iteration may
            come twice, after a resume: the later value counts. Values may be a bare ``NaN``. Lines
            that are no JSON object, as an interruption leaves behind, are skipped with a warning.

    Returns:
        For every metric its values by iteration, in order of iterations.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = Path(metrics_json).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{metrics_json}: cannot be read: {error.strerror}") from error
    values: dict[str, Curve] = {}
    broken = sum(bool(line.strip()) for line in lines)
    for iteration, entry in metric_entries(lines):
        broken -= 1
        for name, value in entry.items():
            # A float cannot hold larger whole numbers.
            if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
                values.setdefault(name, {})[iteration] = float(value)
    if broken:
        what = "a line is" if broken == 1 else f"{broken} lines are"
        logger.warning("%s: %s no metrics: skipped", metrics_json, what)
    return {name: dict(sorted(curve.items())) for name, curve in values.items()}


def metric_entries(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the lines of a ``metrics.json``, without those that are no JSON object.

    Yields:
        An iteration, counted from 0, and all else that its line holds.
    """
    for line in lines:
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
        yield iteration, entry


def measured_on(config: object) -> list[str]:
    """Name the datasets that a training measures its validation loss and scores on.

    Args:
        config: of the run, or what its file holds.
    """
    return names_at(config, "DATASETS.VAL") or names_at(config, "DATASETS.TEST")


def without_imitation(curves: Mapping[str, Curve]) -> Curve:
    """Subtract the losses of ``MODEL.DISTILLATION`` from the total loss of training.

    The validation loss is without them, so that only the rest can be compared with it.

    Args:
        curves: of :func:`read_curves`.

    Returns:
        The total loss by iteration; empty without one.
    """
    imitation = [curve for name, curve in curves.items() if name.startswith("loss_distill_")]
    return {
        at: total - sum(curve.get(at, 0.0) for curve in imitation)
        for at, total in curves.get(TOTAL_LOSS, {}).items()
    }


def find_gap(training: Curve, validation: Curve) -> Gap | None:
    """Compare the two losses of a run at its end.

    Args:
        training: loss by iteration.
        validation: loss by iteration, measured now and then.

    Returns:
        None if one of them has no finite value.
    """
    smoothed, validation = final_training_loss(training, validation), _finite(validation)
    if smoothed is None or not validation:
        return None
    last, lowest = max(validation), None
    if len(validation) > 1:
        lowest = min(validation, key=lambda at: (validation[at], at))
    return Gap(smoothed, validation[last], lowest, last)


def final_training_loss(training: Curve, validation: Curve) -> float | None:
    """Get the smoothed training loss at the last validation, or without one at the end.

    Args:
        training: loss by iteration.
        validation: loss by iteration, measured now and then, or never.

    Returns:
        None if no training loss is finite.
    """
    training, validation = _finite(training), _finite(validation)
    last = max(validation or training, default=0)
    before = [loss for at, loss in training.items() if at <= last] or list(training.values())
    return float(smooth(np.array(before))[-1]) if before else None


def smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average each value with its neighbours, a twentieth of the whole in all.

    Args:
        values: shape (N,).

    Returns:
        Shape (N,).
    """
    half = len(values) // 40
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([window.mean() for window in windows])


def _finite(losses: Curve) -> Curve:
    return {at: loss for at, loss in losses.items() if np.isfinite(loss)}
