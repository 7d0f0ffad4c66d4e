"""A moving average of the weights beside those that are trained: ``SOLVER.EMA_DECAY``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from cityscapes_maskrcnn.engine.hooks import MeasurementHook, is_due
from cityscapes_maskrcnn.modeling.norm_statistics import (
    average_over_processes,
    running_statistics,
)

#: Ends the names of the scores of averaged weights.
SUFFIX = "_EMA"


class WeightAverage(HookBase):
    """Keep an exponential moving average of trained parameters and BatchNorm statistics.

    After optimizer step ``t``, counted from 0, the average moves towards the weights by
    ``1 - min(decay, (1 + t) / (10 + t))``: at first by more, so that what training started with
    does not weigh on it for long. It begins with the weights that training starts with, or those
    that a run without an average is resumed with. Its precision is float32.

    Register it before the checkpointer, whose files hold it in the state of the hooks.

    Args:
        model: plain or wrapped by DistributedDataParallel.
        decay: part of the average that a step keeps, 0 to 1.
        periods: iterations after which the processes need equal averages (checkpoints,
            evaluations).
    """

    def __init__(self, model: nn.Module, decay: float, *periods: int) -> None:
        self._decay = decay
        self._periods = periods
        inner: nn.Module = getattr(model, "module", model)
        statistics = running_statistics(inner)
        trained = {name: each for name, each in inner.named_parameters() if each.requires_grad}
        self._statistics = list(statistics)
        self._live: dict[str, Tensor] = {**trained, **statistics}
        #: The average, by name in the model's state; empty before the start.
        self.values: dict[str, Tensor] = {}

    def before_train(self) -> None:
        """Begin with the weights of the model, if no checkpoint had an average."""
        if not self.values:
            self.values = {
                name: each.detach().to(torch.float32, copy=True)
                for name, each in self._live.items()
            }

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average."""
        step = self.trainer.iter
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        live = [each.detach().float() for each in self._live.values()]
        torch._foreach_lerp_([*self.values.values()], live, weight)
        if is_due(self.trainer, *self._periods):
            # These are each process's own; see AverageNormStatistics.
            average_over_processes(self.values[name] for name in self._statistics)

    @contextmanager
    def in_place(self, checkpointer: Any) -> Iterator[None]:
        """Give the model the averaged weights in a ``with`` block.

        Args:
            checkpointer: what it writes inside the block, because the process is asked to stop, has
                the trained weights all the same.
        """
        trained = {name: value.detach().clone() for name, value in self._live.items()}
        checkpointer.replaced = trained
        try:
            self._copy(self.values)
            yield
        finally:
            self._copy(trained)
            checkpointer.replaced = {}

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._live.items():
            # In place, which whoever keeps something computed from the weights can see.
            value.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average.

        Raises:
            ValueError: it is of another model, or of other trained parameters.
        """
        for name, live in self._live.items():
            saved = state.get(name) if isinstance(state, Mapping) else None
            if not isinstance(saved, Tensor) or saved.shape != live.shape:
                raise ValueError(f"its average of the weights has no {name} of the model's shape")
            if saved.dtype != torch.float32 or saved.is_meta or not saved.isfinite().all():
                raise ValueError(f"{name} in its average of the weights is not of finite float32")
        # In the memory layout of the model, which may be another one than the file's.
        self.values = {
            name: torch.empty_like(live, dtype=torch.float32).copy_(state[name])
            for name, live in self._live.items()
        }


class FinalAverage(MeasurementHook):
    """Write ``model_final_ema.pth``, the averaged weights at the end of training.

    Args:
        average: of the weights.
    """

    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        """Write after the last iteration."""
        if is_due(self.trainer):
            self.trainer.checkpointer.save_weights(
                "model_final_ema",
                replaced=self._average.values,
                iteration=self.trainer.iter,
            )
