"""The steps as the recipe builds them: what starts from what, and what counts as a change."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.recipe import stage_table
from cityscapes_maskrcnn.recipe.chain import read_states
from cityscapes_maskrcnn.recipe.stages import Recipe, split_words, write_matching
from cityscapes_maskrcnn.recipe.step import Step, StepState
from cityscapes_maskrcnn.utils.errors import InputError

PROJECT = Path(__file__).parents[2]
CONFIGS = PROJECT / "configs" / "demo"
STAGE_0 = CONFIGS / "stage_0_backbone.yaml"
STEPS = tuple(stage_table.STEPS)
SCORES = ["scores/stage_1", "scores/stage_2", "scores/stage_3"]


@pytest.fixture(autouse=True)
def data(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))


def recipe(
    output: Path,
    *opts: str,
    stages: tuple[str, ...] = STEPS,
    trials: int = 3,
    confirm: int = 1,
    config_dir: Path = CONFIGS,
) -> Recipe:
    return Recipe(
        config_dir=config_dir,
        output=output,
        tools=PROJECT / "tools",
        build_config=build_config,
        opts=["MODEL.DEVICE", "cpu", *opts],
        selected=stages,
        trials=trials,
        confirm=confirm,
    )


def options(command: tuple[str, ...]) -> dict[str, str]:
    """The words after the tool's name, in pairs, but for flags without a value."""
    words = [word for word in command[2:] if word not in ("--resume", "--eval-only")]
    return dict(zip(words[0::2], words[1::2], strict=True))


def test_configs_are_read_once(tmp_path: Path) -> None:
    files = []

    def counting(file: str, opts: list[str]) -> CfgNode:
        files.append(file)
        return build_config(file, opts)

    whole = recipe(tmp_path)
    whole.build_config = counting
    first, second = whole.steps(), whole.steps()
    # The anchors are fitted with stage 1's.
    assert len(files) == len(STEPS) == len(set(files)) + 1
    # No step has changed what the next one reads.
    assert [step.settings for step in first] == [step.settings for step in second]
    assert {step.name: step.iterations for step in first}["stage_3"] > 0


def test_every_step_hands_on(tmp_path: Path) -> None:
    steps = {step.name: step for step in recipe(tmp_path).steps()}
    assert list(steps) == [*STEPS, *SCORES]
    weights = {name: str(tmp_path / name / "model_final.pth") for name in STEPS}
    anchors = str(tmp_path / "anchors" / "anchors.yaml")
    search = tmp_path / "search"
    handed = {name: options(step.commands[0]) for name, step in steps.items()}
    analyze = options(steps["search"].commands[1])
    expected = {
        "stage_0": {"MODEL.WEIGHTS": build_config(str(STAGE_0), []).MODEL.WEIGHTS},
        "stage_1": {"MODEL.WEIGHTS": weights["stage_0"]},
        # Three levels and ratios: as in the demo's stage_2_tuned.yaml.
        "anchors": {
            "--output": anchors,
            "--dataset": "cityscapes_instance_train",
            "--num-sizes": "3",
            "--num-ratios": "3",
        },
        "search": {
            "MODEL.WEIGHTS": weights["stage_1"],
            "INCLUDE": str((anchors,)),
            "--trials": "3",
            "--confirm": "1",
            "--storage": analyze["--storage"],
        },
        # Both stages start from their parent, with the same anchors and thresholds.
        "stage_2": {
            "MODEL.WEIGHTS": weights["stage_1"],
            "INCLUDE": str((anchors, str(search / "best.yaml"))),
        },
        "stage_3": {
            "MODEL.WEIGHTS": weights["stage_2"],
            "INCLUDE": str((anchors, str(search / "matching.yaml"))),
        },
    }
    # Every stage is scored on what the last one reports on.
    for stage in ("stage_1", "stage_2", "stage_3"):
        expected[f"scores/{stage}"] = {
            "--config-file": str(tmp_path / stage / "config.yaml"),
            "MODEL.WEIGHTS": weights[stage],
            "DATASETS.TEST": "('cityscapes_instance_val_part3and4of4',)",
        }
    for name, pairs in expected.items():
        assert {key: handed[name].get(key) for key in pairs} == pairs
        assert steps[name].commands[0][0] == sys.executable
    # And a gallery is drawn of the last one.
    assert [len(steps[name].commands) for name in SCORES] == [1, 1, 2]
    gallery = steps["scores/stage_3"].commands[1]
    assert gallery[1] == str(PROJECT / "tools" / "make_gallery.py")
    drawn = options(gallery)
    assert drawn.pop("--output") == str(tmp_path / "gallery")
    assert drawn.items() <= handed["scores/stage_3"].items()
    assert "INCLUDE" not in handed["stage_1"]
    assert analyze["--output"] == str(search)
    assert steps["stage_1"].outputs == ("model_final.pth", "summary.json", "config.yaml")


def test_the_plan_counts(tmp_path: Path) -> None:
    steps = {step.name: step for step in recipe(tmp_path, "SOLVER.EPOCHS", "2").steps()}
    # 8 images of train, 2 a batch: 2 x 4 iterations; an image or two may have no instance.
    images = steps["stage_1"].images
    assert 6 <= images <= 8
    assert steps["stage_1"].iterations == 2 * -(-images // 2)
    assert steps["search"].iterations == 5 * 2 * 1  # 3 trials + 2 seeds of one; 2 epochs of 1 image
    assert steps["scores/stage_1"].images == 2  # of 6 in 4 parts: 2 2 1 1


def complete(step: Step) -> None:
    step.begin()
    for name in step.outputs:
        (step.folder / name).write_text(name)
    step.finish()


def test_what_is_complete_is_used_by_later_calls(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage_2 starts from the weights of stage_1, which"):
        recipe(tmp_path, stages=("stage_2",)).steps()
    own = recipe(tmp_path, "MODEL.WEIGHTS", "mine.pth", stages=("stage_2",)).steps()[0]
    assert options(own.commands[0])["MODEL.WEIGHTS"] == "mine.pth"
    assert own.settings["MODEL.WEIGHTS"] == "mine.pth"

    complete(recipe(tmp_path, "MODEL.WEIGHTS", "", stages=("stage_1",)).steps()[0])
    steps = recipe(tmp_path, stages=("stage_2",)).steps()
    assert [step.name for step in steps] == ["stage_2", "scores/stage_1", "scores/stage_2"]
    handed = options(steps[0].commands[0])
    assert handed["MODEL.WEIGHTS"] == str(tmp_path / "stage_1" / "model_final.pth")
    assert "INCLUDE" not in handed


def test_what_counts_as_another_config(tmp_path: Path) -> None:
    def state(*opts: str, trials: int = 3) -> list[StepState]:
        chosen = recipe(tmp_path, *opts, stages=("stage_0", "search"), trials=trials)
        return list(read_states(chosen.steps()[:2]).values())

    done = StepState.COMPLETE
    complete(recipe(tmp_path, stages=("stage_0", "stage_1")).steps()[1])
    for step in recipe(tmp_path, stages=("stage_0", "search")).steps()[:2]:
        complete(step)
    # Where and how, not what.
    harmless = (
        "DATALOADER.NUM_WORKERS 2 TEST.NUM_WORKERS 4 TEST.ANALYSIS_CONFIDENCE 0.1 VIS_PERIOD 9 "
        "SEARCH.HEARTBEAT_SECONDS 9 TEST.BATCH_SIZE 4 INPUT.CACHE disk MODEL.COMPILE auto "
        "MODEL.ACTIVATION_CHECKPOINTING ('res5',) MODEL.FOLD_FROZEN_NORM False"
    )
    assert state(*harmless.split()) == [done, done]
    # A key of another version, with its default on its side.
    note = tmp_path / "stage_0" / "inputs.json"
    content = json.loads(note.read_text())
    assert content["settings"].pop("MODEL.KEYPOINT_ON") == "False"
    content["settings"]["OLD.KEY"] = "1"
    note.write_text(json.dumps(content))
    assert state() == [done, done]
    assert state(trials=4) == [done, StepState.UNFINISHED]
    with pytest.raises(InputError, match=r"stage_0: was made with SEED 42, now 7; choose another"):
        state("SEED", "7")
    with pytest.raises(InputError, match=r"search: .*PARAMETERS.fg_iou_thresh.HIGH 0.7, now"):
        state("SEARCH.PARAMETERS.fg_iou_thresh.HIGH", "0.6")


def test_other_images_of_the_same_names_are_another_step(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_root, root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))

    def stage_1() -> Step:
        keys = ("MODEL.WEIGHTS", "")
        return recipe(tmp_path / "out", *keys, stages=("stage_1",)).steps()[0]

    def state() -> StepState:
        return stage_1().read_state()

    complete(stage_1())
    assert state() == StepState.COMPLETE
    image = next(root.rglob("leftImg8bit/train/*/*.png"))
    image.unlink()
    with pytest.raises(InputError, match="was made with content of DATASETS SHA-256"):
        state()
    # Without the data nothing can be said.
    stage_1().begin()
    shutil.rmtree(root / "cityscapes" / "gtFine" / "val")
    assert stage_1().missing
    assert state() == StepState.UNFINISHED


@pytest.mark.parametrize(
    ("opts", "settings", "message"),
    [
        (["OUTPUT_DIR", "x"], {}, "OUTPUT_DIR: the chain sets it"),
        (["SEED"], {}, "KEY VALUE pairs; one is incomplete"),
        ([], {"stages": ("stage_9",)}, "--stages stage_9: there is no such step"),
        (
            [],
            {"stages": ()},
            "--stages names no step: name at least one of stage_0, stage_1, anchors",
        ),
        ([], {"trials": 0}, "--trials 0: at least 1"),
        ([], {"confirm": -1}, "--confirm -1: at least 0"),
        (
            ["DATASETS.TRAIN", "('cityscapes_instance_val_part4of4','cityscapes_instance_val')"],
            {"stages": ("anchors",)},
            "anchors: they are fitted to one dataset",
        ),
    ],
)
def test_bad_input(tmp_path: Path, opts: list[str], settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(tmp_path, *opts, **settings).steps()


@pytest.mark.parametrize(
    ("folder", "missing"),
    [
        ("gtCoarse", ["stage_0"]),
        ("gtFine", [*STEPS[1:], *SCORES]),
        # Stage 0 has other annotations, and anchors are fitted to train; all others use val.
        ("gtFine/val", ["stage_1", "search", "stage_2", "stage_3", *SCORES]),
    ],
)
def test_missing_data_do_not_hide_the_plan(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    missing: list[str],
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_root, root)
    shutil.rmtree(root / "cityscapes" / folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    steps = recipe(tmp_path / "output", "SOLVER.EPOCHS", "2").steps()
    assert [step.name for step in steps] == [*STEPS, *SCORES]
    assert [step.name for step in steps if step.missing] == missing
    for step in steps:
        if step.missing:
            assert f"{root}/cityscapes/{folder}" in step.missing["data"]
        # Epochs of unknown length have an unknown number of iterations.
        if step.images == 0:
            assert step.missing
            assert step.iterations == 0


def test_weights_that_are_no_file_are_found_before_anything_starts(tmp_path: Path) -> None:
    def missing(weights: str, *stages: str) -> dict[str, str]:
        steps = recipe(tmp_path, "MODEL.WEIGHTS", weights, stages=stages).steps()
        return {step.name: step.missing["weights"] for step in steps if step.missing}

    problem = "MODEL.WEIGHTS typo.pth: no such file; name the weights to start from"
    assert missing("typo.pth", "search", "stage_3") == {"search": problem, "stage_3": problem}
    assert "is a folder" in missing(str(tmp_path), "stage_2")["stage_2"]
    (tmp_path / "mine.pth").touch()
    for fine in (str(tmp_path / "mine.pth"), "", "detectron2://R-50.pkl"):
        assert missing(fine, "stage_2") == {}
    # Outputs of an earlier step of the plan are there when they are needed.
    output = str(tmp_path / "stage_1" / "model_final.pth")
    assert list(missing(output, "stage_1", "stage_3")) == ["stage_1"]
    assert list(missing(output, "anchors", "stage_3")) == ["stage_3"]


def test_a_training_with_a_checkpoint_goes_on_without_the_weights_it_began_with(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_text("weights")

    def stage_2() -> Step:
        keys = ("MODEL.WEIGHTS", str(mine))
        return recipe(tmp_path / "out", *keys, stages=("stage_2",)).steps()[0]

    stage_2().begin()
    mine.unlink()
    assert list(stage_2().missing) == ["weights"]
    (stage_2().folder / "last_checkpoint").touch()
    assert not stage_2().missing
    assert read_states([stage_2()]) == {"stage_2": StepState.UNFINISHED}
    assert "MODEL.WEIGHTS" not in stage_2().needs


def test_stage_3_takes_the_model_and_not_the_schedule(tmp_path: Path) -> None:
    best = {
        "MODEL": {
            "RPN": {"IOU_THRESHOLDS": [0.2, 0.8]},
            "ROI_HEADS": {"IOU_LABELS": [0, -1, 1]},
            "FPN": {"FREEZE": True},
        },
        "SOLVER": {"BASE_LR": 0.5},
        "DATASETS": {"TUNED_ON": ["cityscapes_instance_val_part1of4"]},
    }
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(best))
    write_matching(tmp_path / "best.yaml", tmp_path / "matching.yaml")
    assert yaml.safe_load((tmp_path / "matching.yaml").read_text()) == {
        "MODEL": {"RPN": {"IOU_THRESHOLDS": [0.2, 0.8]}, "ROI_HEADS": {"IOU_LABELS": [0, -1, 1]}},
        "DATASETS": {"TUNED_ON": ["cityscapes_instance_val_part1of4"]},
    }


def test_words_are_split() -> None:
    assert split_words(["stage_1", "anchors", "SEED", "3"]) == (
        ["stage_1", "anchors"],
        ["SEED", "3"],
    )
    assert split_words(["stage_1"]) == (["stage_1"], [])


@pytest.mark.parametrize(
    ("folder", "weights"),
    [("r101", "torchvision://resnet101"), ("convnext_t", "torchvision://convnext_tiny")],
)
def test_without_coarse_data_each_backbone_starts_from_its_own_weights_of_imagenet(
    folder: str, weights: str, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_root, root, ignore=shutil.ignore_patterns("gtCoarse"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    config_dir = PROJECT / "configs" / folder
    stage_0 = recipe(tmp_path / "output", config_dir=config_dir).steps()[0]
    assert stage_0.missing["data"].endswith(f"MODEL.WEIGHTS {weights}")
    stage_1 = recipe(
        tmp_path / "output", "MODEL.WEIGHTS", weights, stages=STEPS[1:], config_dir=config_dir
    ).steps()[0]
    assert options(stage_1.commands[0])["MODEL.WEIGHTS"] == weights
    # timm's stand for themselves.
    timms = "timm://convnext_tiny.in12k_ft_in1k"
    stage_0 = recipe(tmp_path / "output", "MODEL.WEIGHTS", timms, config_dir=config_dir).steps()[0]
    assert stage_0.missing["data"].endswith(f"MODEL.WEIGHTS {timms}")
    # Of weights of one's own it is not known which network they are of.
    own = recipe(tmp_path / "output", "MODEL.WEIGHTS", "my.pth", config_dir=config_dir)
    assert "ImageNet" not in own.steps()[0].missing["data"]
