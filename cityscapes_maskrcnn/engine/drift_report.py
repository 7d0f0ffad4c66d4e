"""How far the backbone moved from the weights it started with: numbers, a table, a picture."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor

from cityscapes_maskrcnn.engine.summary import about_run
from cityscapes_maskrcnn.modeling.deeplab_weights import canonical_names
from cityscapes_maskrcnn.modeling.drift import drift_to_csv, format_drift, measure_drift
from cityscapes_maskrcnn.modeling.weight_files import read_checkpoint, write_tensors
from cityscapes_maskrcnn.utils.files import write_text
from cityscapes_maskrcnn.visualization.drift_chart import plot_drift


class DriftReport(HookBase):
    """Report at the end of training how far the backbone moved; main process only.

    Writes ``drift.csv``, ``drift.md`` and ``drift.png``, and logs the table. The start is kept in
    ``start_weights.pth``, so that a resumed run compares with the first start and not with its own.

    There is no picture where training started from random weights: it would mean nothing.

    Args:
        cfg: the frozen config.
        images: number of images of an epoch; None: not known.
    """

    def __init__(self, cfg: CfgNode, images: int | None) -> None:
        self._cfg = cfg
        self._images = images
        self._folder = Path(cfg.OUTPUT_DIR)
        self._start_file = self._folder / "start_weights.pth"

    def before_train(self) -> None:
        """Keep the start, unless this run was resumed.

        Raises:
            InputError: the backbone is no ResNet or ConvNeXt, or the file cannot be written.
        """
        weights = self._weights()
        canonical_names(weights, "SOLVER.DRIFT_REPORT: the backbone")
        if self.trainer.start_iter == 0:
            write_tensors(self._start_file, weights)

    def after_train(self) -> None:
        """Write the report, if training got to its end.

        Raises:
            InputError: the backbone has values that are not finite, or a file cannot be written.
        """
        if self.trainer.iter < self.trainer.max_iter:
            return
        logger = logging.getLogger(__name__)
        if not self._start_file.exists():
            logger.warning("No drift report: %s no longer exists", self._start_file)
            return
        start = read_checkpoint(self._start_file)["model"]
        drift = measure_drift(start, self._weights())
        table = format_drift(drift)
        logger.info("Drift of the backbone from its initial weights:\n%s", table)
        write_text(self._folder / "drift.csv", drift_to_csv(drift))
        write_text(self._folder / "drift.md", f"{table}\n")
        if not self._cfg.MODEL.WEIGHTS:
            logger.info(
                "No drift.png: training started from random weights, so it would mean nothing"
            )
            return
        about = about_run(
            self._cfg,
            self._cfg.DATASETS.TRAIN,
            num_images=self._images,
            protocol="weights at the end compared with those at the start",
        )
        plot_drift(drift, self._folder / "drift.png", about)

    def _weights(self) -> dict[str, Tensor]:
        model = self.trainer.model
        model = getattr(model, "module", model)
        return {name: value.detach().cpu() for name, value in model.backbone.state_dict().items()}
