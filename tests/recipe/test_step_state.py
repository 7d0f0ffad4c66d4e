from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from cityscapes_maskrcnn.recipe.step_state import (
    COMPLETE,
    NEW,
    UNFINISHED,
    Inputs,
    begin,
    finish,
    read_state,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest

INPUTS = Inputs({"SOLVER.BASE_LR": "0.1", "SEED": "42"}, {"stage_0/model_final.pth": "abc"})
OUTPUTS = ("model_final.pth",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stage_1"


@pytest.fixture
def complete(folder: Path) -> Path:
    begin(folder, INPUTS)
    (folder / "model_final.pth").write_bytes(b"weights")
    finish(folder, INPUTS, OUTPUTS)
    return folder


def test_from_nothing_to_complete(folder: Path) -> None:
    assert read_state(folder, INPUTS, OUTPUTS) == NEW
    folder.mkdir()
    assert read_state(folder, INPUTS, OUTPUTS) == NEW
    begin(folder, INPUTS)
    assert read_state(folder, INPUTS, OUTPUTS) == UNFINISHED
    (folder / "model_final.pth").write_bytes(b"weights")
    # The weights are there, but a kill came before the marker.
    assert read_state(folder, INPUTS, OUTPUTS) == UNFINISHED
    finish(folder, INPUTS, OUTPUTS)
    assert read_state(folder, INPUTS, OUTPUTS) == COMPLETE


def test_what_a_killed_write_left_is_no_obstacle(folder: Path) -> None:
    folder.mkdir()
    (folder / ".inputs.json.x7.tmp").write_text("{")
    assert read_state(folder, INPUTS, OUTPUTS) == NEW


def test_another_setting_is_named(complete: Path) -> None:
    now = replace(INPUTS, settings={"SOLVER.BASE_LR": "0.2", "SEED": "42"})
    with pytest.raises(InputError) as caught:
        read_state(complete, now, OUTPUTS)
    assert str(caught.value) == (
        f"{complete}: was made with SOLVER.BASE_LR 0.1, now 0.2; take another --output, or delete "
        "the folder to make it again"
    )


def test_an_unfinished_folder_is_refused_too(folder: Path) -> None:
    begin(folder, INPUTS)
    with pytest.raises(InputError, match="SEED 42, now nothing"):
        read_state(folder, replace(INPUTS, settings={"SOLVER.BASE_LR": "0.1"}), OUTPUTS)


def test_another_parent_is_named(complete: Path) -> None:
    other = replace(INPUTS, files={"stage_0/model_final.pth": "def"})
    with pytest.raises(InputError, match=r"made with another stage_0/model_final\.pth;"):
        read_state(complete, other, OUTPUTS)
    more = replace(INPUTS, files={**INPUTS.files, "anchors/anchors.yaml": None})
    with pytest.raises(InputError, match=r"made with another anchors/anchors\.yaml;"):
        read_state(complete, more, OUTPUTS)


def test_a_parent_that_is_not_there_yet_is_judged_later(complete: Path) -> None:
    unknown = replace(INPUTS, files={"stage_0/model_final.pth": None})
    assert read_state(complete, unknown, OUTPUTS) == COMPLETE


def test_a_file_that_a_setting_names_counts_by_its_content(folder: Path) -> None:
    def named(path: str, digest: str | None) -> Inputs:
        files = {**INPUTS.files, "MODEL.WEIGHTS": digest}
        return Inputs({**INPUTS.settings, "MODEL.WEIGHTS": path}, files)

    begin(folder, named("a/mine.pth", "abc"))
    assert read_state(folder, named("b/moved.pth", "abc"), OUTPUTS) == UNFINISHED
    with pytest.raises(InputError, match=r"stage_1: was made with another MODEL\.WEIGHTS; take"):
        read_state(folder, named("a/mine.pth", "def"), OUTPUTS)
    # Of a file that is gone its name is all that can be compared.
    assert read_state(folder, named("a/mine.pth", None), OUTPUTS) == UNFINISHED
    with pytest.raises(InputError, match=r"with MODEL\.WEIGHTS a/mine\.pth, now typo\.pth; take"):
        read_state(folder, named("typo.pth", None), OUTPUTS)
    address = replace(INPUTS, settings={**INPUTS.settings, "MODEL.WEIGHTS": "detectron2://x"})
    with pytest.raises(InputError, match=r"a/mine\.pth, now detectron2://x; take"):
        read_state(folder, address, OUTPUTS)
    with pytest.raises(InputError, match=r"WEIGHTS a/mine\.pth, now nothing; take"):
        read_state(folder, INPUTS, OUTPUTS)
    # Before content was looked at, a folder knew the name only.
    begin(folder, replace(named("a/mine.pth", "abc"), files=INPUTS.files))
    assert read_state(folder, named("a/mine.pth", "abc"), OUTPUTS) == UNFINISHED
    with pytest.raises(InputError, match=r"a/mine\.pth, now b/moved\.pth; take"):
        read_state(folder, named("b/moved.pth", "abc"), OUTPUTS)


def test_more_trials_go_on_and_fewer_are_done(folder: Path) -> None:
    search = replace(INPUTS, amount=20)
    begin(folder, search)
    finish(folder, search, ())
    assert read_state(folder, replace(search, amount=10), ()) == COMPLETE
    assert read_state(folder, replace(search, amount=21), ()) == UNFINISHED


@pytest.mark.parametrize("change", ["is gone", "was changed"])
def test_outputs_that_are_no_longer_what_they_were(complete: Path, change: str) -> None:
    path = complete / "model_final.pth"
    path.unlink() if change == "is gone" else path.write_bytes(b"others")
    with pytest.raises(InputError, match=f"model_final.pth: {change} since"):
        read_state(complete, INPUTS, OUTPUTS)


def test_outputs_that_were_not_counted_when_the_step_ended(complete: Path) -> None:
    outputs = (*OUTPUTS, "config.yaml")
    (complete / "config.yaml").write_text("SEED: 1")
    assert read_state(complete, INPUTS, outputs) == COMPLETE
    (complete / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml: is gone since"):
        read_state(complete, INPUTS, outputs)


def test_a_folder_of_somebody_else_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "model_final.pth").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds model_final\.pth, which this command did not"):
        read_state(folder, INPUTS, OUTPUTS)


def test_a_step_without_its_result_is_not_complete(folder: Path) -> None:
    begin(folder, INPUTS)
    with pytest.raises(InputError, match=r"ended without writing model_final\.pth"):
        finish(folder, INPUTS, OUTPUTS)
    assert read_state(folder, INPUTS, OUTPUTS) == UNFINISHED


def test_damaged_notes_get_one_line(complete: Path) -> None:
    (complete / "complete.json").write_text("{")
    with pytest.raises(InputError, match=r"complete\.json: cannot be read"):
        read_state(complete, INPUTS, OUTPUTS)
    (complete / "complete.json").write_text('{"amount": 0}')
    with pytest.raises(InputError, match=r"complete\.json: has no amount and outputs"):
        read_state(complete, INPUTS, OUTPUTS)
    (complete / "inputs.json").write_text("[]")
    with pytest.raises(InputError, match=r"inputs\.json: has no settings and files"):
        read_state(complete, INPUTS, OUTPUTS)


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert file_digest(tmp_path / "y") is None
