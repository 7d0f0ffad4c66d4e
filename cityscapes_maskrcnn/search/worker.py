"""One of the workers that share a search: it respects the budget and takes over lost trials."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from cityscapes_maskrcnn.search.space import SearchSpace, Value, config_keys
from cityscapes_maskrcnn.search.study import (
    STUDY_CONFIG,
    TRIAL_CLAIM,
    TRIAL_ITERATIONS,
    TRIAL_KILLS,
    TRIAL_REASON,
    TRIAL_SETTINGS,
    TRIAL_SURPLUS,
    TRIAL_WORKER,
    counting_trials,
    finished_trials,
    lost_trials,
    original_number,
    progress,
)
from cityscapes_maskrcnn.search.trial import Outcome, TrialEnd, TrialRunner, claim_folder
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.locks import file_lock
from cityscapes_maskrcnn.utils.process_identity import is_gone, this_process
from cityscapes_maskrcnn.utils.stop import Stopped

logger = logging.getLogger(__name__)

# A trial that is seen unclaimed for so many seconds counts as one whose worker was killed.
_UNCLAIMED = 60.0


class _TakenError(BaseException):
    """Another worker has started the same trial: Optuna must not note anything about it."""


class _TrialFailed(Exception):  # noqa: N818 - Optuna's word is failed
    """Ends a trial as failed; the reason, if it counts, is in its attributes."""


@dataclass(kw_only=True)
class Worker:
    """Runs trials of a study until its budget is used up; a subclass may run other trials.

    Attributes:
        study: shared with other workers.
        space: what is searched.
        runner: trains.
        folder: holds a folder for each trial, ``0007`` for trial 7.
        total_iterations: of a whole trial; after the last one it is too late to prune.
        max_failures: give up after so many failed trials in a row.
        patience: seconds between two looks at the trials of other workers.
    """

    study: optuna.Study
    space: SearchSpace
    runner: TrialRunner
    folder: Path
    total_iterations: int
    max_failures: int = 3
    patience: float = 2.0
    _failures: dict[int, str] = field(default_factory=dict)
    _unclaimed: dict[int, float] = field(default_factory=dict)

    def run(self, budget: int | None) -> None:
        """Run trials until the study has ``budget`` finished ones, whoever ran them.

        Complete, pruned and failed trials count; a killed or interrupted one that was given back
        does not. Trials of killed workers are taken over.

        Args:
            budget: number of trials of the whole study; None: those that are queued.

        Raises:
            InputError: trials fail one after the other, or a folder cannot be used.
            Stopped: this process was asked to stop; its trial was given back.
        """
        waiting_for: list[int] = []
        while True:
            if self.runner.stop.signals:
                raise Stopped(self.runner.stop.signals[0])
            self._take_over()
            trials = self.study.get_trials(deepcopy=False)
            running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
            done = len(finished_trials(trials))
            goal = len(counting_trials(trials)) if budget is None else budget
            if done >= goal:
                return
            if done + len(running) < goal:
                self._run_one(budget)
                logger.info("%s", progress(self.study.get_trials(deepcopy=False), goal))
                continue
            if running != waiting_for:
                logger.info("Waiting for trials of other, or killed, workers: %s", running)
                waiting_for = running
            time.sleep(self.patience)

    def settings(self, values: dict[str, Value]) -> dict[str, Any]:
        """Turn the values of a trial into its config keys."""
        keys = {name: parameter.key for name, parameter in self.space.parameters.items()}
        negative, positive = self.study.user_attrs[STUDY_CONFIG]["MODEL.RPN.IOU_THRESHOLDS"]
        return config_keys(values, keys, (negative, positive))

    def _draw(self, trial: optuna.Trial) -> dict[str, Value]:
        return self.space.suggest(trial)

    def _is_surplus(self, trials: Sequence[FrozenTrial], number: int, budget: int | None) -> bool:
        """Whether a trial that has just started is one more than the budget.

        Two workers may both have seen room for one more. Who has claimed a trial goes on, else the
        one with the lower number; one that is queued again keeps its number and its place.
        """
        own = original_number(trials[number])
        before = sum(
            original_number(trial) < own
            or (TRIAL_WORKER in trial.user_attrs and trial.number != number)
            for trial in counting_trials(trials)
            if trial.state in (TrialState.RUNNING, TrialState.WAITING)
        )
        return budget is not None and len(finished_trials(trials)) + before >= budget

    def _take_over(self) -> None:
        """Queue the trials of killed workers again.

        On other machines these show by their missing heartbeats. On this machine there is no need
        to wait for that. They fail first, and those that another worker let fail are queued too: it
        may have been killed before it could do so.
        """
        fail_stale_trials(self.study)
        now, before = time.monotonic(), self._unclaimed
        self._unclaimed = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(TRIAL_WORKER)
            if worker is None:
                # Not by when it started: clocks of machines differ, and Optuna's are local times.
                self._unclaimed[trial.number] = before.get(trial.number, now)
                gone = now - self._unclaimed[trial.number] > _UNCLAIMED
            else:
                gone = is_gone(worker)
            if gone:
                # Another worker may have been quicker: then the trial is no longer running.
                with suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in lost_trials(self.study.get_trials(deepcopy=False)):
            self._queue_again(trial.number, killed=True)

    def _run_one(self, budget: int | None) -> None:
        started: list[int] = []

        def objective(trial: optuna.Trial) -> float:
            started.append(trial.number)
            # SQLite may hand one queued trial to two workers, which are on this machine then.
            with file_lock(self.folder / "lock"):
                trials = self.study.get_trials(deepcopy=False)
                if TRIAL_CLAIM in trials[trial.number].user_attrs:
                    raise _TakenError
                counts = any(trial.number == other.number for other in counting_trials(trials))
                if not counts or self._is_surplus(trials, trial.number, budget):
                    trial.set_user_attr(TRIAL_SURPLUS, True)
                    raise _TrialFailed
                trial.set_user_attr(TRIAL_WORKER, this_process())
                trial.set_user_attr(TRIAL_CLAIM, trial.number)
            return self._train(trial)

        verbosity = optuna.logging.get_verbosity()
        # Optuna logs failed trials with a traceback; the reason is in the log already.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.study.optimize(objective, n_trials=1, catch=(_TrialFailed,))
        except _TakenError:
            logger.info("Trial %d was also started by another worker, which runs it", started[0])
        except (Stopped, InputError):
            self._queue_again(started[0])
            logger.info("Trial %d was put back; the same command continues it", started[0])
            raise
        except Exception as error:
            _raise_storage_error(error)
            taken = isinstance(error, (ValueError, optuna.exceptions.UpdateFinishedTrialError))
            if not (taken and started and self._trial(started[0]).state.is_finished()):
                raise
            logger.warning("Trial %d was given to another worker: no heartbeat", started[0])
        finally:
            optuna.logging.set_verbosity(verbosity)
        if len(self._failures) >= self.max_failures:
            # Their parameters are not the cause, so they run again when it is gone.
            for number in self._failures:
                self._queue_again(number)
            raise InputError(
                f"{len(self._failures)} trials failed in a row, the last: "
                f"{list(self._failures.values())[-1]} (see {self.folder}); remove the cause, then "
                "run the same command again"
            )

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=True)[number]

    def _queue_again(self, number: int, killed: bool = False) -> None:
        """Queue a failed trial again, once; whoever takes it goes on in its folder."""
        with file_lock(self.folder / "lock"):
            trials = self.study.get_trials(deepcopy=True)
            trial = trials[number]
            if trial not in counting_trials(trials):
                return
            trial.set_user_attr(TRIAL_KILLS, trial.user_attrs.get(TRIAL_KILLS, 0) + killed)
            for attribute in (TRIAL_CLAIM, TRIAL_ITERATIONS, TRIAL_REASON, TRIAL_WORKER):
                trial.user_attrs.pop(attribute, None)
            RetryHeartbeatStaleTrialCallback()(self.study, trial)

    def _train(self, trial: optuna.Trial) -> float:
        """Train one trial; its score."""
        values = self._draw(trial)
        number = original_number(self._trial(trial.number))
        folder = self.folder / f"{number:04d}"
        again = f" (again trial {number})" if number != trial.number else ""
        listed = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        logger.info("Trial %d%s: %s", trial.number, again, listed)
        identity = {
            "study": self.study.study_name,
            "config": self.study.user_attrs[STUDY_CONFIG],
            "trial": number,
            "parameters": values,
        }
        claim_folder(folder, identity)
        settings = self.settings(values)
        trial.set_user_attr(TRIAL_SETTINGS, settings)

        def prune(iterations: int, score: float) -> bool:
            # Detectron2 counts one more when it evaluates after the last iteration.
            done = min(iterations, self.total_iterations)
            progressed = f"{done} of {self.total_iterations} iterations, score {score:.2f}"
            logger.info("Trial %d: %s", trial.number, progressed)
            trial.report(score, done)
            return done < self.total_iterations and trial.should_prune()

        return self._conclude(trial, self.runner.run(folder, settings, prune))

    def _conclude(self, trial: optuna.Trial, outcome: Outcome) -> float:
        """Tell Optuna how a trial ended: by a value or an exception."""
        if outcome.end == TrialEnd.STOPPED:
            raise Stopped(self.runner.stop.signals[0])
        trial.set_user_attr(TRIAL_ITERATIONS, min(outcome.iterations, self.total_iterations))
        if outcome.end == TrialEnd.FAILED:
            trial.set_user_attr(TRIAL_REASON, outcome.reason)
            logger.warning("Trial %d failed: %s", trial.number, outcome.reason)
            self._failures[trial.number] = outcome.reason
            raise _TrialFailed
        self._failures.clear()
        if outcome.end == TrialEnd.PRUNED:
            logger.info("Trial %d pruned after %d iterations", trial.number, outcome.iterations)
            raise optuna.TrialPruned
        return outcome.value


def _raise_storage_error(error: BaseException | None) -> None:
    """Raise the failure of the database behind another, if there is one.

    Optuna 5 stumbles over its own variables when it cannot store how a trial ended.
    """
    while error is not None:
        if isinstance(error, optuna.exceptions.StorageInternalError):
            raise error from error.__cause__
        error = error.__context__
