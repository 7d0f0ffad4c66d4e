from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cityscapes_maskrcnn.search.trial import (
    Outcome,
    Prune,
    TrialEnd,
    TrialRunner,
    check_folders,
    claim_folder,
    last_iteration,
    read_scores,
)
from cityscapes_maskrcnn.utils.child import failure_reason
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.stop import StopRequests

FAKE = str(Path(__file__).with_name("fake_train_net.py"))
SETTINGS = {"MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.25, 0.5], "MODEL.FPN.FREEZE": False}


FOLDER = Path("0000")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def never(_iterations: int, _score: float) -> bool:
    return False


def run(prune: Prune = never, **options: object) -> Outcome:
    """Run the trial of FOLDER."""
    runner = TrialRunner(
        command=[sys.executable, FAKE],
        config="SEED: 1\n",
        objective="segm/AP",
        **{"stop": StopRequests(), "stall_seconds": 0, "interval": 0.05, **options},
    )
    return runner.run(FOLDER, SETTINGS, prune)


@pytest.fixture
def signal_after(wait_until: Callable[..., None]) -> Callable[..., None]:
    """Send signals to this process, half a second apart, as soon as a file appears."""

    def start(path: Path, *numbers: signal.Signals) -> None:
        def send() -> None:
            wait_until(path.exists)
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.5)

        threading.Thread(target=send).start()

    return start


def test_a_trial_ends_with_its_last_score_and_without_checkpoints() -> None:
    seen = []
    outcome = run(lambda *each: bool(seen.append(each)))
    # 40 x (1 - |0.5 - 0.5|) = 40, after 100 of 100 iterations
    assert outcome == Outcome(TrialEnd.COMPLETE, 40.0, 100)
    # Every evaluation was reported: a tenth of the score after a tenth of the iterations.
    assert seen == [(10 * i, pytest.approx(4.0 * i)) for i in range(1, 11)]
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"metrics.json", "console.txt", "runs.txt", "lock", "search_config.yaml"}


def test_a_bad_trial_is_ended_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_JUDGED", "1")
    seen = []

    def judge(iterations: int, score: float) -> bool:
        seen.append((iterations, score))
        if iterations < 20:
            (FOLDER / "judged").write_text(str(iterations))
        return iterations >= 20

    # A tenth and two tenths of 40, and nothing after that.
    assert run(judge) == Outcome(TrialEnd.PRUNED, 8.0, 20)
    assert seen == [(10, 4.0), (20, 8.0)]
    assert not list(FOLDER.glob("*.pth"))


@pytest.mark.parametrize(
    ("behaviour", "iterations", "reason"),
    [
        ("crash", 50, "exit status 1: RuntimeError: index 8 is out of bounds"),
        ("memory", 50, "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to"),
        ("diverge", 50, "exit status 1: training diverged: loss became infinite; lower SOLVER"),
        ("killed", 0, "killed by SIGKILL, most likely for want of memory"),
        ("scoreless", 100, "no segm/AP in "),
    ],
)
def test_failures_have_a_reason(
    monkeypatch: pytest.MonkeyPatch, behaviour: str, iterations: int, reason: str
) -> None:
    monkeypatch.setenv("FAKE", behaviour)
    outcome = run()
    assert (outcome.end, outcome.iterations) == (TrialEnd.FAILED, iterations)
    assert outcome.reason.startswith(reason)
    assert "\n" not in outcome.reason


def test_a_hanging_trial_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "hang")
    FOLDER.mkdir()

    def log_until_it_hangs() -> None:
        """However long a Python takes to start, what is measured is the hanging."""
        while not (FOLDER / "hangs").exists():
            with (FOLDER / "console.txt").open("a") as file:
                file.write(".\n")
            time.sleep(0.05)

    thread = threading.Thread(target=log_until_it_hangs)
    thread.start()
    try:
        outcome = run(stall_seconds=1.5)
    finally:
        (FOLDER / "hangs").touch()
        thread.join()
    assert outcome.end == TrialEnd.FAILED
    assert outcome.reason == "hung: it logged nothing for 0.025 minutes"
    pid = int((FOLDER / "runs.txt").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_trial_saves_and_goes_on_later(
    signal_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "hold")
    with StopRequests().listening() as stop:
        signal_after(FOLDER / "last_checkpoint", signal.SIGINT)
        outcome = run(stop=stop)
    assert (outcome.end, outcome.iterations) == (TrialEnd.STOPPED, 10)
    assert stop.signals == [signal.SIGINT]
    assert (FOLDER / "last_checkpoint").exists()
    monkeypatch.setenv("FAKE", "")
    assert run() == Outcome(TrialEnd.COMPLETE, 40.0, 100)
    assert [int(line.split()[1]) for line in (FOLDER / "runs.txt").open()] == [0, 10]
    assert len(read_scores(FOLDER / "metrics.json", "segm/AP")) == 10


def test_a_second_signal_ends_at_once(
    signal_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "hang")
    with StopRequests().listening() as stop:
        signal_after(FOLDER / "hangs", signal.SIGTERM, signal.SIGINT)
        start = time.monotonic()
        # It ignores SIGTERM and would sleep for ten minutes.
        assert run(stop=stop).end == TrialEnd.STOPPED
    assert time.monotonic() - start < 100


def test_one_process_a_folder(
    wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was taken for dead may still train in the folder."""
    monkeypatch.setenv("FAKE_UNTIL", str(Path("go").resolve()))
    results: list[Outcome] = []
    first = threading.Thread(target=lambda: results.append(run()))
    first.start()
    try:
        wait_until((FOLDER / "runs.txt").exists)
        second = run(patience=0.5)
    finally:
        Path("go").touch()
        first.join()
    assert second.end == TrialEnd.FAILED
    assert "another process still trains there" in second.reason
    assert results[0].end == TrialEnd.COMPLETE
    assert len((FOLDER / "runs.txt").read_text().splitlines()) == 1


def test_scores_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    assert read_scores(path, "segm/AP") == {}
    assert last_iteration(path) == 0
    path.write_text(
        '{"iteration": 19, "segm/AP": 1.0}\n{"iteration": 39, "segm/AP": NaN}\n'
        '{"iteration": 59, "segm/AP": 3}\n{"iteration": 59, "segm/AP": 4}\n'
        '{"iteration": 79, "lr": 1}\n{"iteration": 99, "segm/A'
    )
    assert read_scores(path, "segm/AP") == {20: 1.0, 60: 4.0}
    assert last_iteration(path) == 80


def test_a_folder_belongs_to_one_trial() -> None:
    identity = {"study": "a", "trial": 7, "parameters": {"fg": 0.1 + 0.2}, "config": {"SEED": 1}}
    trials = FOLDER / "trials"
    check_folders(trials, {"study": "a"})
    for _ in range(2):
        claim_folder(trials / "0007", identity)
    for common in ({"study": "a", "config": {"SEED": 1}}, {"study": "a"}):
        check_folders(trials, common)
    for change in ({"study": "b"}, {"config": {"SEED": 2}}, {"parameters": {"fg": 0.3}}):
        for verify in (
            lambda: claim_folder(trials / "0007", {**identity, **change}),  # noqa: B023
            lambda: check_folders(trials, change),  # noqa: B023
        ):
            with pytest.raises(InputError, match="0007: holds a trial of another study or config"):
                verify()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", "0000: holds another training run"),
        ("trial.json", "{", r"json: cannot be read: .*; choose another OUTPUT_DIR"),
        ("trial.json", "[1]", "json: not a JSON object; choose another OUTPUT_DIR"),
    ],
)
def test_a_folder_that_holds_something_else(name: str, text: str, message: str) -> None:
    FOLDER.mkdir()
    (FOLDER / name).write_text(text)
    with pytest.raises(InputError, match=message):
        claim_folder(FOLDER, {"study": "a"})


@pytest.mark.parametrize(
    ("status", "output", "reason"),
    [
        (2, "", "exit status 2: it printed nothing"),
        (-15, "bye", "killed by SIGTERM"),
        (1, "error: one\nwarning\n  error: two  words\nlast line\n", "exit status 1: two  words"),
        (1, "MemoryError\nerror: x", "out of memory: MemoryError"),
        (1, "error: out of memory on the GPU: lower it\nbye", "out of memory on the GPU: lower it"),
        (1, "x" * 9999, f"exit status 1: {'x' * 485}"),
        # CUDA's errors end with advice.
        (1, "Traceback\n  raise\na.Error: assert\nFor debugging", "exit status 1: a.Error: assert"),
    ],
)
def test_reasons(status: int, output: str, reason: str) -> None:
    assert failure_reason(status, output) == reason
