"""Studies that several tests look at."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest


@pytest.fixture(scope="session")
def worker() -> SimpleNamespace:
    """The program that the tests of killed workers start, as a module."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("search_worker.py"))))


@pytest.fixture
def rpn_study() -> Callable[..., optuna.Study]:
    """Make a study of the RPN's two thresholds, as another program would: no attributes."""

    def make(
        negative: tuple[float, float], positive: tuple[float, float], trials: int
    ) -> optuna.Study:
        def objective(trial: optuna.Trial) -> float:
            low = trial.suggest_float("rpn_negative_iou_thresh", *negative)
            return low + trial.suggest_float("rpn_positive_iou_thresh", *positive)

        study = optuna.create_study(direction="maximize")
        study.optimize(objective, n_trials=trials)
        return study

    return make
