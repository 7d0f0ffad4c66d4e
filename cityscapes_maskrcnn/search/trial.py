"""One trial of a search: an ordinary training run in a process and a folder of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.utils.child import run_child
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_json, write_text
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, file_lock
from cityscapes_maskrcnn.utils.stop import StopRequests

# Seconds a trial gets to save and end after SIGTERM, before it is killed.
_GRACE = 300.0
# Looks at the lock of a folder in which another process trains, before giving up.
_LOCK_ATTEMPTS = 30
_IDENTITY_FILE: Final = "trial.json"

# Called with the iterations done and the score after every evaluation; True ends the trial.
Prune = Callable[[int, float], bool]


class TrialEnd(Enum):
    """How a trial ended; STOPPED: this process was asked to stop, and the trial can go on."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        end: in which way.
        value: the last score; NaN if there was none.
        iterations: training iterations that were run, as far as the log tells.
        reason: why it failed, in one line.
    """

    end: TrialEnd
    value: float = math.nan
    iterations: int = 0
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

    def run(self, folder: Path, settings: Mapping[str, Any], prune: Prune) -> Outcome:
        """Run, or go on with, the trial of a folder.

        The folder gets what every training run leaves, and ``console.txt``, what the process
        printed. Checkpoints are deleted at the end, except where the trial is to go on later.

        Args:
            folder: the output folder; made when missing.
            settings: values by config key.
            prune: see :data:`Prune`; called once for each evaluation.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            # The training inherits the lock: it may outlive a worker that was taken for dead.
            with file_lock(
                folder / "lock", timeout=_LOCK_ATTEMPTS * self.interval, inheritable=True
            ) as lock:
                outcome = self._train(folder, settings, prune, lock)
        except LockTimeoutError:
            reason = f"{folder}: another process still trains there"
            return Outcome(TrialEnd.FAILED, reason=reason)
        if outcome.end != TrialEnd.STOPPED:
            for path in [*folder.glob("*.pth"), folder / "last_checkpoint"]:
                path.unlink(missing_ok=True)
        return outcome

    def _train(self, folder: Path, settings: Mapping[str, Any], prune: Prune, lock: int) -> Outcome:
        config, metrics = folder / "search_config.yaml", folder / "metrics.json"
        log = folder / "console.txt"
        write_text(config, self.config)
        judged: set[int] = set()
        # What this process ended the trial for, and why.
        ended: tuple[TrialEnd, str] | None = None
        size, changed = -1, time.monotonic()

        def pruned() -> bool:
            for iterations, score in read_scores(metrics, self.objective).items():
                if iterations not in judged:
                    judged.add(iterations)
                    if prune(iterations, score):
                        return True
            return False

        def watch() -> float | None:
            nonlocal ended, size, changed
            if pruned():
                ended = TrialEnd.PRUNED, ""
                return _GRACE
            now = sum(path.stat().st_size for path in (metrics, log) if path.exists())
            if now != size:
                size, changed = now, time.monotonic()
            elif self.stall_seconds and time.monotonic() - changed > self.stall_seconds:
                minutes = self.stall_seconds / 60
                ended = TrialEnd.FAILED, f"hung: it logged nothing for {minutes:g} minutes"
                return 0.0
            return None

        words = [word for key, value in settings.items() for word in (key, str(value))]
        failure = run_child(
            [
                *self.command,
                "--config-file",
                str(config),
                "--resume",
                *words,
                "OUTPUT_DIR",
                str(folder),
            ],
            log,
            stop=self.stop,
            watch=watch,
            grace=_GRACE,
            keep_open=[lock],
            interval=self.interval,
        )
        if not failure and not ended:
            pruned()  # reports the evaluations of the last moments
        scores = read_scores(metrics, self.objective)
        value = list(scores.values())[-1] if scores else math.nan
        if ended:
            end, reason = ended
        elif failure:
            end, reason = (TrialEnd.STOPPED if self.stop.signals else TrialEnd.FAILED), failure
        elif not scores:
            end, reason = TrialEnd.FAILED, f"no {self.objective} in {metrics} after training"
        else:
            end, reason = TrialEnd.COMPLETE, ""
        return Outcome(end, value, max(scores.keys() | {last_iteration(metrics)}), reason)


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note in a trial's folder which trial it belongs to.

    Args:
        folder: made when missing.
        identity: study, trial, and what it trains with; anything JSON can hold.

    Raises:
        InputError: the folder holds another trial's files, or cannot be written.
    """
    before = _read_identity(folder)
    if before is None:
        write_json(folder / _IDENTITY_FILE, identity)
    elif before != json.loads(json.dumps(identity)):
        raise _other_trial(folder)


def check_folders(folder: Path, common: Mapping[str, Any]) -> None:
    """Verify that a folder of trials holds none of another search.

    Args:
        folder: holds a folder for each trial, or is missing.
        common: what :func:`claim_folder` notes of every trial of the search.

    Raises:
        InputError: a folder holds another search's trial.
    """
    wanted = json.loads(json.dumps(common))
    for path in sorted(folder.glob("*/")):
        before = _read_identity(path)
        if before is not None and not (isinstance(before, dict) and before | wanted == before):
            raise _other_trial(path)


def _read_identity(folder: Path) -> Any:
    """Read what :func:`claim_folder` noted in a folder; None if it did not.

    Raises:
        InputError: the note is damaged, or there is a training run without one.
    """
    file = folder / _IDENTITY_FILE
    try:
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    if (folder / "metrics.json").exists():
        raise InputError(f"{folder}: holds another training run; take another OUTPUT_DIR")
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
