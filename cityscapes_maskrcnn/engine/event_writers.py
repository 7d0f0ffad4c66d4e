"""Write a training run to TensorBoard: scalars, pictures, curves, hyperparameters, config."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, TensorboardXWriter, get_event_storage

from cityscapes_maskrcnn.utils.config_keys import flat_config
from cityscapes_maskrcnn.utils.error_summary import PrecisionRecall
from cityscapes_maskrcnn.utils.training_metrics import TOTAL_LOSS, VALIDATION_LOSS

# What people compare runs by; TensorBoard has the whole config as text.
_HYPERPARAMETERS: Final = (
    "SEED",
    "DATASETS.TRAIN",
    "DATASETS.CLASSES",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.LSJ.ENABLED",
    "INPUT.COPY_PASTE.PROB",
    "DATALOADER.SAMPLER_TRAIN",
    "MODEL.META_ARCHITECTURE",
    "MODEL.BACKBONE.NAME",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.NORM",
    "MODEL.FPN.FREEZE",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.RPN.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MODEL.WEIGHTS",
    "SOLVER.OPTIMIZER",
    "SOLVER.BASE_LR",
    "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "SOLVER.EMA_DECAY",
    "SOLVER.AMP.ENABLED",
)
# Beside them, the newest value of each of these scalars that is measured.
_FINAL_METRICS: Final = (
    "segm/AP",
    "segm/AP50",
    "coco_segm/AP",
    "coco_bbox/AP",
    "sem_seg/IoU",
    TOTAL_LOSS,
    VALIDATION_LOSS,
)
# Thresholds of TensorBoard's precision-recall curves: scores of 0, 0.01, ..., 1.
_NUM_THRESHOLDS: Final = 101


class RunStorage(EventStorage):
    """Detectron2's storage, with precision-recall curves beside scalars and pictures."""

    def __init__(self, start_iter: int = 0) -> None:
        super().__init__(start_iter)
        self._pr_curves: list[tuple[str, PrecisionRecall, int, int]] = []

    def put_pr_curve(self, name: str, curve: PrecisionRecall, num_objects: int) -> None:
        """Add a curve of a class, which the TensorBoard writer takes.

        Args:
            name: in TensorBoard.
            curve: at one IoU threshold.
            num_objects: in the ground truth.
        """
        self._pr_curves.append((name, curve, num_objects, self.iter))

    def take_pr_curves(self) -> list[tuple[str, PrecisionRecall, int, int]]:
        """Return name, curve, number of objects and iteration of what is new."""
        taken, self._pr_curves = self._pr_curves, []
        return taken


class TensorboardWriter(TensorboardXWriter):
    """Detectron2's TensorBoard writer, with precision-recall curves, hyperparameters and config.

    All of a run is in one folder. ``SummaryWriter.add_hparams`` would make a second run in a folder
    of its own, with the metrics' last values alone; here the hyperparameters belong to the run that
    has the curves, and TensorBoard shows the curves' last values beside them.

    Attributes:
        finished: whether the training got to its end; :class:`.TrackRun` sets it.

    Args:
        cfg: the frozen config; files go to ``OUTPUT_DIR``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg.OUTPUT_DIR)
        self._cfg = cfg
        self._described = False
        self.finished = False

    def write(self) -> None:
        """Write what is new."""
        from torch.utils.tensorboard.summary import hparams

        storage = get_event_storage()
        if not self._described and storage.latest():
            self._described = True
            *start, self._end = hparams(
                hyperparameters(self._cfg),
                dict.fromkeys(_FINAL_METRICS),
            )
            for summary in start:
                self._writer._get_file_writer().add_summary(summary)
            text = "".join(f"    {line}\n" for line in self._cfg.dump().splitlines())
            self._writer.add_text("config", text)
        super().write()
        if isinstance(storage, RunStorage):
            for name, curve, num_objects, iteration in storage.take_pr_curves():
                counts = curve_at_thresholds(curve, num_objects, _NUM_THRESHOLDS)
                self._writer.add_pr_curve_raw(
                    name,
                    *counts,
                    global_step=iteration,
                    num_thresholds=_NUM_THRESHOLDS,
                )

    def close(self) -> None:
        """Close the file."""
        if self._described and self.finished:
            self._writer._get_file_writer().add_summary(self._end)
        super().close()


def hyperparameters(cfg: CfgNode) -> dict[str, str | float | bool]:
    """Choose the config keys that runs are compared by; lists become text."""
    flat = flat_config(cfg)
    return {
        key: flat[key] if isinstance(flat[key], (bool, int, float)) else str(flat[key])
        for key in _HYPERPARAMETERS
    }


def curve_at_thresholds(
    curve: PrecisionRecall, num_objects: int, num_thresholds: int
) -> tuple[npt.NDArray[Any], ...]:
    """Read a precision-recall curve at evenly spaced scores, as TensorBoard has it.

    Args:
        curve: of one class.
        num_objects: in the ground truth.
        num_thresholds: from 0 to 1; at each the predictions with at least that score count.

    Returns:
        Counts of true positives, false positives, true negatives and false negatives, then
        precision and recall; each of shape (num_thresholds,). There are no true negatives in
        detection. Where nothing is found the curve does not tell the number of false positives: 0.
    """
    points = np.searchsorted(curve.confidences, np.linspace(0, 1, num_thresholds))
    precision, recall = curve.precision[points], curve.recall[points]
    true = np.rint(recall * num_objects)
    false = np.rint(true / np.where(true > 0, precision, 1) - true)
    return true, false, np.zeros_like(true), num_objects - true, precision, recall
