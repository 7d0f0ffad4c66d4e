"""The sampler of a search, whose choices do not depend on the worker that runs a trial."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial

from cityscapes_maskrcnn.search.study import counting_trials, original_number


class SeededByTrial(TPESampler):
    """Optuna's TPE, with random numbers that follow from a seed and the trials before.

    One generator for a whole worker would start anew with every restart, and workers with the
    same seed would draw the same trials. Here the result depends on the trials before and on
    nothing else: neither on who runs it nor on interruptions.

    Args:
        seed: negative: unpredictable.
        random_trials: trials drawn at random before TPE learns from the finished ones.
    """

    def __init__(self, seed: int, random_trials: int = 10) -> None:
        super().__init__(n_startup_trials=random_trials)
        self._base_seed = seed
        self._random_trials = random_trials

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Take the generator of this trial, of which TPE draws all parameters at once."""
        self._take_generator(study, trial)
        super().before_trial(study, trial)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter with a generator of its own: a killed trial may have drawn others."""
        self._take_generator(study, trial, param_name)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _take_generator(self, study: optuna.Study, trial: FrozenTrial, name: str = "") -> None:
        seed = None
        if self._base_seed >= 0:
            # Not the trial's number: one that was queued again after a kill has taken two.
            number = original_number(trial)
            trials = counting_trials(study.get_trials(deepcopy=False))
            before = sum(original_number(other) < number for other in trials)
            entropy = (self._base_seed, before, *name.encode())
            seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # TPE has no state but its generator: all else is read from the study.
        super().__init__(seed=seed, n_startup_trials=self._random_trials)
