"""Running the steps of the recipe: what is complete is skipped, what was interrupted goes on."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TextIO

from cityscapes_maskrcnn.recipe.chain_status import LOG_FILE, ChainStatus, find_lacking
from cityscapes_maskrcnn.recipe.step_state import COMPLETE, Step, begin, finish, read_state
from cityscapes_maskrcnn.utils.child import run_child
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.stop import Stopped

_LOCK: Final = ".train_stages.lock"


def read_states(steps: Sequence[Step]) -> dict[str, str]:
    """Say how far every step is.

    Raises:
        InputError: a folder was made from something else, see :func:`.step_state.read_state`.
    """
    return {step.name: read_state(step.folder, step.inputs(), step.makes) for step in steps}


def require_inputs(steps: Sequence[Step], states: Mapping[str, str]) -> None:
    """Make sure that no step would stop hours later for want of data or weights.

    Raises:
        InputError: a step that is not complete lacks some.
    """
    names: dict[str, list[str]] = {}
    for step in find_lacking(steps, states):
        names.setdefault(" and ".join(step.lacking), []).append(step.name)
    if names:
        told = "; ".join(f"{', '.join(alike)}: {what} missing" for what, alike in names.items())
        raise InputError(f"{told}, see below the plan; nothing is done")


def run_chain(steps: Sequence[Step], output: Path, stream: TextIO, patience: float = 20.0) -> None:
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
    with _locked(output, patience) as lock:
        states = read_states(steps)
        status = ChainStatus(steps, states, stream)
        for step in steps:
            inputs = step.inputs()
            # Judged again: the files it needs are there only now.
            if read_state(step.folder, inputs, step.makes) == COMPLETE:
                continue
            missing = [path for name, path in step.needs.items() if inputs.files[name] is None]
            if missing:
                raise InputError(f"{step.name}: {missing[0]} is missing, from which it starts")
            begin(step.folder, inputs)
            status.began(step)
            try:
                for command in step.commands:
                    run_child(command, step.folder / LOG_FILE, partial(status.tick, step), (lock,))
            except Stopped as stopped:
                stream.write(f"\n{stopped}: stopped; the same command goes on from here\n")
                raise SystemExit(stopped.status) from stopped
            step.after()
            finish(step.folder, inputs, step.makes)
            status.ended(step)


@contextmanager
def _locked(output: Path, patience: float) -> Iterator[int]:
    """Hold a lock on the output folder; steps inherit it, so that it is free when they are gone.

    Raises:
        InputError: somebody else holds it, or the folder cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: a file where a folder is needed")
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        last = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > last:
                    raise InputError(
                        f"{output}: another train_stages.py is at work here; wait for its end"
                    ) from error
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)
