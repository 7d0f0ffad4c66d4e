from __future__ import annotations

import optuna
import pytest
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from cityscapes_maskrcnn.recipe.pruning_replay import (
    Replay,
    recorded_curves,
    replay,
    replay_orders,
    simulated_curves,
    summary,
)
from cityscapes_maskrcnn.utils.errors import InputError

# Scores after 10, 20, 30 and 40 iterations.
GOOD = {10: 2.0, 20: 4.0, 30: 6.0, 40: 8.0}
BAD = {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}
BEST = {10: 3.0, 20: 5.0, 30: 7.0, 40: 9.0}
LATE = {10: 0.5, 20: 1.0, 30: 5.0, 40: 10.0}


def halving() -> SuccessiveHalvingPruner:
    return SuccessiveHalvingPruner(min_resource=10, reduction_factor=4)


def test_without_pruning_nothing_is_saved() -> None:
    assert replay([GOOD, BAD, BEST], NopPruner()) == Replay(120, 120, 9.0, 9.0, 120, 120)


def test_bad_trials_are_ended() -> None:
    # BAD ends after 10 of its 40 iterations: 40 + 10 + 40 = 90 instead of 120.
    assert replay([GOOD, BAD, BEST], halving()) == Replay(90, 120, 9.0, 9.0, 90, 120)
    # The best first: both others end after 10, and it was complete after its own 40.
    assert replay([BEST, GOOD, BAD], halving()) == Replay(60, 120, 9.0, 9.0, 40, 40)


def test_a_late_trial_is_lost() -> None:
    # It would have been the best, 10; it ends after 10 iterations, where it is the last.
    assert replay([GOOD, LATE], halving()) == Replay(50, 80, 8.0, 10.0, None, 80)


def test_orders() -> None:
    replays = replay_orders([GOOD, BAD, BEST], halving, 30)
    # 60: BEST first; 90: GOOD BEST or GOOD BAD BEST or BAD BEST; 120: BAD, GOOD, BEST.
    assert {each.spent for each in replays} == {60, 90, 120}
    assert replay_orders([GOOD, BAD, BEST], halving, 30) == replays
    rows = dict(summary(replays))
    assert rows["orders in which the best trial survives"] == "100 %"
    assert rows["best score found, relative to without pruning"] == "100 %"
    lost = dict(summary([replay([GOOD, LATE], halving())]))
    # 50 of 80 iterations; 8 of 10
    assert list(lost.values()) == ["62 %", "0 %", "80 %"]


def study(*states: TrialState) -> optuna.Study:
    made = optuna.create_study(direction="maximize")
    for state in states:
        trial = made.ask()
        trial.report(1.0, 20)
        trial.report(0.5, 10)
        made.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state=state)
    return made


def test_recorded_curves() -> None:
    recorded = study(TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE)
    curves = recorded_curves(recorded.trials)
    assert [list(curve.items()) for curve in curves] == [[(10, 0.5), (20, 1.0)]] * 2
    with pytest.raises(InputError, match=r"has pruned trials: record one with tune\.py"):
        recorded_curves(study(TrialState.COMPLETE, TrialState.PRUNED).trials)
    with pytest.raises(InputError, match="has 1 complete trials"):
        recorded_curves(study(TrialState.COMPLETE).trials)
    other = recorded.ask()
    other.report(1.0, 15)
    recorded.tell(other, 1.0)
    with pytest.raises(InputError, match="after different numbers of iterations"):
        recorded_curves(recorded.trials)


def test_simulated_curves_and_the_goal() -> None:
    """The default pruner, on 42 trials of 10 evaluations: a third of the compute."""
    curves = simulated_curves(42)
    assert len(curves) == 42
    assert all(list(curve) == list(range(100, 1001, 100)) for curve in curves)
    assert curves == simulated_curves(42)
    assert curves != simulated_curves(42, seed=1)
    pruner = lambda: SuccessiveHalvingPruner(min_resource=100, reduction_factor=4)  # noqa: E731
    replays = replay_orders(curves, pruner, 10)
    assert sum(each.spent for each in replays) < sum(each.spent_unpruned for each in replays) / 3
    # In some orders a good trial that started slowly is lost.
    mean = sum(each.best / each.best_unpruned for each in replays) / len(replays)
    assert mean > 0.97
