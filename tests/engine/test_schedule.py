"""The plateau schedule and early stopping, in the real training loop, on given losses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from cityscapes_maskrcnn.engine.schedule import METRIC, EarlyStopping, PlateauSchedule
from detectron2.config import get_cfg
from detectron2.engine import HookBase, SimpleTrainer, TrainerBase
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.trainer import Trainer

# Iteration i measures the loss LOSSES[i]; None: it measures nothing.
LOSSES = [5.0, 4.0, 4.5, 4.2, 4.1, 4.3, 3.9, 4.0, 4.0, 4.0, 4.0]


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(1))

    def forward(self, _: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.place.square().sum()}


class Given(HookBase):
    """Stands where the validation loss is measured; remembers the rate of every step."""

    def __init__(self, losses: list[float | None]) -> None:
        self.losses = losses
        self.rates: list[float] = []

    def after_step(self) -> None:
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])
        loss = self.losses[self.trainer.iter]
        if loss is not None:
            self.trainer.storage.put_scalar(METRIC, loss)


class Run(Trainer):
    """The project's training loop and checkpoints around a model of one number."""

    def __init__(self, folder: Path, losses: list[float | None], patience: int = 100) -> None:
        TrainerBase.__init__(self)
        model = Point()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        self._trainer = SimpleTrainer(model, itertools.repeat([]), optimizer)
        self.cfg = get_cfg()
        self.cfg.OUTPUT_DIR = str(folder)
        self.max_iter = len(losses)
        self.given, self.stopping = Given(losses), EarlyStopping(patience)
        scheduler = ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=2)
        self.register_hooks([self.given, PlateauSchedule(scheduler), self.stopping])
        self.checkpointer = SafeCheckpointer(model, str(folder), trainer=self)
        loaded = self.checkpointer.resume_or_load("", resume=True)
        self.start_iter = loaded.get("iteration", -1) + 1

    def go(self, until: int | None = None) -> list[float]:
        """Train, for a part of the way if asked to, save, and return the rates of the steps."""
        self.max_iter = until or self.max_iter
        self.train()
        self.checkpointer.save("model", iteration=self.iter - 1)
        return self.given.rates


@pytest.mark.parametrize("interruption", range(1, len(LOSSES)))
def test_the_plateau_is_found_across_an_interruption(tmp_path: Path, interruption: int) -> None:
    # 4.5, 4.2 and 4.1 are three measurements above 4.0, more than the patience of two: from the
    # next step on the rate is a tenth. 4.3 is one, 3.9 the new best, and 4.0 three more.
    expected = [1.0] * 5 + [0.1] * 5 + [0.01]
    rates = Run(tmp_path, LOSSES).go(interruption)
    rates += Run(tmp_path, LOSSES).go()
    assert rates == pytest.approx(expected)


def test_the_rate_of_each_step_is_logged(tmp_path: Path) -> None:
    run = Run(tmp_path, LOSSES)
    rates = run.go()
    # Measured before the schedule acts, so it is the rate that the step has used.
    assert [rate for rate, _ in run.storage.history("lr").values()] == rates


@pytest.mark.parametrize("interruption", [1, 2, 3, 4])
def test_early_stopping_counts_across_an_interruption(tmp_path: Path, interruption: int) -> None:
    Run(tmp_path, LOSSES, patience=3).go(interruption)
    run = Run(tmp_path, LOSSES, patience=3)
    run.go()
    # 4.5, 4.2 and 4.1 are not below 4.0: the fifth iteration is the last.
    assert (run.iter, run.max_iter) == (5, 5)
    assert (run.stopping.best, run.stopping.bad) == (4.0, 3)


def test_a_run_that_was_stopped_stays_so(tmp_path: Path) -> None:
    assert len(Run(tmp_path, LOSSES, patience=3).go()) == 5
    again = Run(tmp_path, LOSSES, patience=3)
    assert again.start_iter == 5
    assert again.go() == []


def test_a_new_minimum_starts_the_count_anew(tmp_path: Path) -> None:
    run = Run(tmp_path, [5.0, 6.0, 4.0, 6.0, 3.0, 6.0], patience=2)
    assert len(run.go()) == 6
    assert (run.stopping.best, run.stopping.bad, run.stopping.stopped) == (3.0, 1, False)


def test_an_old_measurement_counts_once(tmp_path: Path) -> None:
    # Between measurements the last one still stands in the event storage.
    run = Run(tmp_path, [4.0, 5.0, None, None, None, None, 3.0], patience=2)
    assert run.go() == [1.0] * 7
    assert (run.stopping.best, run.stopping.bad) == (3.0, 0)
