"""One training iteration, in the precision that the config names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils.events import get_event_storage
from torch import nn

from cityscapes_maskrcnn.modeling.pooling import BatchedROIPooler
from cityscapes_maskrcnn.modeling.step_metrics import collect_step_metrics
from cityscapes_maskrcnn.utils.errors import InputError


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Build the trainer that runs one iteration, in full or in mixed precision.

    Args:
        cfg: reads ``SOLVER.AMP`` and ``MODEL.DEVICE``.
        model: on its device.
        loader: an iterable of batches without end.
        optimizer: of the model's trainable parameters.

    Raises:
        InputError: ``SOLVER.AMP.PRECISION`` is unknown, or mixed precision is asked for on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return CheckedTrainer(model, loader, optimizer)
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise InputError("SOLVER.AMP.ENABLED: needs a GPU in this project's trainer")
    precisions = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if cfg.SOLVER.AMP.PRECISION not in precisions:
        raise InputError(
            f"SOLVER.AMP.PRECISION {cfg.SOLVER.AMP.PRECISION!r}: it must be float16 or bfloat16"
        )
    precision = precisions[cfg.SOLVER.AMP.PRECISION]
    # bfloat16 has the range of float32: its gradients do not vanish, so nothing is to be scaled.
    scaler = torch.amp.GradScaler("cuda", enabled=precision is torch.float16)
    for module in model.modules():
        # Heads of other names than this project's keep Detectron2's poolers.
        if isinstance(module, ROIPooler) and not isinstance(module, BatchedROIPooler):
            module.register_forward_pre_hook(_pool_in_full_precision)
    return MixedPrecisionTrainer(model, loader, optimizer, grad_scaler=scaler, precision=precision)


class CheckedTrainer(SimpleTrainer):
    """Detectron2's trainer, which knows the images of a batch whose loss is not finite.

    Attributes:
        images: in words, those of the newest batch.
    """

    images = "images of the batch: none"
    _data_loader_iter_obj: Iterator[Any] | None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = self._note_images()
        return self._data_loader_iter_obj

    def _note_images(self) -> Iterator[Any]:
        for batch in self.data_loader:
            self.images = images_of(batch)
            yield batch

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        metrics = collect_step_metrics(self.model)
        # One transfer from the GPU for all of them.
        scalars = [
            each.detach().float().reshape(()) for each in (*loss_dict.values(), *metrics.values())
        ]
        values = torch.stack(scalars).cpu()
        by_name = dict(zip(loss_dict, values, strict=False))
        # In the process of the image: the main one, which gets the means, does not know it.
        check_finite({name: float(loss) for name, loss in by_name.items()})
        iteration = self.iter if iter is None else iter
        SimpleTrainer.write_metrics(by_name, data_time, iteration, prefix)
        for name, value in zip(metrics, values[len(loss_dict) :].tolist(), strict=True):
            get_event_storage().put_scalar(name, value, cur_iter=iteration)


def images_of(batch: Iterable[Any]) -> str:
    """Name the files of a batch, for a message."""
    names = [each.get("file_name", "unnamed") for each in batch if isinstance(each, Mapping)]
    return f"images of the batch: {', '.join(map(str, names)) or 'unknown'}"


def check_finite(losses: Mapping[str, float]) -> None:
    """Verify that losses are finite.

    Raises:
        FloatingPointError: names those that are not.
    """
    wrong = [f"{name} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    if wrong:
        raise FloatingPointError(", ".join(wrong))


class MixedPrecisionTrainer(CheckedTrainer, AMPTrainer):
    """Detectron2's mixed-precision trainer, which can resume a run of another precision."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore ``state_dict``; without a scale of gradients in it, start with a new one."""
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})


def _pool_in_full_precision(_pooler: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert the features that regions are pooled from to float32.

    Detectron2 rounds the boxes to the features' precision: 8 pixels at the right border of a
    2048 pixels wide image in bfloat16. torchvision's kernel computes in float32 anyway.
    """
    features, *others = inputs
    return ([feature.float() for feature in features], *others)
