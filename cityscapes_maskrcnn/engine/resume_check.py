"""Check that a saved state is of a training run like the one that is to go on from it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import brief

#: What to do about a run that is not like the one that its checkpoint is of; ends a message.
RESUME_ALIKE: Final = (
    "a run can only continue as it was started: resume with the config.yaml in its OUTPUT_DIR, or "
    "name the checkpoint in MODEL.WEIGHTS and choose another OUTPUT_DIR"
)


def check_resumable(
    content: Mapping[str, Any],
    source: str,
    *,
    states: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
) -> None:
    """Verify that a file holds all of a model, and states that fit those of a training run.

    Resuming never starts a layer anew; ``MODEL.WEIGHTS_MAY_DIFFER`` is ignored.

    Args:
        content: of the file.
        source: the file, for messages.
        states: what the ``state_dict`` of the run's trainer, and of all else that is to be
            restored, returns before anything is loaded; by the names in the file.
        parameters: of the model, by name.

    Raises:
        InputError: a state is missing or does not fit, or a parameter is missing or has another
            shape.
    """
    for name, own in states.items():
        problem = _state_problem(content.get(name), own, name)
        if problem:
            raise InputError(
                f"{source}: holds no state of a training run to resume ({problem}); to "
                "start from its weights, name it in MODEL.WEIGHTS and choose another OUTPUT_DIR"
            )
    for name, parameter in parameters.items():
        ours, saved = tuple(parameter.shape), content["model"].get(name)
        theirs = tuple(saved.shape) if torch.is_tensor(saved) else "missing"
        if theirs != ours:
            raise InputError(
                f"{source}: {name} is {theirs} in the file and {ours} in the model; {RESUME_ALIKE}"
            )


def _state_problem(saved: Any, own: Any, name: str) -> str:
    """Describe where a saved state does not fit an object; empty: nowhere.

    Args:
        saved: from a file.
        own: what the object's ``state_dict`` returns. What it lacks, such as the moments of an
            optimizer that has made no step, is not compared.
        name: of the state, for the message.
    """
    if isinstance(own, Mapping):
        # What bfloat16 leaves where float16 keeps the scale of its gradients.
        if name == "grad_scaler" and saved == {}:
            return ""
        if not isinstance(saved, Mapping):
            return f"no {name}" if saved is None else f"{name} is {brief(saved)}"
        for key, value in own.items():
            if (key in saved or not _may_be_missing(name, key, value)) and (
                problem := _state_problem(saved.get(key), value, key)
            ):
                return problem
        return ""
    if isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)):
            return f"no {name}" if saved is None else f"{name} is {brief(saved)}"
        # Lengths are for the objects to compare.
        pairs = zip(saved, own, strict=False)
        return next(filter(None, (_state_problem(*pair, name) for pair in pairs)), "")
    if saved is None and own is not None:
        return f"no {name}"
    if isinstance(own, numbers.Real):
        fits = isinstance(saved, numbers.Real) and not math.isnan(saved)
        if name == "iteration":
            fits = fits and isinstance(saved, int) and saved >= 0
    else:
        fits = not isinstance(own, (str, Tensor)) or isinstance(saved, type(own))
    return "" if fits else f"{name} is {brief(saved)}"


def _may_be_missing(parent: str, key: str, own: Any) -> bool:
    """Whether an object can do without a part of its state that a file does not hold."""
    return (
        # Hooks come and go with the config; a schedule alone would begin anew.
        (parent == "hooks" and key != "LRScheduler")
        # Mixed precision may be switched on.
        or key == "grad_scaler"
        # Switches of torch's optimizers, which newer versions add.
        or (parent == "param_groups" and (own is None or isinstance(own, bool)))
    )
