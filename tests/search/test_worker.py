from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cityscapes_maskrcnn.search.space import Parameter, SearchSpace
from cityscapes_maskrcnn.search.storage import open_storage, storage_url
from cityscapes_maskrcnn.search.study import (
    TRIAL_REASON,
    TRIAL_SETTINGS,
    TRIAL_SURPLUS,
    TRIAL_WORKER,
    finished_trials,
    join_study,
    original_number,
    progress,
    ranked_trials,
)
from cityscapes_maskrcnn.search.trial import last_iteration
from cityscapes_maskrcnn.search.worker import Worker
from cityscapes_maskrcnn.utils.errors import InputError

WORKER_PROGRAM = Path(__file__).with_name("search_worker.py")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@contextmanager
def started(folder: Path, budget: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A worker, which does not outlive its block."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER_PROGRAM), str(folder / "s.db"), str(folder / "t"), str(budget)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read(folder: Path) -> list[FrozenTrial]:
    storage = storage_url(str(folder / "s.db"))
    return optuna.load_study(study_name="search", storage=storage).trials


def runs(folder: Path, number: int) -> list[int]:
    """The iterations at which the processes of a trial started."""
    lines = (folder / "t" / f"{number:04d}" / "runs.txt").read_text().splitlines()
    return [int(line.split()[1]) for line in lines]


def idle(worker: SimpleNamespace, study: optuna.Study, folder: Path) -> Worker:
    """A worker that trains nothing."""
    return worker.Worker(
        study=study, space=worker.space(), runner=None, folder=folder / "t", total_iterations=100
    )


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_a_search_goes_on_until_its_budget_is_used(
    worker: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "none crash")
    worker.search(str(tmp_path / "s.db"), tmp_path / "t", 2)
    trials = read(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL]
    # The values to start with come first: 40 x (1 - |0.4154 - 0.5|) = 36.616
    assert trials[0].params == {"fg_iou_thresh": 0.4154, "fpn_grad_flow": True}
    assert trials[0].value == pytest.approx(36.616)
    assert trials[0].user_attrs[TRIAL_SETTINGS] == {
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.2077, 0.4154],
        "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
        "MODEL.FPN.FREEZE": False,
    }
    assert trials[0].intermediate_values.keys() == set(range(10, 101, 10))
    assert (
        trials[1].user_attrs[TRIAL_REASON]
        == "exit status 1: RuntimeError: index 8 is out of bounds"
    )
    # The same command does nothing; with a larger budget it goes on.
    worker.search(str(tmp_path / "s.db"), tmp_path / "t", 2)
    assert len(read(tmp_path)) == 2
    worker.search(str(tmp_path / "s.db"), tmp_path / "t", 4)
    trials = read(tmp_path)
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [trial.state for trial in trials] == states
    assert len({trial.params["fg_iou_thresh"] for trial in trials}) == 4


def test_a_broken_config_does_not_burn_the_budget(
    worker: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "none memory diverge killed")
    with pytest.raises(InputError, match="3 trials failed in a row, the last: killed by SIGKILL"):
        worker.search(str(tmp_path / "s.db"), tmp_path / "t", 42)
    before = read(tmp_path)
    assert len(finished_trials(before)) == 1
    # Then the cause is gone, and the same trials run.
    monkeypatch.setenv("FAKE", "")
    worker.search(str(tmp_path / "s.db"), tmp_path / "t", 4)
    done = finished_trials(read(tmp_path))
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert [trial.params for trial in done] == [trial.params for trial in before[:4]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_lost_when_a_worker_ends(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, 3, FAKE="none hold") as process:
        wait_for(tmp_path / "t" / "0001" / "last_checkpoint")
        process.send_signal(number)
        output = process.communicate(timeout=100)[0]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), output
    interrupted = read(tmp_path)[1]

    with started(tmp_path, 3) as process:
        output = process.communicate(timeout=100)[0]
    assert process.returncode == 0, output
    trials = read(tmp_path)
    done = finished_trials(trials)
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 3
    # The interrupted trial went on in its folder, with its parameters, from its checkpoint.
    again = next(trial for trial in trials if original_number(trial) < trial.number)
    assert original_number(again) == 1
    assert again.params == interrupted.params
    assert again.intermediate_values.keys() == set(range(10, 101, 10))
    assert runs(tmp_path, 1) == [0, 10]
    assert runs(tmp_path, 0) == [0]


def test_workers_share_the_budget(tmp_path: Path) -> None:
    # The first trial waits for a second one, which only the other worker can start.
    second = tmp_path / "t" / "0001" / "runs.txt"
    hold = {"FAKE_UNTIL": str(second)}
    with started(tmp_path, 5, **hold) as one, started(tmp_path, 5, **hold) as other:
        outputs = [process.communicate(timeout=200)[0] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], outputs
    done = finished_trials(read(tmp_path))
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 5
    assert len({trial.user_attrs[TRIAL_WORKER] for trial in done}) == 2
    assert len({trial.params["fg_iou_thresh"] for trial in done}) == 5


def test_a_worker_of_another_machine_is_given_up_by_its_heartbeat(
    worker: SimpleNamespace, tmp_path: Path
) -> None:
    url = storage_url(str(tmp_path / "s.db"))
    worker.search(url, tmp_path / "t", 1)
    study = optuna.load_study(study_name="search", storage=open_storage(url, 1))
    lost = study.ask()
    lost.set_user_attr(TRIAL_WORKER, "another machine 1 1")
    lost.suggest_float("fg_iou_thresh", 0.3, 0.7)
    start = time.monotonic()
    study._storage.record_heartbeat(lost._trial_id)
    # It is the last of the budget: this worker waits until it counts as lost, and runs it.
    worker.search(url, tmp_path / "t", 2, heartbeat=1)
    assert time.monotonic() - start > 2.0
    trials = read(tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert original_number(trials[2]) == 1
    assert trials[2].params["fg_iou_thresh"] == trials[1].params["fg_iou_thresh"]


def test_a_trial_that_was_given_to_another_worker_is_left_to_it(
    worker: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept, with its machine, finds its trial failed."""
    monkeypatch.setenv("FAKE_JUDGED", "1")
    url = storage_url(str(tmp_path / "s.db"))
    report = optuna.Trial.report

    def sleep_then_report(self: optuna.Trial, value: float, step: int) -> None:
        if self.number == 0 and step == 20:
            study = optuna.load_study(study_name="search", storage=url)
            study.tell(0, state=TrialState.FAIL)
        report(self, value, step)

    monkeypatch.setattr(optuna.Trial, "report", sleep_then_report)
    worker.search(url, tmp_path / "t", 2)
    assert [trial.state.name for trial in read(tmp_path)] == ["FAIL", "COMPLETE"]
    # Its training was ended, after 20 iterations, and not begun anew.
    assert runs(tmp_path, 0) == [0]
    assert last_iteration(tmp_path / "t" / "0000" / "metrics.json") == 20


def test_one_trial_too_many_is_dropped(worker: SimpleNamespace, tmp_path: Path) -> None:
    """Two workers see room for one trial and both start one."""
    url = storage_url(str(tmp_path / "s.db"))
    worker.search(url, tmp_path / "t", 1)
    storage = open_storage(url, 60)
    study = optuna.load_study(study_name="search", storage=storage)
    other = idle(worker, study, tmp_path)
    running = study.ask()
    running.set_user_attr(TRIAL_WORKER, "another machine 1 1")
    other._run_one(2)
    trials = read(tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "RUNNING", "FAIL"]
    assert TRIAL_SURPLUS in trials[2].user_attrs
    assert len(finished_trials(trials)) == 1


def test_an_unclaimed_trial_is_taken_over_by_this_clock(
    worker: SimpleNamespace, tmp_path: Path
) -> None:
    """Optuna notes local times: nine hours ago may be now in another time zone."""
    url = storage_url(str(tmp_path / "s.db"))
    worker.search(url, tmp_path / "t", 1)
    study = optuna.load_study(study_name="search", storage=open_storage(url, 60))
    study.ask()
    study.ask().set_user_attr(TRIAL_WORKER, "another machine 1 1")

    with sqlite3.connect(tmp_path / "s.db") as connection:
        moment = str(datetime.now() - timedelta(hours=9))
        connection.execute("update trials set datetime_start = ? where number > 0", (moment,))
    fresh = optuna.load_study(study_name="search", storage=open_storage(url, 60))
    mine = idle(worker, fresh, tmp_path)
    mine._take_over()
    assert [trial.state.name for trial in read(tmp_path)] == ["COMPLETE", "RUNNING", "RUNNING"]
    mine._unclaimed[1] -= 61.0  # as if a minute ago
    mine._take_over()
    states = ["COMPLETE", "FAIL", "RUNNING", "WAITING"]
    assert [trial.state.name for trial in read(tmp_path)] == states


@pytest.mark.parametrize("step", ["settings", "_conclude"])
def test_a_lost_database_ends_the_search_in_one_line(
    worker: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the first score of a trial, and at its end, when Optuna stores how it ended."""
    path = tmp_path / "s.db"
    call = getattr(worker.Worker, step)

    def lose_then_call(*arguments: object) -> object:
        with sqlite3.connect(path, timeout=60) as connection:
            connection.execute("drop table trials")
        return call(*arguments)

    monkeypatch.setattr(worker.Worker, step, lose_then_call)
    with pytest.raises(InputError, match=r"s\.db: cannot use the database: no such table: trials"):
        worker.search(str(path), tmp_path / "t", 2)


def test_bad_trials_are_pruned(
    worker: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_JUDGED", "1")
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=4)
    worker.search(str(tmp_path / "s.db"), tmp_path / "t", 4, pruner=pruner)
    trials = read(tmp_path)
    # Scores rise in proportion, so whoever is below the best after 10 iterations stays there; of
    # up to four trials one goes on.
    best = 0.0
    for trial in trials:
        first = trial.intermediate_values[10]
        expected = TrialState.COMPLETE if first > best else TrialState.PRUNED
        assert trial.state == expected
        best = max(best, first)
        assert trial.user_attrs["iterations"] == (100 if expected == TrialState.COMPLETE else 10)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}


def join(
    worker: SimpleNamespace, url: str, space: SearchSpace | None = None, **config: object
) -> None:
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    content = {**worker.CONFIG, **config}
    join_study(
        open_storage(url, 60),
        name="search",
        space=space or worker.space(),
        config=content,
        sampler=sampler,
        pruner=pruner,
    )


def test_only_the_same_search_can_be_joined(worker: SimpleNamespace, tmp_path: Path) -> None:
    url = storage_url(str(tmp_path / "s.db"))
    join(worker, url)
    join(worker, url)
    before = optuna.load_study(study_name="search", storage=url)
    wider = SearchSpace(
        {**worker.space().parameters, "fg_iou_thresh": Parameter("float", 0.2, 0.7)}
    )
    with pytest.raises(InputError) as caught:
        join(worker, url, wider)
    assert str(caught.value) == (
        "study 'search' is of another search space: fg_iou_thresh: float 0.2 to 0.7 here, float "
        "0.3 to 0.7 there; take another --study"
    )
    with pytest.raises(InputError, match="trains with SEED 1, not 2: its scores cannot be comp"):
        join(worker, url, SEED=2)
    # A key that only a newer version of the project has says nothing.
    join(worker, url, NEW_KEY=3)
    after = optuna.load_study(study_name="search", storage=url)
    assert after.user_attrs == before.user_attrs
    assert [trial.state for trial in after.trials] == [TrialState.WAITING]


def test_a_study_whose_maker_was_killed_before_describing_it(
    worker: SimpleNamespace, tmp_path: Path
) -> None:
    url = storage_url(str(tmp_path / "s.db"))
    study = optuna.create_study(study_name="search", storage=url, direction="maximize")
    study.enqueue_trial(worker.space().first)
    join(worker, url)
    trials = read(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.WAITING]
    assert optuna.load_study(study_name="search", storage=url).user_attrs.keys() >= {"search_space"}


def test_studies_of_other_programs_are_not_joined(worker: SimpleNamespace, tmp_path: Path) -> None:
    url = storage_url(str(tmp_path / "s.db"))
    study = optuna.create_study(study_name="search", storage=url)
    study.optimize(lambda trial: trial.suggest_float("fg_iou_thresh", 0.3, 0.7), n_trials=1)
    with pytest.raises(InputError, match="'search' is another program's"):
        join(worker, url)
    assert len(read(tmp_path)) == 1


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
    assert progress([], 42, now) == "0 of 42 trials, none complete yet"
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
    ]
    assert [trial.number for trial in ranked_trials(trials)] == [1, 3, 2]
    assert [trial.number for trial in ranked_trials(trials, maximize=False)] == [2, 1, 3]
