"""Which parameters a trial gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState


class SeededByTrial(BaseSampler):
    """Optuna's TPE, with random numbers that follow from a seed and the number of the trial.

    One generator for a whole worker would start anew with every restart, and workers with the
    same seed would draw the same trials. Here the result depends on the trials before and on
    nothing else: neither on who runs it nor on interruptions.

    Args:
        seed: negative: unpredictable.
        random_trials: trials drawn at random before TPE learns from the finished ones.
    """

    def __init__(self, seed: int, random_trials: int = 10) -> None:
        self._seed = seed
        self._random_trials = random_trials
        self._sampler = TPESampler(n_startup_trials=random_trials)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Take the generator of this trial."""
        seed = None
        if self._seed >= 0:
            words = np.random.SeedSequence((self._seed, trial.number)).generate_state(1)
            seed = int(words[0])
        # It has no state but its generator: all else is read from the study.
        self._sampler = TPESampler(seed=seed, n_startup_trials=self._random_trials)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Leave to TPE which parameters are drawn together."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw these together."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one by itself."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Hand on the result."""
        self._sampler.after_trial(study, trial, state, values)
