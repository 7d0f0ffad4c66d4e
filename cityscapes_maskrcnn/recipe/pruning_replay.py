"""What pruning saves, measured on the recorded learning curves of a search without pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from cityscapes_maskrcnn.utils.errors import InputError

# Scores of a whole trial by the number of iterations done; the last one is its value.
Curve = Mapping[int, float]


@dataclass(frozen=True)
class Replay:
    """One search over recorded trials, with pruning, beside the one without.

    Attributes:
        spent: training iterations of all trials, with pruning.
        spent_unpruned: without.
        best: best score of a complete trial, with pruning.
        best_unpruned: without.
        to_best: iterations until the pruned search had a score as good as ``best_unpruned``, or
            less by no more than the tolerance; None if it never had.
        to_best_unpruned: iterations until the unpruned search had one.
        best_as_long: best score that the unpruned search had after ``spent`` iterations, in trials
            that were complete by then.
    """

    spent: int
    spent_unpruned: int
    best: float
    best_unpruned: float
    to_best: int | None
    to_best_unpruned: int
    best_as_long: float


def recorded_curves(trials: Sequence[FrozenTrial]) -> list[Curve]:
    """Get the learning curves of the complete trials of a search.

    Raises:
        InputError: there are fewer than two, a trial was pruned, or trials were evaluated after
            different numbers of iterations.
    """
    if any(trial.state == TrialState.PRUNED for trial in trials):
        raise InputError("the study has pruned trials: record one with tune.py --no-prune")
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    curves = [dict(sorted(trial.intermediate_values.items())) for trial in complete]
    if len(curves) < 2 or not curves[0]:
        raise InputError(f"the study has {len(curves)} complete trials with scores: at least 2")
    if any(curve.keys() != curves[0].keys() for curve in curves):
        raise InputError("the trials were evaluated after different numbers of iterations")
    return list(curves)


def simulated_curves(
    trials: int, evaluations: int = 10, noise: float = 0.3, seed: int = 0
) -> list[Curve]:
    """Make up learning curves where real ones would take too long.

    A trial's score rises to a maximum that falls with the distance of its thresholds from an
    optimum, and with a frozen FPN; it gets there sooner or later by chance, and
    every evaluation has an error.

    Args:
        trials: number of curves.
        evaluations: of each, 100 iterations apart.
        noise: standard deviation of the error; the maximum is 20.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    curves: list[Curve] = []
    for _ in range(trials):
        fg, positive, negative = random.uniform((0.3, 0.6, 0.1), (0.7, 0.9, 0.4))
        top = 20 - 60 * (fg - 0.43) ** 2 - 25 * (positive - 0.75) ** 2
        top -= 10 * (negative - 0.2) ** 2 + 3 * (random.random() < 0.5)
        share = np.arange(1, evaluations + 1) / evaluations
        scores = top * (1 - np.exp(-5 * share / random.uniform(1, 2)))
        scores += random.normal(0, noise, evaluations)
        curves.append({100 * (i + 1): float(score) for i, score in enumerate(scores)})
    return curves


def replay(curves: Sequence[Curve], pruner: BasePruner, tolerance: float = 0.0) -> Replay:
    """Run trials again in the given order, letting the pruner end them early.

    Nothing is trained and nothing is drawn: the trials are those of the recorded search. What a
    sampler would have chosen otherwise for knowing less is left out.

    Args:
        curves: from :func:`recorded_curves`, in the order of the search.
        pruner: decides after every evaluation but the last.
        tolerance: a score is as good as the best if it is less by no more than this, in AP.

    Raises:
        InputError: the tolerance is negative.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance {tolerance}: at least 0")
    length = max(curves[0])
    finals = [curve[length] for curve in curves]
    best_unpruned = max(finals)
    as_good = best_unpruned - tolerance
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    spent, best, to_best = 0, -np.inf, None
    for curve in curves:
        trial = study.ask()
        done = _run(trial, curve)
        spent += done
        if done < length:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        study.tell(trial, curve[length])
        best = max(best, curve[length])
        if to_best is None and best >= as_good:
            to_best = spent
    optuna.logging.set_verbosity(verbosity)
    return Replay(
        spent=spent,
        spent_unpruned=length * len(curves),
        best=best,
        best_unpruned=best_unpruned,
        to_best=to_best,
        to_best_unpruned=length * (1 + [final >= as_good for final in finals].index(True)),
        # The first trial is never ended: there is nothing to compare it with.
        best_as_long=max(finals[: spent // length]),
    )


def replay_orders(
    curves: Sequence[Curve],
    make_pruner: Callable[[], BasePruner],
    orders: int,
    tolerance: float = 0.0,
    seed: int = 0,
) -> list[Replay]:
    """Replay in many random orders: one order alone says little of so few trials."""
    random = np.random.default_rng(seed)
    shuffled = [[curves[i] for i in random.permutation(len(curves))] for _ in range(orders)]
    return [replay(each, make_pruner(), tolerance) for each in shuffled]


def compute_to_best(replays: Sequence[Replay]) -> float:
    """Iterations for the best score, relative to those of the search without pruning.

    A pruned search may end the best trial early. Then it is repeated, so that the iterations of
    all searches are divided by the number of those that found the best score.

    Returns:
        The ratio; infinity if no search found the best score.
    """
    found = sum(each.to_best is not None for each in replays)
    return sum(each.spent / each.spent_unpruned for each in replays) / found if found else math.inf


def least_training(curves: Sequence[Curve]) -> float:
    """Training that finds the best score if trials of higher scores always go on, too.

    Every trial ends at the first evaluation that gives less than the best trial had there. That is
    a lower bound for pruners that rank the trials by their scores after as many iterations. Those
    that look at something else, such as how fast a score rises, may do with less.

    Args:
        curves: from :func:`recorded_curves`.
    """
    length = max(curves[0])
    best = max(curves, key=lambda curve: curve[length])
    ends = [
        next((done for done, score in curve.items() if score < best[done]), length)
        for curve in curves
    ]
    return fmean(ends) / length


def summary(curves: Sequence[Curve], replays: Sequence[Replay]) -> list[tuple[str, str]]:
    """Describe replays of recorded trials: what was measured and its mean over all orders."""
    reached = [each for each in replays if each.to_best is not None]
    rows = [
        ("training of a search", fmean(e.spent / e.spent_unpruned for e in replays)),
        ("searches that find the best score", len(reached) / len(replays)),
        ("training of all searches, for each that finds it", compute_to_best(replays)),
        (
            "best score found, mean of all searches",
            fmean(e.best / e.best_unpruned for e in replays),
        ),
        (
            "best score of fewer trials without pruning, as much training",
            fmean(e.best_as_long / e.best_unpruned for e in replays),
        ),
    ]
    if reached:
        with_pruning = fmean(each.to_best or 0 for each in reached)
        without = fmean(each.to_best_unpruned for each in reached)
        rows.insert(3, ("training until its moment, in those", with_pruning / without))
    rows.append(("least training of a rule that keeps the higher scores", least_training(curves)))
    return [(name, f"{100 * share:.0f} %" if math.isfinite(share) else "-") for name, share in rows]


def _run(trial: optuna.Trial, curve: Curve) -> int:
    """Report scores until the pruner ends the trial; the iterations that it ran."""
    for done, score in curve.items():
        trial.report(score, done)
        if done < max(curve) and trial.should_prune():
            return done
    return max(curve)
