"""How far the backbone moved from the weights it started with: numbers, a table, a picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cityscapes_maskrcnn.modeling.drift import (
    GroupDrift,
    drift_to_csv,
    format_drift,
    measure_drift,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.visualization.drift_chart import plot_drift


def write_drift_report(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], folder: Path
) -> list[GroupDrift]:
    """Write ``drift.csv``, ``drift.md`` and ``drift.png``, and log the table.

    Call it in one process only.

    Args:
        start: see :func:`.modeling.drift.measure_drift`: a copy of the tensors before training.
        end: the tensors after training, in any naming.
        folder: made when missing; each file appears only when it is complete.

    Returns:
        What the files say.

    Raises:
        InputError: one of the two holds no ResNet-50 or values that are not finite, or a file
            cannot be written.
    """
    drift = measure_drift(start, end)
    table = format_drift(drift)
    logging.getLogger(__name__).info("The backbone moved from its start by\n%s", table)
    for name, text in (("drift.csv", drift_to_csv(drift)), ("drift.md", f"{table}\n")):
        try:
            with atomic_write(folder / name, "w") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be written: {error.strerror}") from error
    plot_drift(drift, folder / "drift.png")
    return drift
