"""How far the backbone moved from the weights it started with: numbers, a table, a picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.engine import HookBase
from torch import Tensor

from cityscapes_maskrcnn.modeling.drift import drift_to_csv, format_drift, measure_drift
from cityscapes_maskrcnn.utils.files import atomic_write, write_text
from cityscapes_maskrcnn.visualization.drift_chart import plot_drift


def write_drift_report(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], folder: Path
) -> None:
    """Write ``drift.csv``, ``drift.md`` and ``drift.png``, and log the table; in one process only.

    Args:
        start: a copy of the tensors before training, see :func:`.modeling.drift.measure_drift`.
        end: the tensors after training, in any naming.
        folder: created when missing.

    Raises:
        InputError: one of the two holds no ResNet-50 or values that are not finite, or a file
            cannot be written.
    """
    drift = measure_drift(start, end)
    table = format_drift(drift)
    logging.getLogger(__name__).info("The backbone moved from its start by\n%s", table)
    write_text(folder / "drift.csv", drift_to_csv(drift))
    write_text(folder / "drift.md", f"{table}\n")
    plot_drift(drift, folder / "drift.png")


class DriftReport(HookBase):
    """Report at the end of training how far the backbone moved; main process only.

    The start is kept in ``start_weights.pth`` in the output folder, so that a resumed run compares
    with the first start and not with its own.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start_file = folder / "start_weights.pth"

    def before_train(self) -> None:
        """Keep the start, unless this run was resumed."""
        if self.trainer.start_iter == 0:
            with atomic_write(self._start_file) as file:
                torch.save(self._weights(), file)

    def after_train(self) -> None:
        """Write the report, if training got to its end."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        if not self._start_file.exists():
            logging.getLogger(__name__).warning("No drift report: %s is gone", self._start_file)
            return
        start = torch.load(self._start_file, map_location="cpu", weights_only=True)
        write_drift_report(start, self._weights(), self._folder)

    def _weights(self) -> dict[str, Tensor]:
        model = self.trainer.model
        model = getattr(model, "module", model)
        return {name: value.detach().cpu() for name, value in model.backbone.state_dict().items()}
