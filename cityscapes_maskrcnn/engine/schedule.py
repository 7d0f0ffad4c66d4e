"""Decisions during training that follow from the validation loss."""

from __future__ import annotations

import logging
import math
from typing import Any

from detectron2.engine import HookBase
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.engine.validation import PREFIX

METRIC = f"{PREFIX}total_loss"


class WatchValidationLoss(HookBase):
    """Base of hooks that act on every new validation loss; place them after what measures it."""

    def after_step(self) -> None:
        """Act if the validation loss was measured in this step."""
        value, iteration = self.trainer.storage.latest().get(METRIC, (math.nan, -1))
        if iteration == self.trainer.iter:
            self.act(float(value))

    def act(self, loss: float) -> None:
        """React to a new validation loss."""
        raise NotImplementedError


class PlateauSchedule(WatchValidationLoss):
    """Lower the learning rate when the validation loss stops falling.

    Args:
        scheduler: torch's scheduler, bound to the optimizer; counts measurements, not iterations.
    """

    def __init__(self, scheduler: ReduceLROnPlateau) -> None:
        self._scheduler = scheduler

    def after_step(self) -> None:
        """Report the learning rate of this step, then watch."""
        rate = self._scheduler.optimizer.param_groups[0]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        super().after_step()

    def act(self, loss: float) -> None:
        """Let the scheduler see the loss, and log when it lowers the rate."""
        before = self._scheduler.optimizer.param_groups[0]["lr"]
        self._scheduler.step(loss)
        after = self._scheduler.optimizer.param_groups[0]["lr"]
        if after != before:
            logging.getLogger(__name__).info(
                "Validation loss on a plateau: learning rate %g -> %g", before, after
            )

    def state_dict(self) -> dict[str, Any]:
        """Keep the scheduler's best loss and counters."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scheduler's best loss and counters."""
        self._scheduler.load_state_dict(state)


class EarlyStopping(WatchValidationLoss):
    """End training when the validation loss has not improved for a while.

    The trainer then saves ``model_final.pth`` and evaluates, as at a regular end.

    Args:
        patience: measurements in a row without a new minimum after which training ends.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.best = math.inf
        self.bad = 0
        self.stopped = False

    def before_train(self) -> None:
        """Do not go on with a run that was resumed after its early end."""
        if self.stopped:
            self.trainer.stop_after(self.trainer.start_iter)

    def act(self, loss: float) -> None:
        """Count, and stop when patience is over."""
        if loss < self.best:
            self.best, self.bad = loss, 0
            return
        self.bad += 1
        if self.bad >= self._patience:
            self.stopped = True
            logging.getLogger(__name__).info(
                "Early stopping: no validation loss below %.5g in %d measurements",
                self.best,
                self.bad,
            )
            self.trainer.stop_after(self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        """Keep the best loss, the counter and whether the end was reached."""
        return {"best": self.best, "bad": self.bad, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` kept."""
        self.best, self.bad, self.stopped = state["best"], state["bad"], state["stopped"]
