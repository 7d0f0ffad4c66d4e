"""A step of the recipe, and whether it is complete, interrupted, or made from other inputs.

A step's folder holds two small files beside its outputs: ``inputs.json``, written before it starts,
lists what it is made from and by which commands; ``complete.json``, written last, lists the files
it ended with. Both appear whole or not at all, so the folder's state is right after a kill at any
moment.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.search.study import IMAGES_CONTENT
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest, read_json, write_json
from cityscapes_maskrcnn.utils.yaml_files import read_yaml

INPUTS_FILE: Final = "inputs.json"
COMPLETE_FILE: Final = "complete.json"
_DIGESTS: Final = {"*": (str, None)}
_INPUTS: Final = {"settings": {"*": str}, "changed?": [str], "files": _DIGESTS}
_COMPLETE: Final = {"outputs": _DIGESTS, "amounts": {"*": int}}


class StepState(Enum):
    """How far a step is, in the words of the plan."""

    NEW = "to do"
    UNFINISHED = "interrupted"
    OUTDATED = "to be remade"
    DEPENDENT = "may be remade"  # if what it is made from changes
    RUNNING = "running"
    COMPLETE = "complete"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the recipe.

    Attributes:
        name: ``stage_1``, ``search``, ``scores/stage_1``, ...
        folder: where everything it writes is.
        commands: run one after the other; all can be run again after an interruption.
        activities: what each command does, for the status; empty for one that notes its progress.
            Without any, all do.
        settings: config keys and values, as text, that make it what it is.
        defaults: of all config keys, as text.
        needs: files it starts from. Those of earlier steps by a name without the output folder,
            so that the whole folder can move (``stage_1/model_final.pth``); those that settings
            name by key.
        outputs: files that must be there at its end, by name within ``folder``.
        data: names of datasets, for the plan.
        images: number of images it goes through; 0 where they cannot be loaded.
        iterations: training steps; 0 if it trains nothing.
        processes: how many trainings, or other programs that take their time to start, it runs.
        evaluations: how often it scores a model.
        evaluated_images: how many images it scores for that in all.
        amounts: how much is to be done of what can be done further later, such as ``trials``.
        after: called when the commands have ended.
        missing: what it cannot start without, ``data`` or ``weights``, and why that cannot be had,
            such as a missing folder.
    """

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    settings: Mapping[str, str]
    needs: Mapping[str, Path]
    outputs: tuple[str, ...]
    activities: tuple[str, ...] = ()
    data: str = ""
    images: int = 0
    iterations: int = 0
    processes: int = 1
    evaluations: int = 0
    evaluated_images: int = 0
    defaults: Mapping[str, str] = field(default_factory=dict)
    amounts: Mapping[str, int] = field(default_factory=dict)
    after: Callable[[], None] = field(default=lambda: None)
    missing: Mapping[str, str] = field(default_factory=dict)

    def read_state(self) -> StepState:
        """Find out how far the step is.

        It is outdated if all that differs is what an earlier step wrote.

        Raises:
            InputError: the folder holds a step that was made with other settings, or what no step
                of the recipe wrote, or a complete one whose files are gone or changed.
        """
        inputs, complete = self.folder / INPUTS_FILE, self.folder / COMPLETE_FILE
        if not inputs.is_file():
            names = sorted(path.name for path in self.folder.glob("*"))
            foreign = [name for name in names if not name.endswith(".tmp")]
            if foreign:
                raise InputError(
                    f"{self.folder}: holds {foreign[0]}, which this command did not write; choose "
                    "another --output, or move the folder away"
                )
            return StepState.NEW
        before = read_json(inputs, form=_INPUTS, advice="delete the folder")
        differences, remade = self._differences(before)
        if differences:
            more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise InputError(
                f"{self.folder}: was made with {'; '.join(differences[:4])}{more}; choose another "
                "--output, or delete the folder to run the step again"
            )
        if remade:
            return StepState.OUTDATED
        if complete.is_file() and self._is_complete(
            read_json(complete, form=_COMPLETE, advice="delete the folder")
        ):
            return StepState.COMPLETE
        return StepState.UNFINISHED

    def _is_complete(self, done: Mapping[str, Any]) -> bool:
        """Whether a step that ended has its files, and did as much as is to be done."""
        for name in self.outputs:
            digest = file_digest(self.folder / name)
            # A file that is not listed was not counted yet when the step ended.
            if digest is None or digest != done["outputs"].get(name, digest):
                what = "was deleted" if digest is None else "was changed"
                raise InputError(
                    f"{self.folder / name}: {what} after the step was complete; restore it, or "
                    f"delete {self.folder} to run the step again"
                )
        # An amount that was not counted yet when the step ended is no more work.
        amounts = done["amounts"]
        return all(amounts.get(name, least) >= least for name, least in self.amounts.items())

    def begin(self) -> None:
        """Note what the step is made from, before anything else is written."""
        (self.folder / COMPLETE_FILE).unlink(missing_ok=True)
        changed = [key for key, value in self.settings.items() if value != self.defaults.get(key)]
        content = {
            "settings": dict(self.settings),
            "changed": changed,
            # For people and the report of the run: nothing depends on how a step was called.
            "commands": [shlex.join(command) for command in self.commands],
            "files": {name: _content_digest(path) for name, path in self.needs.items()},
        }
        write_json(self.folder / INPUTS_FILE, content)

    def finish(self) -> None:
        """Mark the step as complete.

        Raises:
            InputError: an output is missing.
        """
        digests = {name: file_digest(self.folder / name) for name in self.outputs}
        missing = [name for name, digest in digests.items() if digest is None]
        if missing:
            raise InputError(
                f"{self.folder}: the step ended without writing {missing[0]}; see its log"
            )
        content = {"amounts": dict(self.amounts), "outputs": digests}
        write_json(self.folder / COMPLETE_FILE, content)

    def _differences(self, before: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """List what the folder was made from and would not be made from now.

        Returns:
            differing settings and files of the user, in words; and names of files that an earlier
            step has written anew, with other content.
        """
        settings, files = before["settings"], before["files"]
        # A setting that names a file counts by the file's content, where that is known.
        by_content = {
            name for name, path in self.needs.items() if files.get(name) and path.is_file()
        }
        named = (settings.keys() | self.settings.keys()) - by_content
        differing = [
            f"{key} {settings.get(key, 'nothing')}, now {self.settings.get(key, 'nothing')}"
            for key in sorted(named)
            if not self._same_setting(key, settings, before.get("changed", ()))
        ]
        remade = []
        for name in sorted((files.keys() | self.needs.keys()) - named):
            path = self.needs.get(name)
            # A file that is not there yet is judged when it is.
            if (
                path
                and name in files
                and (not path.is_file() or _content_digest(path) == files[name])
            ):
                continue
            if path and name in files and "/" in name:
                remade.append(name)
            else:
                differing.append(f"another {name}")
        return differing, remade

    def _same_setting(self, key: str, before: Mapping[str, str], changed: Sequence[str]) -> bool:
        """Whether a setting is as before; a key of one side only came or went by an upgrade."""
        if key == IMAGES_CONTENT and key not in self.settings:
            # The data are missing now.
            return True
        if key not in before:
            return self.settings[key] == self.defaults.get(key)
        if key not in self.settings:
            return key not in self.defaults and key not in changed
        return before[key] == self.settings[key]


def _content_digest(path: Path) -> str | None:
    """SHA-256 of a file; of a yaml file its values count, without comments and order."""
    if path.suffix != ".yaml" or not path.is_file():
        return file_digest(path)
    text = json.dumps(read_yaml(path), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
