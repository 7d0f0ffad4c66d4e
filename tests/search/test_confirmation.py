"""The best trials trained again with other seeds, by workers with the fake training program."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cityscapes_maskrcnn.search.confirmation import confirmed_scores
from cityscapes_maskrcnn.search.storage import open_study, storage_url
from cityscapes_maskrcnn.search.study import (
    TRIAL_SETTINGS,
    TRIAL_SURPLUS,
    TRIAL_WORKER,
    confirmation_name,
    finished_trials,
    ranked_trials,
)

WORKER_PROGRAM = Path(__file__).with_name("search_worker.py")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def search(tmp_path: Path, worker: object) -> Callable[..., optuna.Study]:
    """A search in this process."""

    def run(budget: int, **options: object) -> optuna.Study:
        return worker.search(str(tmp_path / "s.db"), tmp_path / "t", budget, **options)

    return run


def runs(folder: Path) -> optuna.Study:
    """The study of the runs with other seeds."""
    url = storage_url(str(folder / "s.db"))
    return optuna.load_study(study_name=confirmation_name("search"), storage=url)


def start(stack: ExitStack, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A worker of a search of two trials, of which one is confirmed."""
    words = [str(folder / "s.db"), str(folder / "t"), "2", "1"]
    process = subprocess.Popen(
        [sys.executable, str(WORKER_PROGRAM), *words], env={**os.environ, **environment}
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_the_mean_of_all_seeds_decides(
    search: Callable[..., optuna.Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lucky, other, _ = ranked_trials(search(3).trials)
    monkeypatch.setenv("FAKE_LUCKY", str(lucky.params["fg_iou_thresh"]))
    study = search(3, confirm_best=2)
    # Its other two seeds give 10 less, those of the next one 1 less.
    assert confirmed_scores(study) == {
        other.number: {1: other.value, 2: other.value - 1, 3: other.value - 1},
        lucky.number: {1: lucky.value, 2: lucky.value - 10, 3: lucky.value - 10},
    }
    assert list(confirmed_scores(study)) == [other.number, lucky.number]
    confirmed = runs(tmp_path).trials
    assert [trial.state for trial in confirmed] == [TrialState.COMPLETE] * 4
    assert confirmed[0].user_attrs[TRIAL_SETTINGS] == {
        **lucky.user_attrs[TRIAL_SETTINGS],
        "SEED": 2,
    }
    # They are no trials of the search, and its database still has one study to analyze.
    assert len(study.trials) == 3
    with open_study(storage_url(str(tmp_path / "s.db")), "") as only:
        assert only.study_name == "search"

    # The same command does nothing; of more trials, those that are not confirmed yet are.
    search(3, confirm_best=2)
    assert len(runs(tmp_path).trials) == 4
    search(3, confirm_best=3)
    assert len(runs(tmp_path).trials) == 6


def test_a_run_that_was_killed_goes_on(search: Callable[..., optuna.Study], tmp_path: Path) -> None:
    search(2)
    first = tmp_path / "t" / "confirmation" / "0000"
    with ExitStack() as stack:
        process = start(stack, tmp_path, FAKE="hold")
        wait_until((first / "last_checkpoint").exists)
        process.kill()
    assert confirmed_scores(search(2)) == {}
    study = search(2, confirm_best=1)
    assert [len(scores) for scores in confirmed_scores(study).values()] == [3]
    starts = [line.split()[1] for line in (first / "runs.txt").read_text().splitlines()]
    assert starts == ["0", "10"]


def test_workers_share_the_runs(search: Callable[..., optuna.Study], tmp_path: Path) -> None:
    search(2)
    with ExitStack() as stack:
        processes = [start(stack, tmp_path, FAKE_UNTIL=str(tmp_path / "go")) for _ in range(2)]
        # One worker trains one at a time. Both may have queued them: then the numbers differ.
        wait_until(lambda: len(list(tmp_path.glob("t/confirmation/*/runs.txt"))) == 2)
        (tmp_path / "go").touch()
        assert [process.wait(100) for process in processes] == [0, 0]
    done = finished_trials(runs(tmp_path).trials)
    assert sorted(trial.params["seed"] for trial in done) == [2, 3]
    assert len({trial.user_attrs[TRIAL_WORKER] for trial in done}) == 2
    assert [len(scores) for scores in confirmed_scores(search(2)).values()] == [3]


def test_a_run_that_two_workers_queued_is_done_once(
    search: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    best = ranked_trials(search(2).trials)[0].number
    url = storage_url(str(tmp_path / "s.db"))
    study = optuna.create_study(
        study_name=confirmation_name("search"), storage=url, direction="maximize"
    )
    for _ in range(2):
        study.enqueue_trial({"trial": best, "seed": 2})
    search(2, confirm_best=1)
    trials = runs(tmp_path).trials
    assert [TRIAL_SURPLUS in trial.user_attrs for trial in trials] == [False, True, False]
    assert [trial.params["seed"] for trial in finished_trials(trials)] == [2, 3]
