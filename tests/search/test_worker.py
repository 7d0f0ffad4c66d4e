from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from cityscapes_maskrcnn.search.space import Parameter, SearchSpace
from cityscapes_maskrcnn.search.study import (
    TRIAL_CLAIM,
    TRIAL_REASON,
    TRIAL_SETTINGS,
    TRIAL_SURPLUS,
    TRIAL_WORKER,
    counting_trials,
    finished_trials,
    lost_trials,
    original_number,
    progress,
    ranked_trials,
)
from cityscapes_maskrcnn.search.trial import last_iteration
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.process_identity import this_process
from cityscapes_maskrcnn.utils.stop import Stopped


def test_a_search_goes_on_until_its_budget_is_used(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "none crash")
    search(2)
    first, second = search.trials()
    # The values to start with come first: 40 x (1 - |0.4154 - 0.5|) = 36.616
    assert first.params == {"fg_iou_thresh": 0.4154, "fpn_grad_flow": True}
    assert first.value == pytest.approx(36.616)
    assert first.user_attrs[TRIAL_SETTINGS] == {
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.2077, 0.4154],
        "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
        "MODEL.FPN.FREEZE": False,
    }
    assert first.intermediate_values.keys() == set(range(10, 101, 10))
    reason = "exit status 1: RuntimeError: index 8 is out of bounds"
    assert (second.state, second.user_attrs[TRIAL_REASON]) == (TrialState.FAIL, reason)
    # The same command does nothing; with a larger budget it goes on.
    search(2)
    assert len(search.trials()) == 2
    search(3)
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_broken_config_does_not_burn_the_budget(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "none memory diverge killed")
    with pytest.raises(InputError, match="3 trials failed in a row, the last: killed by SIGKILL"):
        search(42)
    before = search.trials()
    assert len(finished_trials(before)) == 1
    # Then the cause is gone, and the same trials run.
    monkeypatch.setenv("FAKE", "")
    search(4)
    done = finished_trials(search.trials())
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert [trial.params for trial in done] == [trial.params for trial in before[:4]]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_nothing_is_lost_when_a_worker_ends(
    search: Any, wait_until: Callable[..., None], number: signal.Signals, status: int
) -> None:
    process = search.start(2, FAKE="hold")
    wait_until((search.folder / "t" / "0000" / "last_checkpoint").exists)
    process.send_signal(number)
    assert search.finish() == [status]
    interrupted = search.trials()[0]
    search(2)
    trials = search.trials()
    assert [trial.state for trial in finished_trials(trials)] == [TrialState.COMPLETE] * 2
    # The interrupted trial went on in its folder, with its parameters, from its checkpoint.
    again = next(trial for trial in trials if original_number(trial) < trial.number)
    assert original_number(again) == 0
    assert again.params == interrupted.params
    assert again.intermediate_values.keys() == set(range(10, 101, 10))
    assert search.starts(0) == [0, 10]


def test_workers_share_the_budget(search: Any) -> None:
    # The first trial waits for a second one, which only the other worker can start.
    hold = {"FAKE_UNTIL": str(search.folder / "t" / "0001" / "runs.txt")}
    search.start(4, **hold)
    search.start(4, **hold)
    assert search.finish() == [0, 0]
    done = finished_trials(search.trials())
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert len({trial.user_attrs[TRIAL_WORKER] for trial in done}) == 2
    assert len({trial.params["fg_iou_thresh"] for trial in done}) == 4


def ask_elsewhere(study: optuna.Study) -> optuna.Trial:
    """Start a trial as a worker of another machine does."""
    trial = study.ask()
    trial.set_user_attr(TRIAL_WORKER, "another machine 1 1")
    return trial


def test_a_worker_of_another_machine_is_given_up_by_its_heartbeat(search: Any) -> None:
    search(1)
    study = search.module.join(search.url, heartbeat=1)
    lost = ask_elsewhere(study)
    lost.suggest_float("fg_iou_thresh", 0.3, 0.7)
    start = time.monotonic()
    study._storage.record_heartbeat(lost._trial_id)
    # It is the last of the budget: this worker waits until it counts as lost, and runs it.
    search(2, heartbeat=1)
    assert time.monotonic() - start > 2.0
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    trials = search.trials()
    assert original_number(trials[2]) == 1
    assert trials[2].params["fg_iou_thresh"] == trials[1].params["fg_iou_thresh"]


def test_a_trial_that_was_given_to_another_worker_is_left_to_it(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept, with its machine, finds its trial failed."""
    monkeypatch.setenv("FAKE_JUDGED", "1")
    report = optuna.Trial.report

    def sleep_then_report(self: optuna.Trial, value: float, step: int) -> None:
        if step == 20:
            search.study().tell(0, state=TrialState.FAIL)
        report(self, value, step)

    monkeypatch.setattr(optuna.Trial, "report", sleep_then_report)
    search.module.new_worker(search.module.join(search.url), search.folder / "t")._run_one(2)
    assert search.states() == ["FAIL"]
    # Its training was ended, after 20 iterations, and not begun anew.
    assert search.starts(0) == [0]
    assert last_iteration(search.folder / "t" / "0000" / "metrics.json") == 20


def test_a_trial_that_another_worker_has_started_too_is_left_to_it(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite may hand one queued trial to two workers."""
    study = search.module.join(search.url)
    trial = ask_elsewhere(study)
    trial.set_user_attr(TRIAL_CLAIM, 0)
    monkeypatch.setattr(study, "ask", lambda *_: trial)
    search.module.new_worker(study, search.folder / "t")._run_one(2)
    assert search.states() == ["RUNNING"]


def test_one_trial_too_many_is_dropped(search: Any) -> None:
    """Two workers see room for one trial and both start one."""
    search(1)
    study = search.module.join(search.url)
    ask_elsewhere(study)
    search.module.new_worker(study, search.folder / "t")._run_one(2)
    assert search.states() == ["COMPLETE", "RUNNING", "FAIL"]
    trials = search.trials()
    assert TRIAL_SURPLUS in trials[2].user_attrs
    assert len(finished_trials(trials)) == 1


def test_a_trial_that_is_queued_again_keeps_its_place(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has started a trial of its own just before: that one is dropped."""
    search(1)
    study = search.module.join(search.url)
    lost, later = ask_elsewhere(study), ask_elsewhere(study)
    worker = search.module.new_worker(study, search.folder / "t")
    study.tell(lost.number, state=TrialState.FAIL)
    worker._queue_again(lost.number)
    monkeypatch.setattr(study, "ask", lambda *_: later)
    worker._run_one(2)
    assert search.states() == ["COMPLETE", "FAIL", "FAIL", "WAITING"]
    assert TRIAL_SURPLUS in search.trials()[later.number].user_attrs


def test_an_unclaimed_trial_is_taken_over_by_this_clock(search: Any) -> None:
    """Optuna notes local times: nine hours ago may be now in another time zone."""
    search(1)
    study = search.module.join(search.url)
    study.ask()
    ask_elsewhere(study)
    with sqlite3.connect(search.folder / "s.db") as connection:
        moment = str(datetime.now() - timedelta(hours=9))
        connection.execute("update trials set datetime_start = ? where number > 0", (moment,))
    worker = search.module.new_worker(search.module.join(search.url), search.folder / "t")
    worker._take_over()
    assert search.states() == ["COMPLETE", "RUNNING", "RUNNING"]
    worker._unclaimed[1] -= 61.0  # as if a minute ago
    worker._take_over()
    assert search.states() == ["COMPLETE", "FAIL", "RUNNING", "WAITING"]


class KilledError(BaseException):
    """Ends a worker where it is, as SIGKILL does."""


def gone_worker() -> str:
    """Name a process of this machine that has ended."""
    place, _, _ = this_process().rpartition(" ")
    return f"{place} 1"


def lose_trial(search: Any, *, here: bool) -> None:
    """Complete trial 0, and leave trial 1 to a worker, of this or another machine, that is gone."""
    search(1)
    study = search.module.join(search.url)
    trial = ask_elsewhere(study)
    trial.suggest_float("fg_iou_thresh", 0.3, 0.7)
    if here:
        trial.set_user_attr(TRIAL_WORKER, gone_worker())
        return
    study._storage.record_heartbeat(trial._trial_id)
    with sqlite3.connect(search.folder / "s.db") as connection:
        connection.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")


@pytest.mark.parametrize("here", [True, False])
def test_a_trial_outlives_a_worker_that_is_killed_when_it_takes_it_over(
    search: Any, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """Between the two steps: it lets the trial fail, then queues it again.

    In Optuna's own code for workers of other machines, too.
    """
    lose_trial(search, here=here)
    owner, name = (optuna.Study, "tell") if here else (RDBStorage, "set_trial_state_values")
    call = getattr(owner, name)

    def call_then_die(*arguments: Any, **keywords: Any) -> Any:
        call(*arguments, **keywords)
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(owner, name, call_then_die)
        search(2)
    assert search.states() == ["COMPLETE", "FAIL"]
    search(2)
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    trials = search.trials()
    assert original_number(trials[2]) == 1
    assert trials[2].params["fg_iou_thresh"] == trials[1].params["fg_iou_thresh"]


def test_a_trial_outlives_a_worker_that_is_killed_when_it_gives_it_back(
    search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(search.module.Worker, "_conclude", stop)
        patched.setattr(search.module.Worker, "_queue_again", die)
        with pytest.raises(KilledError):
            search(1)
    assert search.states() == ["FAIL"]
    search(1)
    assert search.states() == ["FAIL", "COMPLETE"]
    assert original_number(search.trials()[1]) == 0


@pytest.mark.parametrize("shared", [True, False])
def test_two_workers_take_over_one_trial_at_once(
    search: Any, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """One does so while the other is about to; those of two machines share no folder."""
    lose_trial(search, here=True)
    folders = [search.folder / "t", search.folder / ("t" if shared else "elsewhere")]
    first, second = (
        search.module.new_worker(search.module.join(search.url), folder) for folder in folders
    )
    owner, name = (optuna.Study, "tell") if shared else (optuna.Study, "add_trial")
    call, calls = getattr(owner, name), []

    def let_the_second_worker_go_first(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            second._take_over()
        return call(*arguments, **keywords)

    monkeypatch.setattr(owner, name, let_the_second_worker_go_first)
    first._take_over()
    assert len(calls) == 2
    again = ["WAITING"] if shared else ["WAITING"] * 2
    assert search.states() == ["COMPLETE", "FAIL", *again]
    assert len(counting_trials(search.trials())) == 2
    search(2)
    search(3)
    # Of two that were queued again, one trains and the other is dropped.
    done = finished_trials(search.trials())
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 3
    assert [original_number(trial) for trial in done] == [0, 1, done[2].number]
    assert search.starts(1) == [0]


def test_a_trial_is_given_up_after_its_fourth_kill(search: Any) -> None:
    """What was given back is not counted."""
    search(1)
    study = search.module.join(search.url)
    worker = search.module.new_worker(study, search.folder / "t")
    study.enqueue_trial(search.module.SPACE.first)
    for number in range(1, 9):
        trial = study.ask()
        assert trial.number == number
        assert TRIAL_WORKER not in trial.user_attrs
        trial.set_user_attr(TRIAL_WORKER, gone_worker())
        if number % 2:
            study.tell(trial, state=TrialState.FAIL)
            worker._queue_again(number)
        else:
            worker._take_over()
    assert search.states() == ["COMPLETE", *["FAIL"] * 8]
    assert not lost_trials(search.trials())
    assert len(finished_trials(search.trials())) == 2


@pytest.mark.parametrize("step", ["settings", "_conclude"])
def test_a_lost_database_ends_the_search_in_one_line(
    search: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the first score of a trial, and at its end, when Optuna stores how it ended."""
    worker = search.module.Worker
    call = getattr(worker, step)

    def lose_then_call(*arguments: object) -> object:
        with sqlite3.connect(search.folder / "s.db", timeout=60) as connection:
            connection.execute("drop table trials")
        return call(*arguments)

    monkeypatch.setattr(worker, step, lose_then_call)
    with pytest.raises(InputError, match=r"s\.db: cannot use the database: no such table: trials"):
        search(2)


def test_bad_trials_are_pruned(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_JUDGED", "1")
    search(4, pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=4))
    # Scores rise in proportion, so whoever is below the best after 10 iterations stays there; of
    # up to four trials one goes on.
    best = 0.0
    for trial in search.trials():
        first = trial.intermediate_values[10]
        goes_on = first > best
        assert trial.state == (TrialState.COMPLETE if goes_on else TrialState.PRUNED)
        assert trial.user_attrs["iterations"] == (100 if goes_on else 10)
        best = max(best, first)
    assert set(search.states()) == {"COMPLETE", "PRUNED"}


def test_only_the_same_search_can_be_joined(search: Any) -> None:
    join = search.module.join
    before = join(search.url).user_attrs
    fg = Parameter("float", 0.2, 0.7)
    wider = SearchSpace({**search.module.SPACE.parameters, "fg_iou_thresh": fg})
    with pytest.raises(InputError) as caught:
        join(search.url, wider)
    assert str(caught.value) == (
        "study 'search' has another search space: fg_iou_thresh: float 0.2 to 0.7 here, float "
        "0.3 to 0.7 there; choose another --study"
    )
    with pytest.raises(InputError, match="trains with SEED 1, not 2: its scores cannot be comp"):
        join(search.url, SEED=2)
    # A key that only a newer version of the project has says nothing.
    assert join(search.url, NEW_KEY=3).user_attrs == before
    assert search.states() == ["WAITING"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_study_without_a_description(search: Any, begun: bool) -> None:
    """Its worker was killed before it described the study; with trials it is a foreign study."""
    study = optuna.create_study(study_name="search", storage=search.url, direction="maximize")
    study.enqueue_trial(search.module.SPACE.first)
    if begun:
        study.optimize(lambda trial: trial.suggest_float("fg_iou_thresh", 0.3, 0.7), n_trials=1)
        with pytest.raises(InputError, match="'search' was made by another program"):
            search.module.join(search.url)
    else:
        assert "search_space" in search.module.join(search.url).user_attrs
        assert search.states() == ["WAITING"]


def frozen(state: TrialState, value: float | None, seconds: int, number: int) -> FrozenTrial:
    trial = create_trial(
        state=state,
        value=value,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
    )
    trial.number = number
    trial.datetime_start = datetime(2026, 1, 1, 12)
    if state.is_finished():
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    return trial


def test_progress() -> None:
    now = datetime(2026, 1, 1, 13)
    assert progress([], 42, now) == "0 of 42 trials (0 pruned, 0 failed), none complete yet"
    trials = [
        frozen(TrialState.COMPLETE, 20.212, 600, 0),
        frozen(TrialState.PRUNED, None, 100, 1),
        frozen(TrialState.FAIL, None, 50, 2),
        frozen(TrialState.COMPLETE, 20.212, 450, 3),
    ]
    # (600 + 100 + 50 + 450) / 4 = 300 s a trial, 38 trials left: 11,400 s = 3 h 10 min
    assert progress(trials, 42, now) == (
        "4 of 42 trials (1 pruned, 1 failed), best 20.21 of trial 0, ETA 3:10:00 (at Thu 16:10)"
    )
    # Two workers need half of the time.
    running = [frozen(TrialState.RUNNING, None, 0, number) for number in (4, 5)]
    assert "ETA 1:35:00 (at Thu 14:35)" in progress(trials + running, 42, now)
    assert "ETA" not in progress(trials, 4, now)


def test_the_best_trial_comes_first() -> None:
    trials = [
        frozen(TrialState.PRUNED, 99.0, 1, 0),
        frozen(TrialState.COMPLETE, 3.0, 1, 1),
        frozen(TrialState.COMPLETE, 1.0, 1, 2),
        frozen(TrialState.COMPLETE, 3.0, 1, 3),
        frozen(TrialState.COMPLETE, 9.0, 1, 4),
    ]
    trials[4].values = None  # as from a damaged database
    assert [trial.number for trial in ranked_trials(trials)] == [1, 3, 2]
    assert [trial.number for trial in ranked_trials(trials, maximize=False)] == [2, 1, 3]
