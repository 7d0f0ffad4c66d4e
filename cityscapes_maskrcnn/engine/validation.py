"""The training losses, measured on images that are not trained on."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from cityscapes_maskrcnn.engine.dry_run import dry_run
from cityscapes_maskrcnn.engine.hooks import MeasurementHook, is_due
from cityscapes_maskrcnn.engine.precision import check_finite, images_of
from cityscapes_maskrcnn.utils.config_keys import changed
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.training_metrics import TOTAL_LOSS

PREFIX = "validation/"


def measured_in_training(cfg: CfgNode) -> CfgNode:
    """Get a config whose ``DATASETS.TEST`` are what training measures on.

    Args:
        cfg: ``DATASETS.VAL`` are, if there are any; then the result is a copy.
    """
    if not cfg.DATASETS.VAL:
        return cfg
    measured: CfgNode = changed(cfg, {"DATASETS.TEST": cfg.DATASETS.VAL})
    return measured


def check_validation(cfg: CfgNode) -> None:
    """Verify that the validation loss is measured if the run depends on it, and can be.

    Args:
        cfg: what :func:`measured_in_training` returns.

    Raises:
        InputError: it is not, or there is no dataset to measure it on.
    """
    metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
    if metric.startswith(PREFIX) and not cfg.TEST.VALIDATION_LOSS:
        raise InputError(
            f"SOLVER.BEST_CHECKPOINT_METRIC {metric}: is not measured; set TEST.VALIDATION_LOSS "
            "True"
        )
    if metric and not cfg.DATASETS.TEST:
        raise InputError(
            f"SOLVER.BEST_CHECKPOINT_METRIC {metric}: is measured on DATASETS.TEST, which is empty"
        )
    plateau = cfg.SOLVER.LR_SCHEDULER_NAME == "ReduceLROnPlateau"
    if (plateau or cfg.SOLVER.EARLY_STOPPING.ENABLED) and not cfg.TEST.VALIDATION_LOSS:
        raise InputError(
            "SOLVER.EARLY_STOPPING and ReduceLROnPlateau watch the validation loss: set "
            "TEST.VALIDATION_LOSS True"
        )
    if cfg.TEST.VALIDATION_LOSS and not cfg.DATASETS.TEST:
        raise InputError(
            "TEST.VALIDATION_LOSS is measured on DATASETS.TEST, which is empty: name a dataset, or "
            "set TEST.VALIDATION_LOSS False"
        )


@contextmanager
def losses_without_training(model: nn.Module) -> Iterator[None]:
    """Let a model compute its training losses while nothing about it changes.

    Detectron2's models return losses in training mode only. In that mode BatchNorm would move its
    running statistics and dropout would add noise, so those layers alone stay in evaluation mode.

    Args:
        model: any Detectron2 model; its mode is restored at the end.
    """
    with dry_run(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, (_BatchNorm, _DropoutNd)):
                module.eval()
        yield


def validation_losses(
    model: nn.Module, batches: Iterable[list[dict[str, Any]]]
) -> dict[str, float]:
    """Average the losses of a model over a validation set.

    Must be called by all processes, each with its share of the images.

    Args:
        model: returns a dict of scalar losses in training mode. Wrapped by
            DistributedDataParallel, its inner module is used: shares may differ in length.
        batches: mapped examples with ground truth.

    Returns:
        Mean over all images of all processes of every loss, and their sum ``total_loss``. Empty if
        there are no images.

    Raises:
        InputError: a loss is not finite.
    """
    model = getattr(model, "module", model)
    sums: dict[str, float] = defaultdict(float)
    images = 0
    with losses_without_training(model):
        for batch in batches:
            # Two measurements must differ by the weights only: not by what was drawn before, nor by
            # the preceding images, which depend on the number of processes.
            torch.manual_seed(0)
            try:
                losses = {name: float(loss) for name, loss in model(batch).items()}
                check_finite(losses)
            except FloatingPointError as error:
                raise InputError(
                    f"validation loss: {error}; {images_of(batch)}; training diverged, or the "
                    "image or its annotations are broken"
                ) from error
            for name, loss in losses.items():
                sums[name] += loss * len(batch)
            images += len(batch)
    shares = comm.all_gather((dict(sums), images))
    total_images = sum(count for _, count in shares)
    if not total_images:
        return {}
    names = sorted({name for part, _ in shares for name in part})
    means = {name: sum(part.get(name, 0.0) for part, _ in shares) / total_images for name in names}
    return {**means, TOTAL_LOSS: sum(means.values())}


class ValidationLoss(MeasurementHook):
    """Measure :func:`validation_losses` while training and record them beside the training losses.

    The scalars ``validation/total_loss``, ``validation/loss_cls``, ... appear in ``metrics.json``
    and TensorBoard.

    Args:
        period: iterations between two measurements; the last iteration is always measured.
        load_batches: returns the validation batches; called once per measurement.
    """

    def __init__(self, period: int, load_batches: Callable[[], Iterable[Any]]) -> None:
        self._period = period
        self._load_batches = load_batches

    def after_step(self) -> None:
        """Measure where the period or the training ends."""
        if not is_due(self.trainer, self._period):
            return
        losses = validation_losses(self.trainer.model, self._load_batches())
        if losses and comm.is_main_process():
            logging.getLogger(__name__).info(
                "Validation: %s", "  ".join(f"{name}: {loss:.4g}" for name, loss in losses.items())
            )
        # On every process: what follows (schedule, early stopping) must decide alike everywhere.
        self.trainer.storage.put_scalars(
            **{PREFIX + name: loss for name, loss in losses.items()}, smoothing_hint=False
        )
