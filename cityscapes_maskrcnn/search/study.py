"""A study in its database: its attributes, who may join it, which trials count, its progress."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from cityscapes_maskrcnn.search.space import SearchSpace
from cityscapes_maskrcnn.utils.errors import InputError

# Attributes of a study.
STUDY_SPACE: Final = "search_space"
STUDY_CONFIG: Final = "config"
# Scores by trial and seed, once the best trials have been trained again with other seeds.
CONFIRMED_SCORES: Final = "confirmed_scores"
# In the config of a study, where the path of MODEL.WEIGHTS is not: it differs between machines.
WEIGHTS_CONTENT: Final = "content of MODEL.WEIGHTS"
# Which images the names in DATASETS.TRAIN and DATASETS.TEST stand for.
IMAGES_CONTENT: Final = "content of DATASETS"
# There too: whether the trials are scored on generated scenes.
GENERATED_SCENES: Final = "generated scenes"
# And on how many images.
SCORED_IMAGES: Final = "scored images"
# Attributes of a trial.
TRIAL_REASON: Final = "reason"
TRIAL_ITERATIONS: Final = "iterations"
TRIAL_SETTINGS: Final = "config_keys"
TRIAL_WORKER: Final = "worker"
# The number of the trial that TRIAL_WORKER has started.
TRIAL_CLAIM: Final = "claim"
TRIAL_SURPLUS: Final = "surplus"
# How often a worker was killed while it ran the trial.
TRIAL_KILLS: Final = "kills"
# How often a trial whose worker was killed is taken up again.
_MAX_KILLS: Final = 3


def mapping_attribute(study: optuna.Study, attribute: str) -> Mapping[str, Any]:
    """Read an attribute of a study that holds a mapping.

    Empty if there is none; other programs may keep something else by that name.
    """
    value = study.user_attrs.get(attribute)
    return value if isinstance(value, Mapping) else {}


def confirmation_name(study_name: str) -> str:
    """Name of the study that holds the runs with other seeds."""
    return f"{study_name} (confirmed)"


def join_study(
    storage: BaseStorage,
    *,
    name: str,
    space: SearchSpace,
    config: Mapping[str, Any],
    sampler: BaseSampler,
    pruner: BasePruner,
) -> optuna.Study:
    """Create a study, or join one of the same search space and config.

    Args:
        storage: where it is kept.
        name: of the study.
        space: what is searched; its first values become the first trial.
        config: what all trials have in common, by key; values that JSON can hold.
        sampler: chooses parameters.
        pruner: ends trials early.

    Raises:
        InputError: the study searches another space, or with another config, or is another
            program's.
    """
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, pruner=pruner, direction="maximize"
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        # The worker that creates a study describes it a moment later, unless it was killed.
        attempts = 20
        while attempts and STUDY_SPACE not in study.user_attrs:
            attempts -= 1
            time.sleep(0.1)
    before = study.user_attrs
    if STUDY_SPACE in before:
        difference = space.difference(SearchSpace.from_config(before[STUDY_SPACE]))
        if difference:
            raise InputError(
                f"study {name!r} has another search space: {difference}; choose another --study"
            )
        _require_same_config(name, config, before[STUDY_CONFIG])
    elif any(trial.state != TrialState.WAITING for trial in study.trials):
        raise InputError(
            f"study {name!r} was made by another program, and its search space is not known; "
            "choose another --study"
        )
    else:
        if space.first:
            study.enqueue_trial(space.first, skip_if_exists=True)
        study.set_user_attr(STUDY_CONFIG, dict(config))
        study.set_user_attr(STUDY_SPACE, space.to_json())
    return study


def _require_same_config(name: str, config: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    if IMAGES_CONTENT in config and IMAGES_CONTENT not in before:
        raise InputError(
            f"study {name!r} does not say on which images it trains: its scores cannot be compared;"
            " use another --study"
        )
    # Another key that one of the two does not have came with another version of this project. What
    # pictures say of the images decides nothing: IMAGES_CONTENT does.
    for key in sorted((before.keys() & config.keys()) - {GENERATED_SCENES, SCORED_IMAGES}):
        if before[key] == config[key]:
            continue
        difference = f"{before[key]}, not {config[key]}"
        if key in (WEIGHTS_CONTENT, IMAGES_CONTENT):
            what = f"{key.removeprefix('content of ')} whose content differs ({difference})"
            same = "weights" if key == WEIGHTS_CONTENT else "images"
        else:
            what, same = f"{key} {difference}", "config"
        raise InputError(
            f"study {name!r} trains with {what}: its scores cannot be compared; use "
            f"another --study or the same {same}"
        )


def counting_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials of any state, without those that were queued again and surplus ones.

    Surplus is also what was queued again a second time: workers of two machines may both do it.
    """
    # By the trials that it repeats, the first one that repeats them.
    first: dict[tuple[int, ...], int] = {}
    for trial in trials:
        first.setdefault(_retry_history(trial), trial.number)
    retried = {number for history in first for number in history}
    return [
        trial
        for trial in trials
        if trial.number not in retried
        and TRIAL_SURPLUS not in trial.user_attrs
        and (not _retry_history(trial) or first[_retry_history(trial)] == trial.number)
    ]


def finished_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete, pruned and failed trials, see :func:`counting_trials`."""
    return [trial for trial in counting_trials(trials) if trial.state.is_finished()]


def lost_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials of killed workers that failed for no reason of their own and are to be queued again.

    Not those whose workers were killed time and again: what they do may be the cause.
    """
    return [
        trial
        for trial in counting_trials(trials)
        if trial.state == TrialState.FAIL
        and TRIAL_REASON not in trial.user_attrs
        and trial.user_attrs.get(TRIAL_KILLS, 0) < _MAX_KILLS
    ]


def original_number(trial: FrozenTrial) -> int:
    """Number of the trial that a retried trial was at first; another trial's own number."""
    return min([trial.number, *_retry_history(trial)])


def _retry_history(trial: FrozenTrial) -> tuple[int, ...]:
    # Set by Optuna's RetryHeartbeatStaleTrialCallback.
    return tuple(trial.system_attrs.get("retry_history", ()))


def progress(trials: Sequence[FrozenTrial], budget: int, now: datetime | None = None) -> str:
    """Describe in one line how far a study is.

    Args:
        trials: all of the study.
        budget: number of trials that shall finish.
        now: local time; default: the present.

    Returns:
        Such as ``12 of 42 trials (7 pruned, 1 failed), best 20.21 of trial 3, ETA 5:20:00 (at
        14:05)``.
    """
    done = finished_trials(trials)
    pruned, failed = (
        sum(trial.state == state for trial in done)
        for state in (TrialState.PRUNED, TrialState.FAIL)
    )
    best = ranked_trials(trials)[:1]
    line = f"{len(done)} of {budget} trials ({pruned} pruned, {failed} failed), " + (
        f"best {best[0].value:.2f} of trial {best[0].number}" if best else "none complete yet"
    )
    left = budget - len(done)
    seconds = [trial.duration.total_seconds() for trial in done[-10:] if trial.duration]
    if left <= 0 or not seconds:
        return line
    workers = max(1, sum(trial.state == TrialState.RUNNING for trial in trials))
    # The mean of the last ten: pruning makes later trials shorter.
    rest = timedelta(seconds=round(sum(seconds) / len(seconds) * left / workers))
    return f"{line}, ETA {rest} (at {(now or datetime.now()) + rest:%a %H:%M})"


def ranked_trials(trials: Sequence[FrozenTrial], maximize: bool = True) -> list[FrozenTrial]:
    """The complete trials, the best first; of equal values the earliest first."""
    # In a damaged database a complete trial may have no value.
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.values]
    sign = -1 if maximize else 1
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))
