from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def step(tmp_path: Path) -> Step:
    (tmp_path / "parent.pth").write_text("parent")
    return Step(
        name="stage_1",
        folder=tmp_path / "stage_1",
        commands=(),
        settings={"SOLVER.BASE_LR": "0.1", "SEED": "42"},
        defaults={"SOLVER.BASE_LR": "0.01", "SEED": "-1", "SOLVER.NEW": "False"},
        needs={"stage_0/model_final.pth": tmp_path / "parent.pth"},
        outputs=("model_final.pth",),
    )


def complete(step: Step) -> None:
    step.begin()
    for name in step.outputs:
        (step.folder / name).write_text("weights")
    step.finish()


def with_settings(step: Step, **changes: str) -> Step:
    """The step with other settings; an empty one is left out."""
    settings = {**step.settings, **{key.replace("__", "."): v for key, v in changes.items()}}
    return replace(step, settings={key: value for key, value in settings.items() if value})


def test_from_nothing_to_complete(step: Step) -> None:
    assert step.read_state() == StepState.NEW
    step.folder.mkdir()
    # What a killed write left is no obstacle.
    (step.folder / ".inputs.json.x7.tmp").write_text("{")
    assert step.read_state() == StepState.NEW
    step.begin()
    assert step.read_state() == StepState.UNFINISHED
    with pytest.raises(InputError, match=r"ended without writing model_final\.pth"):
        step.finish()
    (step.folder / "model_final.pth").write_text("weights")
    # The weights are there, but a kill came before the marker.
    assert step.read_state() == StepState.UNFINISHED
    step.finish()
    assert step.read_state() == StepState.COMPLETE


def test_another_setting_is_named(step: Step) -> None:
    step.begin()
    with pytest.raises(InputError) as caught:
        with_settings(step, SOLVER__BASE_LR="0.2").read_state()
    assert str(caught.value) == (
        f"{step.folder}: was made with SOLVER.BASE_LR 0.1, now 0.2; choose another --output, or "
        "delete the folder to run the step again"
    )
    with pytest.raises(InputError, match="SEED 42, now nothing"):
        with_settings(step, SEED="").read_state()


def without_key(path: Path, key: str) -> None:
    """Make a note as an earlier version of this project wrote it."""
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


def test_a_key_of_another_version_with_its_default_is_no_difference(step: Step) -> None:
    complete(step)
    # A later version has one more key ...
    assert with_settings(step, SOLVER__NEW="False").read_state() == StepState.COMPLETE
    with pytest.raises(InputError, match=r"with SOLVER\.NEW nothing, now True;"):
        with_settings(step, SOLVER__NEW="True").read_state()
    # ... or one less.
    later = {key: value for key, value in step.defaults.items() if key != "SOLVER.NEW"}
    now = replace(step, defaults=later)
    complete(with_settings(step, SOLVER__NEW="False"))
    assert now.read_state() == StepState.COMPLETE
    complete(with_settings(step, SOLVER__NEW="True"))
    with pytest.raises(InputError, match=r"with SOLVER\.NEW True, now nothing;"):
        now.read_state()
    # Earlier versions did not note which values were defaults.
    without_key(step.folder / "inputs.json", "changed")
    assert now.read_state() == StepState.COMPLETE


def test_another_parent(step: Step, tmp_path: Path) -> None:
    complete(step)
    (tmp_path / "parent.pth").write_text("other")
    assert step.read_state() == StepState.OUTDATED
    # Other settings are the user's to resolve.
    with pytest.raises(InputError, match=r"made with SEED 42, now 7;"):
        with_settings(step, SEED="7").read_state()
    # One that is not there yet is judged when it is.
    (tmp_path / "parent.pth").unlink()
    assert step.read_state() == StepState.COMPLETE
    more = replace(step, needs={**step.needs, "anchors/anchors.yaml": tmp_path / "anchors.yaml"})
    with pytest.raises(InputError, match=r"made with another anchors/anchors\.yaml;"):
        more.read_state()


def test_an_included_file_counts_by_its_values(step: Step, tmp_path: Path) -> None:
    """More trials give another comment and, mostly, the same best values."""
    best = tmp_path / "best.yaml"
    best.write_text("# The best of 2 trials\nSOLVER: {BASE_LR: 0.1}\nVERSION: 2\n")
    step = replace(step, needs={"search/best.yaml": best})
    complete(step)
    best.write_text("# The best of 4 trials\nVERSION: 2\nSOLVER:\n  BASE_LR: 0.1\n")
    assert step.read_state() == StepState.COMPLETE
    best.write_text("SOLVER: {BASE_LR: 0.2}\nVERSION: 2\n")
    assert step.read_state() == StepState.OUTDATED


def test_a_file_that_a_setting_names_counts_by_its_content(step: Step, tmp_path: Path) -> None:
    def named(name: str) -> Step:
        needs = {**step.needs, "MODEL.WEIGHTS": tmp_path / name}
        return replace(with_settings(step, MODEL__WEIGHTS=name), needs=needs)

    for name, text in (("mine.pth", "abc"), ("moved.pth", "abc"), ("other.pth", "def")):
        (tmp_path / name).write_text(text)
    named("mine.pth").begin()
    assert named("moved.pth").read_state() == StepState.UNFINISHED
    with pytest.raises(InputError, match=r"stage_1: was made with another MODEL\.WEIGHTS; choose"):
        named("other.pth").read_state()
    # Of a file that is gone its name is all that can be compared.
    (tmp_path / "mine.pth").unlink()
    assert named("mine.pth").read_state() == StepState.UNFINISHED
    with pytest.raises(InputError, match=r"with MODEL\.WEIGHTS mine\.pth, now typo\.pth; choose"):
        named("typo.pth").read_state()
    with pytest.raises(InputError, match=r"mine\.pth, now detectron2://x; choose"):
        with_settings(step, MODEL__WEIGHTS="detectron2://x").read_state()
    # Before content was looked at, a folder had the name only.
    with_settings(step, MODEL__WEIGHTS="mine.pth").begin()
    assert named("mine.pth").read_state() == StepState.UNFINISHED
    with pytest.raises(InputError, match=r"mine\.pth, now moved\.pth; choose"):
        named("moved.pth").read_state()


def test_more_trials_go_on_and_fewer_are_done(step: Step) -> None:
    def search(trials: int, confirm: int) -> Step:
        return replace(step, amounts={"trials": trials, "confirm": confirm})

    complete(search(20, 2))
    assert search(10, 2).read_state() == StepState.COMPLETE
    assert search(21, 2).read_state() == StepState.UNFINISHED
    assert search(20, 3).read_state() == StepState.UNFINISHED
    # What was not counted when the step ended is no more work.
    complete(replace(step, amounts={"trials": 20}))
    assert search(20, 3).read_state() == StepState.COMPLETE
    assert search(21, 3).read_state() == StepState.UNFINISHED


def test_outputs_that_are_no_longer_what_they_were(step: Step) -> None:
    complete(step)
    # A file that was not counted when the step ended.
    more = replace(step, outputs=("model_final.pth", "config.yaml"))
    (step.folder / "config.yaml").write_text("SEED: 1")
    assert more.read_state() == StepState.COMPLETE
    (step.folder / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml: was deleted after"):
        more.read_state()
    (step.folder / "model_final.pth").write_text("others")
    with pytest.raises(InputError, match=r"model_final\.pth: was changed after"):
        step.read_state()


def test_a_folder_of_somebody_else_is_left_alone(step: Step) -> None:
    step.folder.mkdir()
    (step.folder / "model_final.pth").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds model_final\.pth, which this command did not"):
        step.read_state()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("complete.json", "{", r"complete\.json: cannot be read"),
        ("complete.json", '{"amount": 0}', r"complete\.json: has no outputs and amounts"),
        ("inputs.json", "{}", r"inputs\.json: has no settings and files"),
        ("inputs.json", '{"settings": [], "files": {}}', r"inputs\.json: settings is damaged; del"),
        (
            "inputs.json",
            '{"settings": {"a": 1}, "files": {}}',
            r"inputs\.json: settings is damaged",
        ),
        ("inputs.json", '{"settings": {}, "files": {"a": 1}}', r"inputs\.json: files is damaged"),
        ("inputs.json", '{"settings": {}, "files": {}, "changed": 5}', "changed is damaged"),
    ],
)
def test_damaged_notes_get_one_line(step: Step, name: str, text: str, message: str) -> None:
    complete(step)
    (step.folder / name).write_text(text)
    with pytest.raises(InputError, match=message):
        step.read_state()
