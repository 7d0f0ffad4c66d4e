"""Optimizer, schedules and early stopping, in the real training loop on given losses."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.best_checkpoint import BestCheckpoint
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.hooks import MeasurementHook
from cityscapes_maskrcnn.engine.solver import (
    EarlyStopping,
    PlateauSchedule,
    build_lr_scheduler,
    build_optimizer,
)
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.training_metrics import VALIDATION_LOSS


class Small(nn.Module):
    """A layer that is frozen, one that is not, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_every_optimizer_reads_the_keys_of_the_solver(name: str) -> None:
    options = f"""
    SOLVER.OPTIMIZER {name} SOLVER.BASE_LR 0.01 SOLVER.WEIGHT_DECAY 0.02
    SOLVER.WEIGHT_DECAY_NORM 0.03 SOLVER.WEIGHT_DECAY_BIAS 0.04 SOLVER.BIAS_LR_FACTOR 2.0
    SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.5
    """
    model = Small()
    optimizer = build_optimizer(build_config("", options.split()), model)
    assert isinstance(optimizer, getattr(torch.optim, name))
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        id(model.linear.weight): (0.01, 0.02),
        id(model.linear.bias): (0.02, 0.04),
        id(model.norm.weight): (0.01, 0.03),
        id(model.norm.bias): (0.02, 0.04),
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 7.0)
    optimizer.step()
    assert model.linear.weight.grad.tolist() == [[0.5]]


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(InputError, match="'Adagrad': it must be SGD, Adam or AdamW"):
        build_optimizer(build_config("", ["SOLVER.OPTIMIZER", "Adagrad"]), Small())


def test_the_cosine_starts_with_the_warm_up_and_ends_where_the_config_says() -> None:
    cfg = build_config("configs/stage_1_heads.yaml", ["SOLVER.MAX_ITER", "1000"])
    optimizer = build_optimizer(cfg, Small())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(1000):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    # In 200 iterations from a thousandth of 1e-4 to the cosine, which ends at 1e-5.
    assert rates[0] == pytest.approx(1e-4 / 1000)
    for step in (200, 500, 1000):
        cosine = (1 + math.cos(math.pi * step / 1000)) / 2
        assert rates[step] == pytest.approx(1e-5 + (1e-4 - 1e-5) * cosine)


def adam(clip: bool, channels_last: bool = False) -> tuple[nn.Conv2d, torch.optim.Optimizer]:
    """A convolution and its optimizer in mixed precision, fused if gradients are not clipped."""
    options = f"""
    SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 0.1 SOLVER.AMP.ENABLED True
    SOLVER.CLIP_GRADIENTS.ENABLED {clip} SOLVER.CLIP_GRADIENTS.CLIP_VALUE 1000.0
    """
    torch.manual_seed(2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv = nn.Conv2d(3, 4, 3).to(memory_format=layout)
    return conv, build_optimizer(build_config("", options.split()), conv)


def scaled_steps(conv: nn.Conv2d, optimizer: torch.optim.Optimizer, first: int) -> None:
    """Two steps as in float16: the loss, and with it the gradient, is scaled by 1024."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in (first, first + 1):
        optimizer.zero_grad()
        torch.manual_seed(number)
        scaler.scale(conv(torch.randn(2, 3, 5, 5)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # No gradient is as large as the clip value.
        ({"clip": True}, {"clip": False}),
        ({"clip": False}, {"clip": True}),
        ({"clip": False}, {"clip": False, "channels_last": True}),
    ],
)
def test_an_optimizer_is_resumed_with_other_settings(
    before: dict[str, bool], after: dict[str, bool]
) -> None:
    conv, optimizer = adam(**before)
    scaled_steps(conv, optimizer, first=0)
    resumed, other = adam(**after)
    resumed.load_state_dict(conv.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state[resumed.weight]["exp_avg"].stride() == resumed.weight.stride()
    scaled_steps(conv, optimizer, first=2)
    scaled_steps(resumed, other, first=2)
    torch.testing.assert_close(resumed.weight, conv.weight)


class Point(nn.Module):
    """Its only number counts the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(1))


class Kill(BaseException):
    """As SIGKILL: nothing is saved."""


class Given(MeasurementHook):
    """Stands where the validation loss is measured; iteration i measures losses[i], if any."""

    def __init__(self, losses: list[float | None], killed_at: int | None) -> None:
        self.losses = losses
        self.killed_at = killed_at

    def after_step(self) -> None:
        if self.trainer.iter == self.killed_at:
            raise Kill
        loss = self.losses[self.trainer.iter]
        if loss is not None:
            self.trainer.storage.put_scalar(VALIDATION_LOSS, loss)


class Run(Trainer):
    """The project's training loop and hooks around a model of one number."""

    def __init__(
        self,
        folder: Path,
        losses: list[float | None],
        patience: int = 100,
        threshold: float = 0.0,
        killed_at: int | None = None,
    ) -> None:
        TrainerBase.__init__(self)
        model = Point()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        self._trainer = SimpleTrainer(model, itertools.repeat([]), optimizer)
        self.cfg = build_config("", [])
        self.cfg.OUTPUT_DIR = str(folder)
        self.max_iter = len(losses)
        self.checkpointer = SafeCheckpointer(model, str(folder), trainer=self)
        scheduler = ReduceLROnPlateau(optimizer, "min", factor=0.1, patience=2, threshold=threshold)
        self.best = BestCheckpoint(
            model, str(folder), period=1, metric=VALIDATION_LOSS, datasets=["one"]
        )
        self.stopping = EarlyStopping(patience, threshold, self.best.restore)
        self.rates: list[float] = []
        self.register_hooks(
            [
                PeriodicCheckpointer(self.checkpointer, 1),
                Given(losses, killed_at),
                self.best,
                PlateauSchedule(scheduler),
                self.stopping,
            ]
        )
        loaded = self.checkpointer.resume_or_load("", resume=True)
        self.start_iter = loaded.get("iteration", -1) + 1

    def run_step(self) -> None:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            self.model.steps += 1


# 4.5, 4.2 and 4.1 are three measurements above 4.0, more than the patience of two: from the next
# step on the rate is a tenth. 4.3 is one, 3.9 the new best, and 4.0 three more.
LOSSES: list[float | None] = [5.0, 4.0, 4.5, 4.2, 4.1, 4.3, 3.9, 4.0, 4.0, 4.0, 4.0]
RATES = [1.0] * 5 + [0.1] * 5 + [0.01]


@pytest.mark.parametrize("killed_at", [1, 3, 4, 6, 9, 10])
def test_a_kill_before_a_measurement_changes_nothing(tmp_path: Path, killed_at: int) -> None:
    """The checkpoint is written first, and the measurement made up for on resume."""
    first = Run(tmp_path, LOSSES, killed_at=killed_at)
    with pytest.raises(Kill):
        first.train()
    second = Run(tmp_path, LOSSES)
    assert second.start_iter == killed_at + 1
    second.train()
    assert first.rates + second.rates == pytest.approx(RATES)
    assert (second.stopping.best, second.stopping.bad) == (3.9, 4)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    # 3.9 was measured after seven steps.
    assert (best["iteration"], best["value"], best["model"]["steps"].item()) == (6, 3.9, 7)


@pytest.mark.parametrize("killed_at", [None, 2, 3, 4])
def test_early_stopping_hands_on_the_best_weights(tmp_path: Path, killed_at: int | None) -> None:
    if killed_at is not None:
        with pytest.raises(Kill):
            Run(tmp_path, LOSSES, patience=3, killed_at=killed_at).train()
    run = Run(tmp_path, LOSSES, patience=3)
    run.train()
    # 4.5, 4.2 and 4.1 are not below 4.0, which was measured after two steps: the fifth iteration is
    # the last.
    assert (run.iter, run.max_iter) == (5, 5)
    assert (run.stopping.best, run.stopping.bad) == (4.0, 3)
    assert run.model.steps.item() == 2
    # It stays so when it is resumed.
    run.checkpointer.save("model_final", iteration=run.iter - 1)
    again = Run(tmp_path, LOSSES, patience=3)
    again.train()
    assert (again.start_iter, again.rates, again.model.steps.item()) == (5, [], 2)


@pytest.mark.parametrize("killed_at", [None, 4])
def test_the_regular_end_hands_on_the_best_weights_too(
    tmp_path: Path, killed_at: int | None
) -> None:
    losses = LOSSES[:5]
    if killed_at is not None:
        with pytest.raises(Kill):
            Run(tmp_path, losses, patience=4, killed_at=killed_at).train()
    run = Run(tmp_path, losses, patience=4)
    run.train()
    assert (run.iter, run.stopping.bad, run.stopping.stopped) == (5, 3, False)
    assert run.model.steps.item() == 2
    # A new minimum stays.
    run = Run(tmp_path / "falling", [3.0, 2.0, 1.0], patience=4)
    run.train()
    assert run.model.steps.item() == 3


def kept_best(folder: Path) -> tuple[int, float, float]:
    best = torch.load(folder / "model_best.pth", weights_only=True)
    return best["iteration"], best["value"], best["model"]["steps"].item()


def test_a_best_checkpoint_of_later_iterations_is_left_behind(tmp_path: Path) -> None:
    """The run went on from iteration 2; the best of iteration 3 is none of the resumed run's."""
    with pytest.raises(Kill):
        Run(tmp_path, [5.0, 4.0, 4.5, 1.0, 2.0], killed_at=4).train()
    assert kept_best(tmp_path) == (3, 1.0, 4)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    # What is done anew goes another way, as on a GPU or with another rate.
    run = Run(tmp_path, [5.0, 4.0, 4.5, 3.0, 3.5], patience=2)
    run.train()
    assert kept_best(tmp_path) == (3, 3.0, 4)
    assert run.model.steps.item() == 4


def test_a_best_checkpoint_that_a_kill_kept_out_of_the_state_is_taken_over(tmp_path: Path) -> None:
    """Iteration 1 was measured, and the run killed before its next checkpoint."""
    with pytest.raises(Kill):
        Run(tmp_path, [5.0, 4.0, 4.5], killed_at=2).train()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    # Measured again, the same weights are a little worse.
    Run(tmp_path, [5.0, 4.1, 4.5]).train()
    assert kept_best(tmp_path) == (1, 4.0, 2)


@pytest.mark.parametrize(
    ("threshold", "iterations", "rate"),
    [
        # Every loss is a new minimum, however small the fall.
        (0.0, 6, 1.0),
        # None is below 0.99 of the first: the third of them is the last, and lowers the rate.
        (0.01, 4, 0.1),
    ],
)
def test_plateau_and_early_stopping_share_one_rule(
    tmp_path: Path, threshold: float, iterations: int, rate: float
) -> None:
    losses: list[float | None] = [4.0, 3.9999, 3.9998, 3.9997, 3.9996, 3.9995]
    run = Run(tmp_path, losses, patience=3, threshold=threshold)
    run.train()
    assert run.iter == iterations
    # Recorded before the schedule acts, so it is the rate that the step has used.
    assert [logged for logged, _ in run.storage.history("lr").values()] == run.rates
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_resuming_records_no_rate_twice(tmp_path: Path) -> None:
    with pytest.raises(Kill):
        Run(tmp_path, LOSSES[:4], killed_at=2).train()
    run = Run(tmp_path, LOSSES[:4])
    run.train()
    assert run.start_iter == 3
    assert [iteration for _, iteration in run.storage.history("lr").values()] == [3]


def test_an_old_measurement_counts_once(tmp_path: Path) -> None:
    # Between measurements the last one still stands in the event storage.
    run = Run(tmp_path, [4.0, 5.0, None, None, None, None, 3.0], patience=2)
    run.train()
    assert run.rates == [1.0] * 7
    assert (run.stopping.best, run.stopping.bad) == (3.0, 0)


def test_resuming_obeys_the_config(tmp_path: Path) -> None:
    """Settings in the checkpoint, such as torch's own threshold of 1e-4, do not come back."""
    Run(tmp_path, LOSSES[:2], threshold=1e-4).train()
    run = Run(tmp_path, LOSSES)
    (schedule,) = [hook for hook in run._hooks if isinstance(hook, PlateauSchedule)]
    assert schedule.state_dict()["threshold"] == 0.0
    assert schedule.state_dict()["best"] == 5.0  # 4.0 follows the checkpoint


@pytest.mark.parametrize(
    ("metric", "chosen", "iteration"),
    [
        ("", "segm/AP", 1),
        ("validation/loss_mask", "validation/loss_mask", 0),
        ("segm/AP50", "segm/AP50", 2),
    ],
)
def test_the_metric_of_the_best_checkpoint(
    tmp_path: Path, metric: str, chosen: str, iteration: int
) -> None:
    values = {
        "segm/AP": [1.0, 3.0, 2.0],
        VALIDATION_LOSS: [3.0, 2.0, 1.0],
        "validation/loss_mask": [1.0, 2.0, 3.0],
        "segm/AP50": [5.0, 4.0, 6.0],
    }

    class Measured(MeasurementHook):
        def after_step(self) -> None:
            now = self.trainer.iter
            self.trainer.storage.put_scalars(**{name: each[now] for name, each in values.items()})

    run = Run(tmp_path, [None] * 3)
    best = BestCheckpoint(run.model, str(tmp_path), period=1, metric=metric, datasets=["one"])
    run._hooks.clear()
    run.register_hooks([Measured(), best])
    run.train()
    content = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (content["metric"], content["iteration"]) == (chosen, iteration)
    # --resume does not continue from it.
    assert not (tmp_path / "last_checkpoint").exists()
