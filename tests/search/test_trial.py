from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cityscapes_maskrcnn.search.trial import (
    Outcome,
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


def runner(stop: StopRequests | None = None, stall: float = 0) -> TrialRunner:
    stop = stop or StopRequests()
    return TrialRunner([sys.executable, FAKE], "SEED: 1\n", "segm/AP", stop, stall, interval=0.05)


def never(_iterations: int, _score: float) -> bool:
    return False


def run(folder: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setenv("FAKE", behaviour)
    return runner().run(folder / "0000", SETTINGS, never)


def wait_for(path: Path) -> None:
    """The machine may be busy: wait for what happens, not for a time."""
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def signal_after(path: Path, *numbers: signal.Signals) -> None:
    """Send signals to this process, half a second apart, as soon as a file appears."""

    def send() -> None:
        wait_for(path)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    threading.Thread(target=send).start()


def test_a_trial_ends_with_its_last_score_and_without_checkpoints(tmp_path: Path) -> None:
    seen = []
    outcome = runner().run(tmp_path / "0000", SETTINGS, lambda *each: bool(seen.append(each)))
    # 40 x (1 - |0.5 - 0.5|) = 40, after 100 of 100 iterations
    assert outcome == Outcome(TrialEnd.COMPLETE, 40.0, 100)
    # Every evaluation was reported: a tenth of the score after a tenth of the iterations.
    assert seen == [(10 * i, pytest.approx(4.0 * i)) for i in range(1, 11)]
    names = {path.name for path in (tmp_path / "0000").iterdir()}
    assert names == {"metrics.json", "console.txt", "runs.txt", "lock", "search_config.yaml"}


def test_a_bad_trial_is_ended_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_JUDGED", "1")
    seen = []

    def judge(iterations: int, score: float) -> bool:
        seen.append((iterations, score))
        if iterations < 20:
            (tmp_path / "0000" / "judged").write_text(str(iterations))
        return iterations >= 20

    outcome = runner().run(tmp_path / "0000", SETTINGS, judge)
    # A tenth and two tenths of 40, and nothing after that.
    assert outcome == Outcome(TrialEnd.PRUNED, 8.0, 20)
    assert seen == [(10, 4.0), (20, 8.0)]
    assert last_iteration(tmp_path / "0000" / "metrics.json") == 20
    assert not list((tmp_path / "0000").glob("*.pth"))


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    iterations: int,
    reason: str,
) -> None:
    outcome = run(tmp_path, behaviour, monkeypatch)
    assert (outcome.end, outcome.iterations) == (TrialEnd.FAILED, iterations)
    assert outcome.reason.startswith(reason)
    assert "\n" not in outcome.reason


def test_a_hanging_trial_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "hang")
    folder = tmp_path / "0000"
    folder.mkdir()

    def log_until_it_hangs() -> None:
        """However long a Python takes to start, what is measured is the hanging."""
        while not (folder / "hangs").exists():
            with (folder / "console.txt").open("a") as file:
                file.write(".\n")
            time.sleep(0.05)

    thread = threading.Thread(target=log_until_it_hangs)
    thread.start()
    try:
        outcome = runner(stall=3.0).run(folder, SETTINGS, never)
    finally:
        (folder / "hangs").touch()
        thread.join()
    assert outcome.end == TrialEnd.FAILED
    assert outcome.reason == "hung: it logged nothing for 0.05 minutes"
    pid = int((folder / "runs.txt").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_trial_saves_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "hold")
    stop = StopRequests()
    with stop.listening():
        signal_after(tmp_path / "0000" / "last_checkpoint", signal.SIGINT)
        outcome = runner(stop).run(tmp_path / "0000", SETTINGS, never)
    assert (outcome.end, outcome.iterations) == (TrialEnd.STOPPED, 10)
    assert stop.signals == [signal.SIGINT]
    assert (tmp_path / "0000" / "last_checkpoint").exists()
    monkeypatch.setenv("FAKE", "")
    assert runner().run(tmp_path / "0000", SETTINGS, never) == Outcome(TrialEnd.COMPLETE, 40.0, 100)
    starts = [int(line.split()[1]) for line in (tmp_path / "0000" / "runs.txt").open()]
    assert starts == [0, 10]
    assert len(read_scores(tmp_path / "0000" / "metrics.json", "segm/AP")) == 10


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE", "hang")
    stop = StopRequests()
    with stop.listening():
        signal_after(tmp_path / "0000" / "hangs", signal.SIGTERM, signal.SIGINT)
        start = time.monotonic()
        # It ignores SIGTERM and would sleep for ten minutes.
        outcome = runner(stop).run(tmp_path / "0000", SETTINGS, never)
    assert outcome.end == TrialEnd.STOPPED
    assert stop.signals == [signal.SIGTERM, signal.SIGINT]
    assert time.monotonic() - start < 100


def test_one_process_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was taken for dead may still train in the folder."""
    go = tmp_path / "go"
    monkeypatch.setenv("FAKE_UNTIL", str(go))
    results: list[Outcome] = []
    other = TrialRunner([sys.executable, FAKE], "", "segm/AP", StopRequests(), interval=0.02)
    first = threading.Thread(
        target=lambda: results.append(runner().run(tmp_path / "0000", SETTINGS, never))
    )
    first.start()
    try:
        wait_for(tmp_path / "0000" / "runs.txt")
        second = other.run(tmp_path / "0000", SETTINGS, never)
    finally:
        go.touch()
        first.join()
    assert second.end == TrialEnd.FAILED
    assert "another process still trains there" in second.reason
    assert results[0].end == TrialEnd.COMPLETE
    assert len((tmp_path / "0000" / "runs.txt").read_text().splitlines()) == 1


def test_scores_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    assert read_scores(path, "segm/AP") == {}
    assert last_iteration(path) == 0
    path.write_text(
        '{"iteration": 19, "segm/AP": 1.0}\n{"iteration": 39, "segm/AP": NaN}\n'
        '{"iteration": 59, "segm/AP": 3}\n{"iteration": 59, "segm/AP": 4}\n'
        '{"iteration": 79, "lr": 1}\n[1]\n{"segm/AP": 9}\n{"iteration": 99, "segm/A'
    )
    assert read_scores(path, "segm/AP") == {20: 1.0, 60: 4.0}
    assert last_iteration(path) == 80


def test_a_folder_belongs_to_one_trial(tmp_path: Path) -> None:
    identity = {"study": "a", "trial": 7, "parameters": {"fg": 0.1 + 0.2}, "config": {"SEED": 1}}
    claim_folder(tmp_path / "0007", identity)
    claim_folder(tmp_path / "0007", identity)
    before = (tmp_path / "0007" / "trial.json").read_bytes()
    for key, value in (("study", "b"), ("parameters", {"fg": 0.3}), ("config", {"SEED": 2})):
        with pytest.raises(InputError, match="0007: holds a trial of another study or config"):
            claim_folder(tmp_path / "0007", {**identity, key: value})
    assert (tmp_path / "0007" / "trial.json").read_bytes() == before
    (tmp_path / "0008").mkdir()
    (tmp_path / "0008" / "metrics.json").write_text(json.dumps({"iteration": 1}))
    with pytest.raises(InputError, match="0008: holds another training run"):
        claim_folder(tmp_path / "0008", identity)
    (tmp_path / "0009").mkdir()
    (tmp_path / "0009" / "trial.json").write_text("{")
    with pytest.raises(InputError, match=r"trial\.json: cannot be read"):
        claim_folder(tmp_path / "0009", identity)


def test_folders_of_a_search_hold_its_trials_only(tmp_path: Path) -> None:
    identity = {"study": "a", "config": {"SEED": 1}}
    check_folders(tmp_path / "trials", identity)
    claim_folder(tmp_path / "trials" / "0000", {**identity, "trial": 0})
    claim_folder(tmp_path / "trials" / "0001", {**identity, "trial": 1})
    (tmp_path / "trials" / "0002").mkdir()
    (tmp_path / "trials" / "a file").touch()
    for common in (identity, {"study": "a"}):
        check_folders(tmp_path / "trials", common)
    for key, value in (("study", "b"), ("config", {"SEED": 2})):
        with pytest.raises(InputError, match="0000: holds a trial of another study or config"):
            check_folders(tmp_path / "trials", {**identity, key: value})
    (tmp_path / "trials" / "0002" / "metrics.json").touch()
    with pytest.raises(InputError, match="0002: holds another training run"):
        check_folders(tmp_path / "trials", identity)
    (tmp_path / "trials" / "0001" / "trial.json").write_text("[]")
    with pytest.raises(InputError, match="0001: holds a trial of another study or config"):
        check_folders(tmp_path / "trials", identity)


def test_reasons() -> None:
    assert failure_reason(2, "") == "exit status 2: it printed nothing"
    assert failure_reason(-15, "bye") == "killed by SIGTERM"
    text = "error: one\nwarning\n  error: two  words\nlast line\n"
    assert failure_reason(1, text) == "exit status 1: two  words"
    assert failure_reason(1, "MemoryError\nerror: x") == "out of memory: MemoryError"
    text = "error: out of memory on the GPU in iteration 7: lower SOLVER.IMS_PER_BATCH (now 4)"
    assert failure_reason(1, f"{text}\nbye") == text.removeprefix("error: ")
    assert math.isclose(len(failure_reason(1, "x" * 9999)), 500)
    error = "torch.AcceleratorError: CUDA error: device-side assert triggered"
    text = f"Traceback\n  raise\n{error}\nFor debugging consider X=1\n"
    assert failure_reason(1, text) == f"exit status 1: {error}"
