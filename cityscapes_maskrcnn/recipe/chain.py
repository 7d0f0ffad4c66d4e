"""Run the steps of the recipe: complete ones are skipped, interrupted ones are continued."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from cityscapes_maskrcnn.data.tree import dataset_root
from cityscapes_maskrcnn.recipe.chain_status import (
    LOG_FILE,
    ChainStatus,
    group_by_text,
    steps_without_inputs,
)
from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.utils.child import run_child
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_json, write_json
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, file_lock
from cityscapes_maskrcnn.utils.progress import PROGRESS_FILE
from cityscapes_maskrcnn.utils.stop import Stopped, StopRequests

#: The calls that made a run, and the steps that they asked for.
COMMAND_FILE: Final = "recipe.json"
COMMAND_FORM: Final = {"commands?": [str], "selected?": [str], "datasets": str}
REPLACED: Final = "replaced"
_LOCK: Final = ".train_stages.lock"
_PROGRESS: Final = ".progress.json"


def read_states(steps: Sequence[Step]) -> dict[str, StepState]:
    """Find out how far every step is.

    A step that was done, or begun, from what an earlier step is going to write anew depends on
    whether that comes out the same.

    Raises:
        InputError: a folder was made from other inputs, see :meth:`.Step.read_state`.
    """
    states: dict[str, StepState] = {}
    for step in steps:
        states[step.name] = step.read_state()
        parents = {states.get(name.rpartition("/")[0], StepState.COMPLETE) for name in step.needs}
        done = states[step.name] in (StepState.COMPLETE, StepState.UNFINISHED)
        if done and parents - {StepState.COMPLETE}:
            states[step.name] = StepState.DEPENDENT
    return states


def require_inputs(steps: Sequence[Step], states: Mapping[str, StepState]) -> None:
    """Verify that no step would stop hours later because data or weights are missing.

    Raises:
        InputError: they are missing for a step that is not complete.
    """
    missing = [
        (step.name, " and ".join(step.missing)) for step in steps_without_inputs(steps, states)
    ]
    if missing:
        listed = "; ".join(f"{names}: {what} missing" for what, names in group_by_text(missing))
        raise InputError(f"{listed}, see the list below the plan; nothing is done")


def _note_call(steps: Sequence[Step], output: Path) -> None:
    """Add the command of this process and its steps to ``recipe.json``, for the run's report.

    Raises:
        InputError: the file is damaged or cannot be written.
    """
    file = output / COMMAND_FILE
    before: dict[str, Any] = {}
    if file.is_file():
        before = read_json(file, form=COMMAND_FORM, advice="remove it; the run's report reads it")
    # An installed command is a program of its own.
    python = ["python"] * sys.argv[0].endswith(".py")
    command = shlex.join([*python, *sys.argv])
    content = {
        "commands": list(dict.fromkeys([*before.get("commands", ()), command])),
        "selected": list(dict.fromkeys([*before.get("selected", ()), *(s.name for s in steps)])),
        "datasets": dataset_root(),
    }
    if content != before:
        write_json(file, content)


def run_chain(
    steps: Sequence[Step], output: Path, stream: TextIO, *, patience: float = 20.0
) -> None:
    """Run what is not complete, in order, each command as a process of its own.

    Args:
        steps: in the order in which they depend on each other.
        output: where the lock is kept that lets one chain work at a time.
        stream: where the status is written.
        patience: seconds to wait for another process that works on ``output``. After a kill, the
            kernel ends the step that was under way, which may take a moment.

    Raises:
        InputError: a step failed or cannot start, or another process works on ``output``.
        SystemExit: the chain was asked to stop (Ctrl-C, SIGTERM), and the step under way has.
    """
    try:
        # Steps inherit the lock, so that it is free when they are gone.
        with (
            file_lock(output / _LOCK, timeout=patience, inheritable=True) as lock,
            StopRequests(notice="stopping when the step under way has saved").listening() as stop,
        ):
            status = ChainStatus(steps, read_states(steps), stream, output / _PROGRESS)
            _note_call(steps, output)
            _run_steps(steps=steps, output=output, status=status, stop=stop, lock=lock)
    except Stopped as stopped:
        stream.write(f"{stopped}: stopped; to continue, run the same command again\n")
        raise SystemExit(stopped.status) from stopped
    except LockTimeoutError as error:
        raise InputError(
            f"{output}: another train_stages.py is running here; wait for it to end"
        ) from error


def _run_steps(
    *,
    steps: Sequence[Step],
    output: Path,
    status: ChainStatus,
    stop: StopRequests,
    lock: int,
) -> None:
    for step in steps:
        # Judged again: the files it needs are there only now.
        state = step.read_state()
        if state == StepState.COMPLETE:
            status.kept(step)
            continue
        if state == StepState.OUTDATED:
            status.set_aside(step, _set_aside(step, output))
        for path in step.needs.values():
            if not path.is_file():
                raise InputError(f"{step.name}: it starts from {path}, which is missing")
        step.begin()
        status.began(step)
        for number, command in enumerate(step.commands):
            status.command(number)
            failure = run_child(
                command,
                step.folder / LOG_FILE,
                stop=stop,
                watch=status.tick,
                keep_open=[lock],
                variables={PROGRESS_FILE: str(output / _PROGRESS)},
            )
            status.pause()
            if stop.signals:
                raise Stopped(stop.signals[0])
            if failure:
                tool = Path(command[1]).name
                raise InputError(f"{tool}: {failure} (log: {step.folder / LOG_FILE})")
        step.after()
        step.finish()
        status.ended(step)
    status.finished()


def _set_aside(step: Step, output: Path) -> Path:
    """Move the folder of an outdated step aside.

    Returns:
        The folder's new place.
    """
    folder = output / REPLACED
    folder.mkdir(exist_ok=True)
    name = step.name.replace("/", "-")
    place = next(
        place
        for place in (folder / f"{name}-{number}" for number in itertools.count(1))
        if not place.exists()
    )
    step.folder.rename(place)
    return place
