"""One training iteration, in the precision that the config names."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from statistics import fmean
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cityscapes_maskrcnn.engine.accumulation import LossShares, padded_as_batch, split_batch
from cityscapes_maskrcnn.engine.distillation import Distillation
from cityscapes_maskrcnn.modeling.step_metrics import collect_step_metrics
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.training_metrics import TOTAL_LOSS

#: By the names that configs use.
HALF_PRECISIONS: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer
) -> CheckedTrainer:
    """Build the trainer that runs one iteration, in full or in mixed precision.

    Args:
        cfg: reads ``SOLVER.AMP``, ``ACCUMULATE``, ``ACCUMULATE_EXACTLY`` and ``MODEL.DEVICE``.
        model: on its device.
        loader: an iterable of batches without end.
        optimizer: of the model's trainable parameters.

    Raises:
        InputError: mixed precision is asked for on a CPU.
    """
    accumulation = {
        "accumulate": cfg.SOLVER.ACCUMULATE,
        "exactly": cfg.SOLVER.ACCUMULATE_EXACTLY,
    }
    if not cfg.SOLVER.AMP.ENABLED:
        return CheckedTrainer(model, loader, optimizer, **accumulation)
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise InputError("SOLVER.AMP.ENABLED: needs a GPU in this project's trainer")
    precision = HALF_PRECISIONS[cfg.SOLVER.AMP.PRECISION]
    # bfloat16 has the range of float32: its gradients do not vanish, so nothing is to be scaled.
    scaler = torch.amp.GradScaler("cuda", enabled=precision is torch.float16)
    return MixedPrecisionTrainer(
        model, loader, optimizer, grad_scaler=scaler, precision=precision, **accumulation
    )


class CheckedTrainer(SimpleTrainer):
    """Detectron2's trainer, with gradients that are summed over micro-batches.

    It knows the images of the micro-batch whose loss is not finite.

    Args:
        model: on its device, perhaps wrapped by DistributedDataParallel.
        data_loader: an iterable of batches without end.
        optimizer: of the model's trainable parameters.
        accumulate: micro-batches that a batch is divided into.
        exactly: see :class:`.accumulation.LossShares`.
        kwargs: of Detectron2's trainer.

    Attributes:
        distillation: computes the losses in the model's place; None: the model does.
        images: in words, those of the newest micro-batch.
    """

    distillation: Distillation | None = None
    images = "images of the batch: none"

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        exactly: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.accumulate = accumulate
        self._exactly = exactly

    def run_step(self) -> None:
        """Go through one batch and update the weights."""
        assert self.model.training, "the model is in evaluation mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # Before the forward pass, whose peak of memory they need not add to.
        self.optimizer.zero_grad()
        losses, metrics = self.compute_gradients(self.model, batch)
        self.after_backward()
        self.write_metrics(losses, data_time, self.iter)
        get_event_storage().put_scalars(cur_iter=self.iter, **metrics)
        self._update_weights()

    def compute_gradients(
        self, model: nn.Module, batch: Sequence[Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Add the gradients of a batch to those of the model's parameters.

        Returns:
            The losses of the batch, scalars without gradients on the CPU, and the metrics that the
            modules report, means over the micro-batches.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        parts = split_batch(batch, self.accumulate)
        inner = getattr(model, "module", model)
        exactly = self._exactly and len(parts) > 1
        scalars: list[Mapping[str, torch.Tensor]] = []
        with padded_as_batch(inner, batch if exactly else ()):
            with self._autocast():
                shares = LossShares(inner, parts, exactly=exactly, note=self._note)
            for number, part in enumerate(shares):
                with ExitStack() as stack:
                    if isinstance(model, DistributedDataParallel) and number < len(parts) - 1:
                        stack.enter_context(model.no_sync())
                    with self._autocast():
                        losses = self._losses(model, part)
                        if isinstance(losses, torch.Tensor):
                            losses = {TOTAL_LOSS: losses}
                        shared = shares.weigh(number, losses) if len(parts) > 1 else losses
                        total: Any = sum(shared.values())
                    self._backward(total)
                scalars += [losses, shared, collect_step_metrics(model)]
        # One transfer from the GPU for all of them.
        flat = [each.detach().float().reshape(()) for group in scalars for each in group.values()]
        values = iter(torch.stack(flat).tolist())
        found = [{name: next(values) for name in group} for group in scalars]
        for part, losses in zip(parts, found[::3], strict=True):
            self._note(part)
            # In the process of the image: the main one, which gets the means, does not know it.
            check_finite(losses)
        of_batch = {
            name: torch.tensor(sum(each[name] for each in found[1::3])) for name in found[1]
        }
        return of_batch, _means(found[2::3])

    def _losses(self, model: nn.Module, part: Sequence[Any]) -> Any:
        return model(part) if self.distillation is None else self.distillation(model, part)

    def _note(self, part: Sequence[Any]) -> None:
        self.images = images_of(part)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update_weights(self) -> None:
        self.optimizer.step()


def _means(groups: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average every metric over the micro-batches that have it."""
    names = dict.fromkeys(name for group in groups for name in group)
    return {name: fmean(group[name] for group in groups if name in group) for name in names}


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

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=self.precision)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update_weights(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore ``state_dict``; without a scale of gradients in it, start with a new one."""
        scaler = state_dict.get("grad_scaler") or self.grad_scaler.state_dict()
        super().load_state_dict({**state_dict, "grad_scaler": scaler})
