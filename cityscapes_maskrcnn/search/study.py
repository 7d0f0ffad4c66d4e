"""What a study says about itself: its attributes, which trials count, the best, how far it is."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from cityscapes_maskrcnn.search.space import SearchSpace
from cityscapes_maskrcnn.utils.errors import InputError

# Attributes of a study and of its trials.
SPACE: Final = "search_space"
CONFIG: Final = "config"
# In the config of a study, where the path of MODEL.WEIGHTS is not: it differs between machines.
WEIGHTS_CONTENT: Final = "content of MODEL.WEIGHTS"
REASON: Final = "reason"
ITERATIONS: Final = "iterations"
SETTINGS: Final = "config_keys"
WORKER: Final = "worker"
SURPLUS: Final = "surplus"


def description(study: optuna.Study, attribute: str) -> Mapping[str, Any]:
    """What a study says under ``CONFIG`` or ``SPACE``.

    Empty if nothing; other programs may have something else than a mapping under that name.
    """
    value = study.user_attrs.get(attribute)
    return value if isinstance(value, Mapping) else {}


def join_study(
    storage: BaseStorage,
    name: str,
    space: SearchSpace,
    config: Mapping[str, Any],
    sampler: BaseSampler,
    pruner: BasePruner,
) -> optuna.Study:
    """Make a study, or join one of the same search space and config.

    Args:
        storage: where it is kept.
        name: of the study.
        space: what is searched; its first values become the first trial.
        config: what all trials have in common, by key; values that JSON can hold.
        sampler: chooses parameters.
        pruner: ends trials early.

    Raises:
        InputError: the study searches another space, or with another config, or was made by
            another program.
    """
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, pruner=pruner, direction="maximize"
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        for _ in range(20):
            # Whoever makes a study describes it a moment later.
            if SPACE in study.user_attrs or _has_begun(study):
                break
            time.sleep(0.1)
    there = study.user_attrs
    if SPACE not in there:
        if _has_begun(study):
            raise InputError(
                f"study {name!r} was made by another program, which did not say what it searches; "
                "take another --study"
            )
        if space.first:
            study.enqueue_trial(space.first, skip_if_exists=True)
        study.set_user_attr(CONFIG, dict(config))
        study.set_user_attr(SPACE, space.to_json())
        return study
    difference = space.difference(SearchSpace.from_json(there[SPACE]))
    if difference:
        raise InputError(
            f"study {name!r} is of another search space: {difference}; take another --study"
        )
    before = there.get(CONFIG, {})
    # A key that one of the two does not have came with another version of this project.
    other = [key for key in sorted(before.keys() & config.keys()) if before[key] != config[key]]
    if other:
        key = other[0]
        difference = f"{before[key]}, not {config[key]}"
        if key == WEIGHTS_CONTENT:
            what, same = f"MODEL.WEIGHTS of which the content differs ({difference})", "weights"
        else:
            what, same = f"{key} {difference}", "config"
        raise InputError(
            f"study {name!r} trains with {what}: its scores cannot be compared; take "
            f"another --study or the same {same}"
        )
    return study


def _has_begun(study: optuna.Study) -> bool:
    """Whether trials were run; the first one is queued before a study is described."""
    return any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def finished_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that ended, less those that were queued again and those one too many."""
    retried = {number for trial in trials for number in _retry_history(trial)}
    return [
        trial
        for trial in trials
        if trial.state.is_finished()
        and trial.number not in retried
        and SURPLUS not in trial.user_attrs
    ]


def original_number(trial: FrozenTrial) -> int:
    """Number of the trial that a retried trial was at first; another trial's own number."""
    return min([trial.number, *_retry_history(trial)])


def progress(trials: Sequence[FrozenTrial], budget: int, now: datetime | None = None) -> str:
    """Describe in one line how far a study is.

    Args:
        trials: all of the study.
        budget: number of trials that shall finish.
        now: for the time of arrival; default: the present.

    Returns:
        Such as ``12 of 42 trials (7 pruned, 1 failed), best 20.21 of trial 3, ETA 5:20:00 (at
        14:05)``.
    """
    done = finished_trials(trials)
    counts = {
        word: sum(trial.state == state for trial in done)
        for word, state in (("pruned", TrialState.PRUNED), ("failed", TrialState.FAIL))
    }
    some = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    line = f"{len(done)} of {budget} trials{f' ({some})' if some else ''}"
    best = best_trial(trials)
    line += f", best {best.value:.2f} of trial {best.number}" if best else ", none complete yet"
    left = budget - len(done)
    seconds = [trial.duration.total_seconds() for trial in done[-10:] if trial.duration]
    if left <= 0 or not seconds:
        return line
    workers = max(1, sum(trial.state == TrialState.RUNNING for trial in trials))
    # The mean of the last ten: pruning makes later trials shorter.
    rest = timedelta(seconds=round(sum(seconds) / len(seconds) * left / workers))
    return f"{line}, ETA {rest} (at {(now or datetime.now()) + rest:%a %H:%M})"


def best_trial(trials: Sequence[FrozenTrial], maximize: bool = True) -> FrozenTrial | None:
    """The complete trial with the best value, the earliest of equals; None if none is complete."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = 1 if maximize else -1
    return max(complete, key=lambda trial: (sign * trial.values[0], -trial.number), default=None)


def _retry_history(trial: FrozenTrial) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback.retry_history(trial)
