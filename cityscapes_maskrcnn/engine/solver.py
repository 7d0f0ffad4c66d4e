"""Optimizer, learning rate schedule and length of training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.data.loaders import training_dicts
from cityscapes_maskrcnn.engine.hooks import MeasurementHook, is_due
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import brief
from cityscapes_maskrcnn.utils.training_metrics import VALIDATION_LOSS

# Keys that count iterations, and those that set them when they count epochs.
IN_EPOCHS: Final = {
    "SOLVER.MAX_ITER": "SOLVER.EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
}


def resolve_epochs(cfg: CfgNode) -> str:
    """Turn the keys that count epochs into Detectron2's keys that count iterations.

    Args:
        cfg: edited in place: each key of ``IN_EPOCHS`` whose key in epochs is positive.

    Returns:
        One line for the log that shows the arithmetic; empty if no key counts epochs.

    Raises:
        InputError: a key is negative, or there is nothing to train on.
    """
    used = {}
    for key, epochs_key in IN_EPOCHS.items():
        section, name = epochs_key.split(".")
        epochs = cfg[section][name]
        if epochs < 0:
            raise InputError(f"{epochs_key} is {epochs}: it must be 0 (not used) or positive")
        if epochs:
            used[key] = epochs
    if not used:
        return ""
    if cfg.SOLVER.IMS_PER_BATCH < 1:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: at least 1")
    images = len(training_dicts(cfg))
    epoch = math.ceil(images / cfg.SOLVER.IMS_PER_BATCH)
    parts = [
        f"one epoch: {images} images / {cfg.SOLVER.IMS_PER_BATCH} a batch = {epoch} iterations"
    ]
    for key, epochs in used.items():
        section, name = key.split(".")
        cfg[section][name] = epochs * epoch
        parts.append(f"{IN_EPOCHS[key]} {epochs} -> {name} {epochs * epoch}")
    return "; ".join(parts)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names, for the trainable parameters.

    It may load the state of a run with other ``MODEL.CHANNELS_LAST``, ``SOLVER.AMP`` or
    ``SOLVER.CLIP_GRADIENTS``.

    Raises:
        InputError: the name is unknown.
    """
    adaptive = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    if cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = build_sgd(cfg, model)
    elif cfg.SOLVER.OPTIMIZER in adaptive:
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        # Fused: one pass over all parameters instead of a dozen operations for each tensor.
        optimizer = maybe_add_gradient_clipping(cfg, adaptive[cfg.SOLVER.OPTIMIZER])(
            parameters,
            lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            # Under AMP a fused optimizer unscales gradients itself, after they would be clipped.
            fused=not (cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.ENABLED),
        )
    else:
        raise InputError(
            f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r}: it must be SGD, Adam or AdamW"
        )
    optimizer.register_load_state_dict_pre_hook(_check_state)
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)
    optimizer.register_load_state_dict_post_hook(_match_memory_format)
    return optimizer


def _check_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Verify that a saved state is of this kind of optimizer and fits its parameters.

    torch compares nothing but the number of parameters: a fused optimizer goes through moments of
    another shape beyond their end, and Adam goes on as the AdamW that the file is of.

    Raises:
        ValueError: it does not.
    """
    groups = state_dict["param_groups"]
    decoupled = optimizer.defaults.get("decoupled_weight_decay")
    if any(each.get("decoupled_weight_decay", decoupled) != decoupled for each in groups):
        raise ValueError("its parameter groups are those of another optimizer")
    adaptive = "betas" in optimizer.defaults
    if [len(each["params"]) for each in groups] != [
        len(each["params"]) for each in optimizer.param_groups
    ]:
        raise ValueError("its parameter groups are of other sizes")
    saved = [index for group in groups for index in group["params"]]
    own = [each for group in optimizer.param_groups for each in group["params"]]
    for index, parameter in zip(saved, own, strict=True):
        state = state_dict["state"].get(index) or {}
        if not isinstance(state, Mapping):
            raise ValueError(f"state of a parameter is {brief(state)}")
        for name in ("exp_avg", "exp_avg_sq") if adaptive else ("momentum_buffer",):
            value = state.get(name)
            # Without a step there is no state, and without SOLVER.MOMENTUM no buffer.
            if value is None and not (adaptive and state):
                continue
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                found = tuple(value.shape) if isinstance(value, torch.Tensor) else value
                raise ValueError(
                    f"{name} of a parameter of shape {tuple(parameter.shape)} is {brief(found)}"
                )
            if value.dtype != parameter.dtype or value.is_meta or not value.isfinite().all():
                raise ValueError(f"{name} of a parameter is not of finite {parameter.dtype}")
        if adaptive and state:
            step = state.get("step")
            number = step.item() if torch.is_tensor(step) and step.numel() == 1 else step
            if not isinstance(number, (int, float)) or not 0 <= number < math.inf:
                raise ValueError(f"step of a parameter is {brief(step)}")


def _keep_implementation(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """Replace the saved choice of implementation by that of the optimizer that loads.

    torch saves ``fused`` with the hyperparameters. A fused optimizer that loads ``fused=False``
    still gets scaled gradients from GradScaler, and fails; ``step`` would be on the wrong device.
    """
    ours = {
        key: optimizer.defaults[key]
        for key in ("fused", "foreach", "capturable")
        if key in optimizer.defaults
    }
    return {**state_dict, "param_groups": [{**each, **ours} for each in state_dict["param_groups"]]}


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimizer's state out in memory as its parameters are.

    Loaded state has the layout of the file, which is another one if ``MODEL.CHANNELS_LAST`` has
    changed. Fused optimizers go through both as through plain rows of numbers.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not torch.is_tensor(value) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != "ReduceLROnPlateau":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    return ReduceLROnPlateau(
        optimizer,
        mode="min",
        factor=cfg.SOLVER.PLATEAU.FACTOR,
        patience=cfg.SOLVER.PLATEAU.PATIENCE,
        threshold=cfg.SOLVER.PLATEAU.THRESHOLD,
    )


class ValidationLossWatcher(MeasurementHook):
    """Base of hooks that act on every new validation loss; place them after what measures it."""

    def after_step(self) -> None:
        """Act if the validation loss was measured in this step."""
        value, iteration = self.trainer.storage.latest().get(VALIDATION_LOSS, (math.nan, -1))
        if iteration == self.trainer.iter:
            self.act(float(value))

    def act(self, loss: float) -> None:
        """React to a new validation loss."""
        raise NotImplementedError


class PlateauSchedule(ValidationLossWatcher):
    """Lower the learning rate when the validation loss stops falling.

    Args:
        scheduler: torch's scheduler, bound to the optimizer; counts measurements, not iterations.
    """

    def __init__(self, scheduler: ReduceLROnPlateau) -> None:
        self._scheduler = scheduler

    def after_step(self) -> None:
        """Record the learning rate of this step, then watch."""
        rate = self._scheduler.optimizer.param_groups[0]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        super().after_step()

    def repeat(self) -> None:
        """Watch; the rate of the iteration that the run resumes from is recorded already."""
        super().after_step()

    def act(self, loss: float) -> None:
        """Pass the loss to the scheduler, and log when it lowers the rate."""
        before = self._scheduler.optimizer.param_groups[0]["lr"]
        self._scheduler.step(loss)
        after = self._scheduler.optimizer.param_groups[0]["lr"]
        if after != before:
            logging.getLogger(__name__).info(
                "Validation loss on a plateau: learning rate %g -> %g", before, after
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's best loss, counters and settings."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore best loss and counters; the settings stay those of the config."""
        counters = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        self._scheduler.load_state_dict({name: state[name] for name in counters})


class EarlyStopping(ValidationLossWatcher):
    """End training when the validation loss has found no new minimum for a while.

    Args:
        patience: measurements in a row without a new minimum after which training ends.
        threshold: part of the best loss by which a new minimum must be below it, as for
            :class:`PlateauSchedule`.
        hand_over: called at that end, when the trainer's ``max_iter`` is the number of iterations
            done, and at the regular one if that is no new minimum: makes the best weights those of
            ``model_final.pth``.
    """

    def __init__(
        self, patience: int, threshold: float, hand_over: Callable[[], object] = lambda: None
    ) -> None:
        self._patience = patience
        self._threshold = threshold
        self._hand_over = hand_over
        self.best = math.inf
        self.bad = 0
        self.stopped = False

    def before_train(self) -> None:
        """Do not continue a run that was resumed after its early end."""
        if self.stopped:
            self.trainer.max_iter = self.trainer.start_iter

    def act(self, loss: float) -> None:
        """Count, stop when patience is over, and hand over the best weights at the end."""
        if self.stopped:
            return
        # ReduceLROnPlateau's comparison.
        if loss < self.best * (1 - self._threshold):
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
            self.trainer.max_iter = self.trainer.iter + 1
        if is_due(self.trainer):
            self._hand_over()

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss, the counter and whether the end was reached."""
        return {"best": self.best, "bad": self.bad, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best, self.bad, self.stopped = state["best"], state["bad"], state["stopped"]
