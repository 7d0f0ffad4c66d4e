"""Export of a trained model as a user runs it, and the score of the file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from PIL import Image

from cityscapes_maskrcnn.deploy import export
from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor

PROJECT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_export_scores_and_predicts(
    trained: Path,
    tool: Run,
    small_root: Path,
    tmp_path: Path,
    without_other_packages: Callable[..., str],
) -> None:
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    config = ["--config-file", trained / "config.yaml"]
    val = "cityscapes_instance_val"
    done = tool("tools/export_model.py", *config, "--output", tmp_path, "--score", val, *weights)
    assert done.returncode == 0, done.stderr
    model = tmp_path / "model.onnx"
    first, title, _, pytorch, exported = done.stdout.splitlines()
    assert first.startswith(
        f"{model}: agrees with PyTorch on 5 images, 50 detections: boxes within"
    )
    assert title == f"Cityscapes instance protocol (official), {val}, 6 images, percent"
    assert pytorch.split()[0] == "pytorch" and exported.split()[0] == "exported"
    assert pytorch.split()[1:] == exported.split()[1:]
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["scores"]["images"] == 6
    assert card["checkpoint"]["data"][0]["dataset"] == "cityscapes_instance_train"
    assert re.fullmatch(r"[\w.]+, sources [0-9a-f]{12,64}", card["checkpoint"]["code"])

    gt_dir = small_root / "cityscapes" / "gtFine" / "val"
    script = PROJECT / "tools" / "evaluate_results.py"
    (tmp_path / "sitecustomize.py").write_text(without_other_packages("score", "deploy"))
    scored = subprocess.run(
        [sys.executable, script, "--results", model, "--gt-dir", gt_dir],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])},
        capture_output=True,
        text=True,
    )
    assert scored.returncode == 0, scored.stderr
    assert f"6 images of {gt_dir}" in scored.stdout
    assert scored.stdout.splitlines()[-1].split() == ["average", *exported.split()[1:]]
    # The file is still the one that the card describes.
    image = next((small_root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))
    found = OnnxPredictor(model)(image)
    assert found.masks.shape == (len(found.boxes), 96, 192)
    assert np.isfinite(found.scores).all()

    seen = ["--score", "cityscapes_instance_train"]
    done = tool("tools/export_model.py", *config, "--output", tmp_path, *seen, *weights)
    assert done.returncode == 1
    assert "error: the model has seen images that it is to be scored on" in done.stderr
    assert "Name others by --score, or set TEST.ALLOW_SEEN_IMAGES True" in done.stderr


def test_a_dataset_of_ones_own_brings_its_images(
    trained: Path, tool: Run, small_root: Path, tmp_path: Path
) -> None:
    """Those of the same names in the official tree, beside the ground truth, are not read."""
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    config = ["--config-file", trained / "config.yaml"]
    done = tool("tools/export_model.py", *config, "--output", tmp_path, *weights)
    assert done.returncode == 0, done.stderr
    images = tmp_path / "night"
    for each in (small_root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"):
        (images / each.parent.name).mkdir(parents=True, exist_ok=True)
        smaller = images / each.parent.name / each.name.replace("leftImg8bit", "night")
        Image.new("RGB", (96, 48)).save(smaller)
    own = tmp_path / "own.yaml"
    node = f"IMAGE_DIR: {images}, GT_DIR: cityscapes/gtFine/val, IMAGE_SUFFIX: _night.png"
    own.write_text(f"DATASETS: {{OWN: {{night_val: {{{node}}}}}}}")
    score = ["--results", tmp_path / "model.onnx", "--dataset", "night_val", "--config-file", own]
    done = tool("tools/evaluate_results.py", *score)
    assert done.returncode == 1
    assert f"{smaller.parents[1]}" in done.stderr
    assert "_night.png is 96x48 pixels, its ground truth 192x96" in done.stderr
    done = tool("tools/evaluate_results.py", *score, "--image-dir", images)
    assert done.returncode == 2 and "--image-dir: a dataset has its own images" in done.stderr


def test_a_dataset_of_other_classes(
    trained: Path, tool: Run, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As code of one's own would register it.
    monkeypatch.setitem(DatasetCatalog.data, "two_classes", lambda: [])
    gt_dir = str(small_root / "cityscapes" / "gtFine" / "val")
    two = Metadata(name="two_classes", thing_classes=["person", "car"], gt_dir=gt_dir)
    monkeypatch.setitem(MetadataCatalog.data, "two_classes", two)
    done = tool(
        "tools/export_model.py",
        *["--config-file", trained / "config.yaml", "--output", tmp_path],
        *["--score", "two_classes", "MODEL.WEIGHTS", trained / "model_final.pth"],
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: --score two_classes: its classes are person, car, the model's person, rider, car,"
        " truck, bus, train, motorcycle, bicycle; name a dataset with the model's classes"
    )


def test_scores_that_differ_are_an_error(
    trained: Path, tool: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {
        "dataset": "val",
        "images": 6,
        "pytorch": {"AP": 12.0, "AP50": 20.0},
        "exported": {"AP": 11.0, "AP50": 20.0},
    }
    monkeypatch.setattr(export, "compare_scores", lambda *_: scores)
    done = tool(
        "tools/export_model.py",
        *["--config-file", trained / "config.yaml", "--output", tmp_path],
        *["--score", "cityscapes_instance_val", "MODEL.WEIGHTS", trained / "model_final.pth"],
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {tmp_path}/model.onnx: its AP on val is 11.00, PyTorch's 12.00; more than 0.1"
        " points apart"
    )


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--opset", "99"], "error: --opset 99: it must be between 16 and 20\n"),
        (
            ["--format", "torchscript", "--score", "cityscapes_instance_val"],
            "error: --score: only --format onnx can be scored, not torchscript\n",
        ),
        (
            ["--score", "cityscapes_instance_vall"],
            "error: unknown dataset 'cityscapes_",
        ),
        (["--image", "none.png"], "error: none.png: "),
    ],
)
def test_bad_input_is_one_line(
    trained: Path, tool: Run, tmp_path: Path, flags: list[str], problem: str
) -> None:
    output = tmp_path / "exported"
    done = tool(
        "tools/export_model.py",
        *["--config-file", trained / "config.yaml", "--output", output],
        *flags,
        *["MODEL.WEIGHTS", trained / "model_final.pth"],
    )
    assert done.returncode == 1
    assert done.stderr.startswith(problem)
    assert done.stderr.count("\n") == 1
    assert not output.exists()
