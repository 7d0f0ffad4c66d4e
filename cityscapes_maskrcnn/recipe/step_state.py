"""Whether a step of the recipe is done, was interrupted, or was made from something else.

A step's folder holds two small files beside what the step makes: ``inputs.json``, written before
it starts, says what it is made from; ``complete.json``, written last, says that it ended and with
which files. Both appear whole or not at all, so the folder tells the truth after a kill at any
moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, file_digest

INPUTS_FILE: Final = "inputs.json"
COMPLETE_FILE: Final = "complete.json"

NEW: Final = "to do"
UNFINISHED: Final = "interrupted"
COMPLETE: Final = "complete"


@dataclass(frozen=True)
class Inputs:
    """What a step is made from.

    Attributes:
        settings: config keys and their values as text.
        files: SHA-256 of every file of an earlier step, by a name that does not change when the
            whole output folder moves, and of a file that a setting names, by the setting's key;
            None where the file does not exist yet.
        amount: how much is to be done where doing more later is no contradiction, as with the
            trials of a search.
    """

    settings: Mapping[str, str]
    files: Mapping[str, str | None] = field(default_factory=dict)
    amount: int = 0


@dataclass(frozen=True)
class Step:
    """One step of the recipe.

    Attributes:
        name: ``stage_1``, ``search``, ``scores/stage_1``, ...
        folder: where everything it writes is.
        commands: run one after the other; all can be run again after an interruption.
        settings: config keys and values, as text, that make it what it is.
        needs: files of earlier steps, by a name without the output folder, and those that
            settings name, by key.
        makes: files that must be there at its end, by name within ``folder``.
        data: names of datasets, for the plan.
        images: number of images it goes through; 0 where they cannot be loaded.
        iterations: training steps; 0 if it trains nothing.
        amount: trials of a search, else 0.
        after: called when the commands have ended.
        lacking: what it cannot start without, ``data`` or ``weights``, and why that cannot be had,
            such as a missing folder.
    """

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    settings: Mapping[str, str]
    needs: Mapping[str, Path]
    makes: tuple[str, ...]
    data: str
    images: int
    iterations: int = 0
    amount: int = 0
    after: Callable[[], None] = field(default=lambda: None)
    lacking: Mapping[str, str] = field(default_factory=dict)

    def inputs(self) -> Inputs:
        """What the step would be made from now."""
        digests = {name: file_digest(path) for name, path in self.needs.items()}
        return Inputs(self.settings, digests, self.amount)


def read_state(folder: Path, inputs: Inputs, outputs: Sequence[str]) -> str:
    """Say how far a step is.

    Args:
        folder: of the step.
        inputs: what it would be made from now.
        outputs: files it makes, by name within ``folder``.

    Returns:
        ``NEW``, ``UNFINISHED`` or ``COMPLETE``.

    Raises:
        InputError: the folder holds a step that was made from something else, or what no step of
            the recipe made, or a complete one whose files are gone or changed.
    """
    if not (folder / INPUTS_FILE).is_file():
        foreign = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in foreign if not name.endswith(".tmp")]
        if foreign:
            raise InputError(
                f"{folder}: holds {foreign[0]}, which this command did not make; take another "
                "--output, or move the folder away"
            )
        return NEW
    _refuse_other_inputs(folder, _read_json(folder / INPUTS_FILE, "settings", "files"), inputs)
    if not (folder / COMPLETE_FILE).is_file():
        return UNFINISHED
    done = _read_json(folder / COMPLETE_FILE, "amount", "outputs")
    for name in outputs:
        digest = file_digest(folder / name)
        # A file that is not listed was not counted yet when the step ended.
        if digest is None or digest != done["outputs"].get(name, digest):
            what = "is gone" if digest is None else "was changed"
            raise InputError(
                f"{folder / name}: {what} since the step was complete; put it back, or delete "
                f"{folder} to make it again"
            )
    return COMPLETE if done["amount"] >= inputs.amount else UNFINISHED


def begin(folder: Path, inputs: Inputs) -> None:
    """Note what the step is made from, before anything else is written."""
    (folder / COMPLETE_FILE).unlink(missing_ok=True)
    content = {"settings": dict(inputs.settings), "files": dict(inputs.files)}
    _write_json(folder / INPUTS_FILE, content)


def finish(folder: Path, inputs: Inputs, outputs: Sequence[str]) -> None:
    """Mark the step as complete.

    Raises:
        InputError: an output is missing.
    """
    digests = {name: file_digest(folder / name) for name in outputs}
    missing = [name for name, digest in digests.items() if digest is None]
    if missing:
        raise InputError(f"{folder}: the step ended without writing {missing[0]}; see its log")
    _write_json(folder / COMPLETE_FILE, {"amount": inputs.amount, "outputs": digests})


def _refuse_other_inputs(folder: Path, before: Any, now: Inputs) -> None:
    """Raise if a folder was made from other inputs, naming them."""
    nothing = "nothing"
    keys = before["settings"].keys() | now.settings.keys()
    # A setting that names a file counts by the file's content, where that is known.
    keys -= {name for name, digest in now.files.items() if digest and before["files"].get(name)}
    differing = [
        f"{key} {before['settings'].get(key, nothing)}, now {now.settings.get(key, nothing)}"
        for key in sorted(keys)
        if before["settings"].get(key) != now.settings.get(key)
    ]
    differing += [
        f"another {name}"
        for name in sorted((before["files"].keys() | now.files.keys()) - keys)
        if name not in now.files
        or name not in before["files"]
        # A file that is not there (yet) is judged when it is.
        or now.files[name] not in (None, before["files"][name])
    ]
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise InputError(
            f"{folder}: was made with {'; '.join(differing[:4])}{more}; take another --output, or "
            "delete the folder to make it again"
        )


def _read_json(path: Path, *keys: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; delete the folder") from error
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise InputError(f"{path}: has no {' and '.join(keys)}; delete the folder")
    return content


def _write_json(path: Path, content: Any) -> None:
    try:
        with atomic_write(path, "w") as file:
            json.dump(content, file, indent=1, sort_keys=True)
            file.write("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
