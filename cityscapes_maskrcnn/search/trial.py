"""One trial of a search: an ordinary training run in a process and a folder of its own."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from cityscapes_maskrcnn.utils.child import failure_reason
from cityscapes_maskrcnn.utils.end_with_parent import bound_to_this_process
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.utils.stop import StopRequests

logger = logging.getLogger(__name__)

COMPLETE: Final = "complete"
PRUNED: Final = "pruned"
FAILED: Final = "failed"
STOPPED: Final = "stopped"

# Seconds a trial gets to save and end after SIGTERM, before it is killed. An evaluation under way
# is finished first.
_GRACE = 300.0
_NOTE: Final = "trial.json"  # in the folder of a trial: which it is


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: ``COMPLETE``, ``PRUNED``, ``FAILED``, or ``STOPPED`` because this process was asked
            to stop: the folder holds a checkpoint to go on from.
        value: the last score; NaN if there was none.
        iterations: training iterations that were run, as far as the log tells.
        reason: why it failed, in one line.
    """

    state: str
    value: float
    iterations: int
    reason: str = ""


@dataclass(frozen=True)
class TrialRunner:
    """Runs trials one after the other, each as a process of its own.

    Attributes:
        command: program and arguments of the training run. Added to it are ``--config-file``,
            ``--resume``, the config keys of the trial and ``OUTPUT_DIR``.
        config: the yaml text that all trials have in common; files may change during a search.
        objective: the score, as named in ``metrics.json``.
        stop: requests to stop this process.
        stall_seconds: end a trial that logged nothing for so long; 0: never.
        interval: seconds between two looks at a trial.
    """

    command: Sequence[str]
    config: str
    objective: str
    stop: StopRequests
    stall_seconds: float = 3600.0
    interval: float = 1.0

    def run(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        prune: Callable[[int, float], bool],
    ) -> Outcome:
        """Run, or go on with, the trial of a folder.

        The folder gets what every training run leaves, and ``console.txt``, what the process
        printed. Checkpoints are deleted at the end, except where the trial is to go on later.

        Args:
            folder: the output folder; made when missing.
            settings: values by config key.
            prune: called with the iterations done and the score after every evaluation; True
                ends the trial.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("ab") as lock, (folder / "console.txt").open("ab") as log:
                with atomic_write(folder / "search_config.yaml", "w") as file:
                    file.write(self.config)
                if not self._lock(lock):
                    reason = f"{folder}: another process still trains there"
                    return Outcome(FAILED, math.nan, 0, reason)
                outcome = self._run(folder, settings, prune, lock, log)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
        if outcome.state != STOPPED:
            for path in [*folder.glob("*.pth"), folder / "last_checkpoint"]:
                path.unlink(missing_ok=True)
        return outcome

    def _lock(self, lock: IO[bytes]) -> bool:
        """Get the folder for this process and the trial, which inherits the lock.

        A worker that was stopped and taken for dead may still train in it.
        """
        for _ in range(30):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(self.interval)
        return False

    def _run(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        prune: Callable[[int, float], bool],
        lock: IO[bytes],
        log: IO[bytes],
    ) -> Outcome:
        start = log.seek(0, os.SEEK_END)
        words = [word for key, value in settings.items() for word in (key, str(value))]
        command = [*self.command, "--config-file", str(folder / "search_config.yaml"), "--resume"]
        child = subprocess.Popen(
            bound_to_this_process([*command, *words, "OUTPUT_DIR", str(folder)]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=[lock.fileno()],
            # Ctrl-C in the terminal reaches this process only, which lets the trial save first.
            start_new_session=True,
        )
        try:
            ended = self._watch(child, folder, prune)
        finally:
            # Also when the database is lost: nothing trains on unwatched.
            _kill(child)
        metrics = folder / "metrics.json"
        scores = read_scores(metrics, self.objective)
        last = list(scores.values())[-1] if scores else math.nan
        done = max(scores.keys() | {last_iteration(metrics)})
        if ended is not None:
            return Outcome(ended[0], last, done, ended[1])
        if child.returncode:
            text = (folder / "console.txt").read_bytes()[start:].decode(errors="replace")
            return Outcome(FAILED, last, done, failure_reason(child.returncode, text))
        for iterations, score in scores.items():
            prune(iterations, score)  # evaluations of the last moments are reported too
        if not math.isfinite(last):
            reason = f"no {self.objective} in {metrics} after training"
            return Outcome(FAILED, last, done, reason)
        return Outcome(COMPLETE, last, done)

    def _watch(
        self, child: subprocess.Popen[bytes], folder: Path, prune: Callable[[int, float], bool]
    ) -> tuple[str, str] | None:
        """Wait for the end of a trial, or end it; in that case return state and reason."""
        seen: set[int] = set()
        size, changed = -1, time.monotonic()
        while child.poll() is None:
            if self.stop.signals:
                self._stop(child)
                return STOPPED, "interrupted"
            for iterations, score in read_scores(folder / "metrics.json", self.objective).items():
                if iterations not in seen:
                    seen.add(iterations)
                    if prune(iterations, score):
                        self._stop(child)
                        return PRUNED, ""
            now = sum(
                path.stat().st_size
                for path in (folder / "metrics.json", folder / "console.txt")
                if path.exists()
            )
            if now != size:
                size, changed = now, time.monotonic()
            elif self.stall_seconds and time.monotonic() - changed > self.stall_seconds:
                _kill(child)
                return FAILED, f"hung: it logged nothing for {self.stall_seconds / 60:g} minutes"
            with suppress(subprocess.TimeoutExpired):
                child.wait(self.interval)
        return None

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        """Let the trial save and end; a second signal to this process, or time, ends it at once."""
        child.terminate()
        end = time.monotonic() + _GRACE
        while child.poll() is None and time.monotonic() < end and len(self.stop.signals) < 2:
            with suppress(subprocess.TimeoutExpired):
                child.wait(self.interval)
        _kill(child)


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note in a trial's folder which trial it belongs to.

    Args:
        folder: made when missing.
        identity: study, trial, and what it trains with; anything JSON can hold.

    Raises:
        InputError: the folder holds another trial's files, or cannot be written.
    """
    before = _read_note(folder)
    if before is not None:
        if before != json.loads(json.dumps(identity)):
            raise _other_trial(folder)
        return
    note = folder / _NOTE
    try:
        with atomic_write(note, "w") as file:
            json.dump(identity, file, indent=1)
    except OSError as error:
        raise InputError(f"{note}: cannot be written: {error}") from error


def check_folders(folder: Path, common: Mapping[str, Any]) -> None:
    """Make sure, before a trial is started, that there are none of another search in its place.

    Args:
        folder: holds a folder for each trial, or is missing.
        common: what :func:`claim_folder` notes of every trial of the search.

    Raises:
        InputError: a folder holds another search's trial.
    """
    wanted = json.loads(json.dumps(common))
    for path in sorted(folder.glob("*/")):
        before = _read_note(path)
        if before is not None and not (isinstance(before, dict) and before | wanted == before):
            raise _other_trial(path)


def _read_note(folder: Path) -> Any:
    """What :func:`claim_folder` noted in a folder; None if it did not.

    Raises:
        InputError: the note is damaged, or there is a training run without one.
    """
    note = folder / _NOTE
    try:
        if note.exists():
            return json.loads(note.read_text(encoding="utf-8"))
        if (folder / "metrics.json").exists():
            raise InputError(f"{folder}: holds another training run; take another OUTPUT_DIR")
    except (OSError, ValueError) as error:
        raise InputError(f"{note}: cannot be read: {error}") from error
    return None


def _other_trial(folder: Path) -> InputError:
    return InputError(
        f"{folder}: holds a trial of another study or config; take another OUTPUT_DIR"
    )


def read_scores(metrics_json: Path, objective: str) -> dict[int, float]:
    """Read the scores that a training run has written so far.

    Args:
        metrics_json: a JSON object a line. The last line may still be under way; after a resume
            an iteration may come twice, and the later value counts.
        objective: name of the score.

    Returns:
        Finite scores by the number of iterations done, in order; empty without a file.
    """
    scores = {}
    for entry in _entries(metrics_json):
        score = entry.get(objective)
        if isinstance(score, (int, float)) and math.isfinite(score):
            # Detectron2 counts iterations from 0.
            scores[int(entry["iteration"]) + 1] = float(score)
    return dict(sorted(scores.items()))


def last_iteration(metrics_json: Path) -> int:
    """Number of iterations done when the file was last written to; 0 without a file."""
    return max((int(entry["iteration"]) + 1 for entry in _entries(metrics_json)), default=0)


def _entries(metrics_json: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError):
        for line in metrics_json.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
                    yield entry


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group; workers of it in groups of their own end with it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
