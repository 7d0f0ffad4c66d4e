"""Train the best trials of a search again with other seeds, to choose by the mean, not by luck.

The runs are trials of a study of their own in the same database. Workers share them and take them
over from killed ones as in the search; nothing prunes them, and the search's sampler does not see
them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Final

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from cityscapes_maskrcnn.search.space import Value
from cityscapes_maskrcnn.search.study import (
    CONFIRMED_SCORES,
    STUDY_CONFIG,
    confirmation_name,
    counting_trials,
    finished_trials,
    mapping_attribute,
    original_number,
    ranked_trials,
)
from cityscapes_maskrcnn.search.worker import Worker
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable

logger = logging.getLogger(__name__)

# Seeds that a trial is trained with beside the search's own.
OTHER_SEEDS: Final = 2
_TRIAL, _SEED = "trial", "seed"


def confirm(storage: BaseStorage, search: Worker, *, count: int, folder: Path) -> None:
    """Train the best trials with other seeds, and note all scores in the study of the search.

    The same call goes on after an interruption, with more trials too, and runs again what failed.

    Args:
        storage: of the study.
        search: the worker that ran the trials.
        count: how many of the best trials.
        folder: holds a folder for each run.

    Raises:
        InputError: see :meth:`.Worker.run`.
        Stopped: see there.
    """
    best = ranked_trials(finished_trials(search.study.get_trials(deepcopy=False)))[:count]
    if not best:
        logger.info("No trial is complete: there is none to confirm")
        return
    study = optuna.create_study(
        study_name=confirmation_name(search.study.study_name),
        storage=storage,
        direction="maximize",
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    config = search.study.user_attrs[STUDY_CONFIG]
    study.set_user_attr(STUDY_CONFIG, config)
    seeds = [max(0, config["SEED"]) + number for number in range(1, OTHER_SEEDS + 1)]
    numbers = [trial.number for trial in best]
    logger.info("Confirming trials %s with seeds %s", numbers, seeds)
    confirmation = _Confirmation(
        study=study,
        space=search.space,
        runner=search.runner,
        folder=folder,
        total_iterations=search.total_iterations,
        max_failures=search.max_failures,
        patience=search.patience,
        search=search,
    )
    confirmation.queue([{_TRIAL: number, _SEED: seed} for number in numbers for seed in seeds])
    confirmation.run(None)
    scores = {trial.number: {config["SEED"]: trial.values[0]} for trial in best}
    # Other workers may have queued trials that did not exist when this one began.
    trials = search.study.get_trials(deepcopy=False)
    for run in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        number = run.params[_TRIAL]
        first = {config["SEED"]: trials[number].values[0]}
        scores.setdefault(number, first)[run.params[_SEED]] = run.values[0]
    search.study.set_user_attr(CONFIRMED_SCORES, scores)
    for number, by_seed in confirmed_scores(search.study).items():
        logger.info("Trial %d: %s", number, describe_scores(list(by_seed.values())))


def confirmed_scores(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Read the scores of the confirmed trials: by trial, the best mean first, and by seed.

    Trials of which runs failed come last: a single score may be luck.

    Raises:
        InputError: another program keeps something else by that name.
    """
    try:
        scores = {
            int(number): {int(seed): float(score) for seed, score in by_seed.items()}
            for number, by_seed in mapping_attribute(study, CONFIRMED_SCORES).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"study {study.study_name!r}: its attribute {CONFIRMED_SCORES} holds no scores by "
            f"trial and seed: {printable(error)}"
        ) from error

    def rank(number: int) -> tuple[float, ...]:
        by_seed = scores[number]
        return -len(by_seed), -mean(by_seed.values()), number

    return {number: scores[number] for number in sorted(scores, key=rank)}


def describe_scores(scores: Sequence[float]) -> str:
    """``20.12 (mean of 3 seeds, 19.8 to 20.4)``."""
    spread = f"{min(scores):.4g} to {max(scores):.4g}"
    return f"{mean(scores):.6g} (mean of {len(scores)} seeds, {spread})"


@dataclass(kw_only=True)
class _Confirmation(Worker):
    """Runs the queued pairs of a trial and a seed.

    Attributes:
        search: knows its trials and their config keys.
    """

    search: Worker

    def queue(self, runs: Sequence[dict[str, int]]) -> None:
        """Queue the runs that are new, and again those that failed."""
        for run in runs:
            self.study.enqueue_trial(run, skip_if_exists=True)
        for trial in finished_trials(self.study.get_trials(deepcopy=False)):
            if trial.state == TrialState.FAIL and _queued_values(trial) in runs:
                self._queue_again(trial.number)

    def settings(self, values: dict[str, Value]) -> dict[str, Any]:
        """Get the config keys of a trial of the search, with another seed."""
        trial = self.search.study.get_trials(deepcopy=False)[int(values[_TRIAL])]
        return {**self.search.settings(trial.params), "SEED": values[_SEED]}

    def _draw(self, trial: optuna.Trial) -> dict[str, Value]:
        return {name: trial.suggest_int(name, 0, 2**31 - 1) for name in (_TRIAL, _SEED)}

    def _is_surplus(self, trials: Sequence[FrozenTrial], number: int, budget: int | None) -> bool:  # noqa: ARG002
        """Whether nobody queued this run, or another that was queued earlier is the same.

        Two workers that reach the end of a search together may both queue a run.
        """
        queued = _queued_values(trials[number])
        return queued is None or any(
            _queued_values(trial) == queued and _age(trial) < _age(trials[number])
            for trial in counting_trials(trials)
        )


def _age(trial: FrozenTrial) -> tuple[int, int]:
    # Two retries of one run have the same original.
    return original_number(trial), trial.number


def _queued_values(trial: FrozenTrial) -> Any:
    return trial.system_attrs.get("fixed_params")
