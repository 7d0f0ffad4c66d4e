"""Train the best trials of a search again with other seeds: a winner by mean, not by luck.

The runs are trials of a study of their own in the same database. Workers share them and take them
over from killed ones as in the search; nothing prunes them, and the search's sampler does not see
them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
    TRIAL_SURPLUS,
    confirmation_name,
    finished_trials,
    mapping_attribute,
    original_number,
    ranked_trials,
)
from cityscapes_maskrcnn.search.worker import Worker

logger = logging.getLogger(__name__)

# Seeds that a trial is trained with beside the search's own.
OTHER_SEEDS: Final = 2
_TRIAL, _SEED = "trial", "seed"


def confirm(storage: BaseStorage, search: Worker, *, count: int, folder: Path) -> None:
    """Train the best trials with other seeds, and note all scores in the study of the search.

    The same call goes on after an interruption, with more trials too.

    Args:
        storage: of the study.
        search: the worker that ran the trials.
        count: how many of the best trials.
        folder: holds a folder for each run.

    Raises:
        InputError: see :meth:`.Worker.run`.
        Stopped: see there.
    """
    study = optuna.create_study(
        study_name=confirmation_name(search.study.study_name),
        storage=storage,
        direction="maximize",
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    config = search.study.user_attrs[STUDY_CONFIG]
    study.set_user_attr(STUDY_CONFIG, config)
    trials = {trial.number: trial for trial in search.study.get_trials(deepcopy=False)}
    best = ranked_trials(finished_trials(list(trials.values())))[:count]
    seeds = [max(0, config["SEED"]) + number for number in range(1, OTHER_SEEDS + 1)]
    numbers = [trial.number for trial in best]
    logger.info("Confirming trials %s with seeds %s", numbers, seeds)
    for trial in best:
        for seed in seeds:
            study.enqueue_trial({_TRIAL: trial.number, _SEED: seed}, skip_if_exists=True)
    _Confirmation(
        study=study,
        space=search.space,
        runner=search.runner,
        folder=folder,
        total_iterations=search.total_iterations,
        max_failures=search.max_failures,
        patience=search.patience,
        search=search,
        trials=trials,
    ).run(None)
    scores = {trial.number: {config["SEED"]: trial.values[0]} for trial in best}
    for run in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        number = run.params[_TRIAL]
        first = {config["SEED"]: trials[number].values[0]}
        scores.setdefault(number, first)[run.params[_SEED]] = run.values[0]
    search.study.set_user_attr(CONFIRMED_SCORES, scores)
    for number, by_seed in confirmed_scores(search.study).items():
        logger.info("Trial %d: %s", number, describe_scores(list(by_seed.values())))


def confirmed_scores(study: optuna.Study) -> dict[int, dict[int, float]]:
    """Read the scores of the confirmed trials: by trial, the best mean first, and by seed."""
    scores = {
        int(number): {int(seed): float(score) for seed, score in by_seed.items()}
        for number, by_seed in mapping_attribute(study, CONFIRMED_SCORES).items()
    }
    return dict(sorted(scores.items(), key=lambda item: (-mean(item[1].values()), item[0])))


def describe_scores(scores: Sequence[float]) -> str:
    """``20.12 (mean of 3 seeds, 19.8 to 20.4)``."""
    spread = f"{min(scores):.4g} to {max(scores):.4g}"
    return f"{mean(scores):.6g} (mean of {len(scores)} seeds, {spread})"


@dataclass(kw_only=True)
class _Confirmation(Worker):
    """Runs the queued pairs of a trial and a seed.

    Attributes:
        search: knows the config keys of its trials.
        trials: of the search, by number.
    """

    search: Worker
    trials: Mapping[int, FrozenTrial]

    def settings(self, values: dict[str, Value]) -> dict[str, Any]:
        """Get the config keys of a trial of the search, with another seed."""
        trial = self.trials[int(values[_TRIAL])]
        return {**self.search.settings(trial.params), "SEED": values[_SEED]}

    def _draw(self, trial: optuna.Trial) -> dict[str, Value]:
        return {name: trial.suggest_int(name, 0, 2**31 - 1) for name in (_TRIAL, _SEED)}

    def _is_surplus(self, trials: Sequence[FrozenTrial], number: int, budget: int | None) -> bool:  # noqa: ARG002
        """Whether nobody queued this run, or another with a lower number is the same.

        Two workers that reach the end of a search together may both queue a run.
        """
        queued = _queued_values(trials[number])
        return queued is None or any(
            _queued_values(trial) == queued
            and original_number(trial) < original_number(trials[number])
            and TRIAL_SURPLUS not in trial.user_attrs
            for trial in trials
        )


def _queued_values(trial: FrozenTrial) -> Any:
    return trial.system_attrs.get("fixed_params")
