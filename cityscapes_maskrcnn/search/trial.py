"""One trial of a search: an ordinary training run in its own process and folder."""

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
from cityscapes_maskrcnn.utils.files import (
    read_json,
    remove_temporary_files,
    write_json,
    write_text,
)
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, file_lock
from cityscapes_maskrcnn.utils.stop import StopRequests
from cityscapes_maskrcnn.utils.training_metrics import metric_entries

#: In the output folder of a search: a folder for each trial, and for each run with another seed.
TRIALS_FOLDER: Final = "trials"
CONFIRMATION_FOLDER: Final = "confirmation"
#: In each of these: what its process printed.
CONSOLE_FILE: Final = "console.txt"
# Seconds a trial gets to save and end after SIGTERM, before it is killed.
_GRACE = 300.0
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
    """The result of a trial.

    Attributes:
        end: how it ended.
        value: the last score; NaN if there was none.
        iterations: training iterations done, according to ``metrics.json``.
        reason: why it failed, in one line.
    """

    end: TrialEnd
    value: float = math.nan
    iterations: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
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
        patience: seconds to wait for another process that trains in the folder.
    """

    command: Sequence[str]
    config: str
    objective: str
    stop: StopRequests
    stall_seconds: float = 3600.0
    interval: float = 1.0
    patience: float = 30.0

    def run(self, folder: Path, settings: Mapping[str, Any], prune: Prune) -> Outcome:
        """Run, or go on with, the trial of a folder.

        The folder gets what every training run leaves, and :data:`CONSOLE_FILE`. Checkpoints are
        deleted at the end, except where the trial is to go on later.

        Args:
            folder: the output folder; created when missing.
            settings: values by config key.
            prune: see :data:`Prune`; called once for each evaluation.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            # The training inherits the lock: it may outlive a worker that was taken for dead.
            with file_lock(folder / "lock", timeout=self.patience, inheritable=True) as lock:
                outcome = self._train(folder, settings, prune, lock)
        except LockTimeoutError:
            reason = f"{folder}: another process still trains there"
            return Outcome(TrialEnd.FAILED, reason=reason)
        if outcome.end != TrialEnd.STOPPED:
            for path in [*folder.glob("*.pth"), folder / "last_checkpoint"]:
                path.unlink(missing_ok=True)
            remove_temporary_files(folder)
        return outcome

    def _train(self, folder: Path, settings: Mapping[str, Any], prune: Prune, lock: int) -> Outcome:
        config, metrics = folder / "search_config.yaml", folder / "metrics.json"
        log = folder / CONSOLE_FILE
        write_text(config, self.config)
        judged: set[int] = set()
        # How and why this process ended the trial.
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

        words = [str(word) for pair in settings.items() for word in pair]
        flags = ["--config-file", str(config), "--resume"]
        failure = run_child(
            [*self.command, *flags, *words, "OUTPUT_DIR", str(folder)],
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
        return Outcome(end, value, last_iteration(metrics), reason)


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note in a trial's folder which trial it belongs to.

    Args:
        folder: created when missing.
        identity: study, trial, and what it trains with; anything JSON can hold.

    Raises:
        InputError: the folder holds another trial's files, or cannot be written.
    """
    if _has_trial(folder, identity):
        return
    write_json(folder / _IDENTITY_FILE, identity)


def check_folders(folder: Path, common: Mapping[str, Any]) -> None:
    """Verify that a folder of trials holds none of another search.

    Args:
        folder: holds a folder for each trial, or is missing.
        common: what :func:`claim_folder` notes of every trial of the search.

    Raises:
        InputError: a folder holds another search's trial.
    """
    for path in sorted(folder.glob("*/")):
        _has_trial(path, common)


def _has_trial(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder belongs to a trial whose identity includes ``wanted``.

    Raises:
        InputError: it belongs to another trial, or to a training run that is no trial.
    """
    file = folder / _IDENTITY_FILE
    if not file.exists():
        if (folder / "metrics.json").exists():
            raise InputError(f"{folder}: holds another training run; choose another OUTPUT_DIR")
        return False
    identity = read_json(file, advice="choose another OUTPUT_DIR")
    if identity | json.loads(json.dumps(wanted)) != identity:
        raise InputError(
            f"{folder}: holds a trial of another study or config; choose another OUTPUT_DIR"
        )
    return True


def read_scores(metrics_json: Path, objective: str) -> dict[int, float]:
    """Read the scores that a training run has written so far.

    Args:
        metrics_json: a JSON object a line. The last line may be incomplete; after a resume an
            iteration may come twice, and the later value counts.
        objective: name of the score.

    Returns:
        Finite scores by the number of iterations done, in order; empty without a file.
    """
    scores = {}
    for iterations, entry in _entries(metrics_json):
        score = entry.get(objective)
        if isinstance(score, (int, float)) and math.isfinite(score):
            scores[iterations] = float(score)
    return dict(sorted(scores.items()))


def last_iteration(metrics_json: Path) -> int:
    """Number of iterations done when the file was last written to; 0 without a file."""
    return max((iterations for iterations, _ in _entries(metrics_json)), default=0)


def _entries(metrics_json: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the complete lines of the file, each with the number of iterations done."""
    with suppress(FileNotFoundError):
        lines = metrics_json.read_text(encoding="utf-8", errors="replace").splitlines()
        for iteration, entry in metric_entries(lines):
            yield iteration + 1, entry
