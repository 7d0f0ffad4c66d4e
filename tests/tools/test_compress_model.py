"""Quantisation and pruning as a user runs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog

from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor

Run = Callable[..., subprocess.CompletedProcess[str]]

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
TRAIN, VAL = "cityscapes_instance_train", "cityscapes_instance_val"


def test_int8_scores_predicts_and_remembers(
    exported: Path, tool: Run, small_root: Path, tmp_path: Path
) -> None:
    output = tmp_path / "int8"
    flags = ["--model", exported, "--output", output, "--calibration", TRAIN, "--score", VAL]
    done = tool("tools/compress_model.py", "quantize", *flags, "--num-images", 3, "--budget", 100)
    assert done.returncode == 0, done.stderr
    title, header, of_float, of_int8, last = done.stdout.splitlines()
    assert title == f"Cityscapes instance protocol (official), {VAL}, 6 images, percent"
    assert header.split() == ["AP", "loss", "in", "float"]
    assert of_float.split()[1:] == ["everything"]
    assert of_int8.split()[2:] == ["nothing"]
    assert last.startswith("int8, nothing in float: ")
    assert [each.name for each in tmp_path.iterdir()] == ["int8"]
    assert sorted(each.name for each in output.iterdir()) == ["model.json", "model.onnx"]

    model = output / "model.onnx"
    card, before = (json.loads(each.with_suffix(".json").read_text()) for each in (model, exported))
    assert card["file"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert card["quantized"]["from"]["sha256"] == before["file"]["sha256"]
    assert card["quantized"]["calibration"] == {"dataset": TRAIN, "images": 3}
    assert card["checkpoint"] == before["checkpoint"]
    seen = [
        (each["dataset"], each["role"], each["images"])
        for each in card["cityscapes_maskrcnn.seen_images"]
    ]
    assert seen == [(TRAIN, "trained", 8), (TRAIN, "tuned", 3)]

    # The scoring tool finds the same AP, and refuses the images that were seen.
    score = ["tools/evaluate_results.py", "--results", model, "--dataset"]
    scored = tool(*score, VAL)
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.splitlines()[-1].split()[1] == of_int8.split()[0]
    refused = tool(*score, TRAIN)
    assert refused.returncode == 1
    assert "8 of the 8 images of cityscapes_instance_train were trained on" in refused.stderr
    assert "3 of the 8 images of cityscapes_instance_train were tuned on" in refused.stderr

    image = next((small_root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))
    assert OnnxPredictor(model)(image).masks.shape[1:] == (96, 192)
    found = tmp_path / "found.jsonl"
    done = tool("tools/predict.py", "--model", model, "--input", image, "--output", found)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--budget", "101"], "--budget 101: it must be between 0 and 100 points of AP"),
        (["--budget", "nan"], "--budget nan: it must be between 0 and 100 points of AP"),
        (["--score", TRAIN], "the model has seen images that it is to be scored on: 8 of the 8"),
        (["--calibration", VAL], f"--score {VAL}: 6 of its images are calibrated on ("),
        (["--calibration", ""], "--form int8 needs --calibration, a dataset of training images"),
        (
            ["--form", "weights"],
            f"--calibration {TRAIN}: --form weights needs none; leave it out",
        ),
        (["--form", "fp16"], f"--calibration {TRAIN}: --form fp16 needs none; leave it out"),
        (["--calibration", "EMPTY"], "--calibration EMPTY: has no images to calibrate on"),
        (
            ["--config-file", "TWO"],
            f"--score {VAL}: has no labels of the model's rider, truck, bus, train, motorcycle,",
        ),
        (["--calibration", "cityscapes_instance_tran"], "unknown dataset 'cityscapes_instance_tra"),
        (["--model", "none.onnx"], "none.onnx: no such file"),
        (["--model", "OTHER"], "OTHER.json: missing; it belongs beside OTHER.onnx"),
        (["--output", "TAKEN"], "TAKEN: exists already; name another --output"),
    ],
)
def test_bad_input_is_one_line(
    exported: Path,
    tool: Run,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    problem: str,
) -> None:
    monkeypatch.setitem(DatasetCatalog.data, "EMPTY", lambda: [])
    two = tmp_path_factory.mktemp("config") / "two.yaml"
    two.write_text(
        f"_BASE_: {STAGE_1}\n"
        "DATASETS: {CLASSES: [person, car]}\nMODEL: {ROI_HEADS: {NUM_CLASSES: 2}}\n"
    )
    taken, other = tmp_path / "taken", tmp_path / "other.onnx"
    taken.mkdir()
    shutil.copy(exported, other)
    names = {"TAKEN": str(taken), "OTHER": str(other), "TWO": str(two)}
    output = tmp_path / "output"
    done = tool(
        "tools/compress_model.py",
        "quantize",
        *["--model", exported, "--output", output, "--calibration", TRAIN, "--score", VAL],
        *[names.get(flag, flag) for flag in flags],
    )
    problem = problem.replace("OTHER.json", str(other.with_suffix(".json")))
    problem = problem.replace("OTHER.onnx", other.name).replace("TAKEN", str(taken))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {problem}")
    assert done.stderr.count("\n") == 1
    assert not output.exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other.onnx", "taken"]


def test_without_the_extra(
    exported: Path, tool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = tool(
        "tools/compress_model.py",
        "quantize",
        *["--model", exported, "--output", tmp_path / "output", "--score", VAL, "--form", "fp16"],
    )
    assert done.stderr == (
        "error: quantisation needs a package that is not installed (onnx): pip install -e"
        " '.[compress]'\n"
    )


@pytest.fixture(scope="module")
def pruned(trained: Path, tool: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pruned checkpoint, not trained again."""
    folder = tmp_path_factory.mktemp("pruned") / "half"
    done = tool(
        "tools/compress_model.py",
        "prune",
        *["--config-file", trained / "config.yaml", "--ratio", 0.5, "--output", folder],
        *["MODEL.WEIGHTS", trained / "model_final.pth"],
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == f"{folder}/model_pruned.pth: 90,608 of 317,920 parameters are left (29%)"
    assert last == (
        f"to train it again: python tools/train_net.py --config-file {folder}/config.yaml"
    )
    return folder


def test_every_tool_takes_a_pruned_checkpoint(
    pruned: Path, trained: Path, tool: Run, small_root: Path, tmp_path: Path
) -> None:
    checkpoint = pruned / "model_pruned.pth"
    config = ["--config-file", pruned / "config.yaml"]
    image = next((small_root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))
    predicted = [*config, "--model", checkpoint, "--input", image]
    for command in (
        ["tools/train_net.py", *config, "--eval-only", "OUTPUT_DIR", tmp_path / "scored"],
        ["tools/describe_checkpoint.py", checkpoint],
        ["tools/visualize_predictions.py", *config, "--input", image, "--output", tmp_path / "d"],
        ["tools/predict.py", *predicted, "--output", tmp_path / "found.jsonl"],
        ["tools/export_model.py", *config, "--output", tmp_path / "onnx"],
    ):
        done = tool(*command)
        assert done.returncode == 0, done.stderr
        if command[0] == "tools/describe_checkpoint.py":
            assert "trained on cityscapes_instance_train: 8 generated images" in done.stdout
            assert f"parents     {trained}/model_final.pth, sha256 " in done.stdout
    assert (tmp_path / "scored" / "scores.json").is_file()
    card = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert card["checkpoint"]["parents"][0]["file"] == f"{trained}/model_final.pth"
    assert card["compared_with_pytorch"]["detections"] == 50


def test_a_pruned_checkpoint_trains_and_resumes_exactly(
    pruned: Path, tool: Run, tmp_path: Path
) -> None:
    train = ["tools/train_net.py", "--config-file", pruned / "config.yaml"]
    keys = ["SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_EPOCHS", 0]
    keys += ["SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    resumed.mkdir()
    for flags, output in (([], whole), (["--resume"], resumed)):
        done = tool(*train, *flags, *keys, "OUTPUT_DIR", output)
        assert done.returncode == 0, done.stderr
        shutil.copy(whole / "model_0000001.pth", resumed)
    expected, found, before = (
        torch.load(path, weights_only=True)["model"]
        for path in (
            whole / "model_final.pth",
            resumed / "model_final.pth",
            pruned / "model_pruned.pth",
        )
    )
    assert expected.keys() == found.keys() == before.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    stem = "backbone.bottom_up.stem.conv1.weight"
    assert not torch.equal(expected[stem], before[stem])


def test_configs_and_checkpoints_that_do_not_fit(
    pruned: Path, trained: Path, tool: Run, tmp_path: Path
) -> None:
    flags = ["--eval-only", "OUTPUT_DIR", tmp_path / "scored", "MODEL.WEIGHTS"]
    for folder, weights, problem in (
        (trained, pruned / "model_pruned.pth", "is a pruned checkpoint"),
        (pruned, trained / "model_final.pth", "was not pruned"),
    ):
        done = tool("tools/train_net.py", "--config-file", folder / "config.yaml", *flags, weights)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {weights}: {problem}, and the config has other MODEL.PRUNED_WIDTHS; take the"
            " config.yaml that was written beside the checkpoint\n"
        )
    again = ["--config-file", pruned / "config.yaml", "--ratio", 0.5, "--output"]
    for output, problem in (
        (tmp_path / "again", "MODEL.PRUNED_WIDTHS: the model is pruned already; prune the orig"),
        (pruned, f"{pruned}: exists already; name another --output"),
    ):
        done = tool("tools/compress_model.py", "prune", *again, output)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {problem}")
