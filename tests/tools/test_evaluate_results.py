"""The scoring tool, started as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.evaluation.evaluator import ground_truth_files
from cityscapes_maskrcnn.evaluation.instance_ap import Prediction, ground_truth
from cityscapes_maskrcnn.evaluation.result_files import image_results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def case(tmp_path: Path) -> list[str]:
    """Flags of one image, two cars, one of them found; a train predicted where none is."""
    gt_dir, results = tmp_path / "gtFine" / "val", tmp_path / "results"
    (gt_dir / "ulm").mkdir(parents=True)
    results.mkdir()
    ids = np.full((40, 60), 7, dtype=np.uint16)
    ids[0:10, 0:10], ids[20:30, 0:10] = 26000, 26001
    Image.fromarray(ids).save(gt_dir / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png")
    for name, found in {"car": ids == 26000, "train": ids == 7}.items():
        Image.fromarray(np.uint8(found) * 255).save(results / f"{name}.png")
    (results / "ulm_000000_000019.txt").write_text("car.png 26 0.9\ntrain.png 31 0.5\n")
    return ["--results", str(results), "--gt-dir", str(gt_dir)]


def test_scores_and_writes_json(
    tmp_path: Path, case: list[str], without_other_packages: Callable[..., str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(without_other_packages("score"))
    script = ROOT / "tools" / "evaluate_results.py"
    more = ["--json", "out/scores.json", "--coco", "--num-workers", "1"]
    done = subprocess.run(
        [sys.executable, script, *case, *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Cityscapes instance protocol (official)" in done.stdout
    # Precision 1 up to recall 1/2: the stepwise area is (1 + 1) * 1/4 = 1/2.
    assert "car            50.00   50.00" in done.stdout
    assert "COCO-style protocol (pycocotools), percent" in done.stdout
    # COCO's precision is 1 at the recalls 0, 0.01, ..., 0.5: 51 of 101.
    assert "AP-car             50.50" in done.stdout
    averages = json.loads((tmp_path / "out" / "scores.json").read_text())["averages"]
    assert averages["allAp"] == averages["allAp50%"] == 0.5
    assert averages["classes"]["car"] == {"ap": 0.5, "ap50%": 0.5}
    assert averages["classes"]["train"] == {"ap": None, "ap50%": None}
    assert not (tmp_path / "matches.json").exists()


def test_bad_input_is_one_line_and_exit_1(
    tmp_path: Path, case: list[str], tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    mask = tmp_path / "results" / "car.png"
    mask.write_bytes(mask.read_bytes()[:50])
    done = tool("tools/evaluate_results.py", *case, "--json", tmp_path / "out.json")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: cannot read {mask} as an image")
    assert not (tmp_path / "out.json").exists()


def test_images_without_a_model_are_a_mistake(
    tmp_path: Path, case: list[str], tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = tool("tools/evaluate_results.py", *case, "--image-dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--image-dir: only a model, NAME.onnx, needs images; --results is none"
    )


def test_train_ids_are_an_error(
    tmp_path: Path,
    case: list[str],
    tool: Callable[..., subprocess.CompletedProcess[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = tmp_path / "results" / "ulm_000000_000019.txt"
    text.write_text("car.png 13 0.9\ntrain.png 16 0.5\n")
    done = tool("tools/evaluate_results.py", *case)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: 2 of 2 predictions have labels that are not scored: 13, 16; regular label ids are"
        " expected, car is 26\n"
    )
    text.write_text("car.png 26 0.9\ntrain.png 16 0.5\n")
    done = tool("tools/evaluate_results.py", *case)
    assert done.returncode == 0
    assert caplog.messages == [
        "1 of 2 predictions have labels that are not scored: 16; regular label ids are expected,"
        " train is 31"
    ]
    assert "car            50.00   50.00" in done.stdout


def test_zip_of_a_part_of_a_split(
    small_root: Path, tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Predictions are the ground truth of the part's images, and nothing is there of others."""
    part = "cityscapes_instance_val_part1of4"
    register_all(str(small_root))
    files = ground_truth_files(part)
    path = tmp_path / "part.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files.items():
            gt = ground_truth(read_instance_ids(file))
            perfect = [
                Prediction(gt.instance_mask(index), gt.categories[index], 0.5)
                for index in np.flatnonzero(gt.is_object)
            ]
            for entry, content in image_results(name, perfect):
                archive.writestr(entry, content)
    done = tool("tools/evaluate_results.py", "--results", path, "--dataset", part)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 images of cityscapes_instance_val_part1of4\n")
    assert "average       100.00  100.00" in done.stdout
    listed = [small_root / f"cityscapes/leftImg8bit/val/x/{name}_leftImg8bit.png" for name in files]
    (tmp_path / "list.txt").write_text("\n".join(map(str, listed)))
    same = tool(
        "tools/evaluate_results.py",
        "--results",
        path,
        "--gt-dir",
        small_root / "cityscapes/gtFine/val",
        "--image-list",
        tmp_path / "list.txt",
    )
    assert same.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]
    done = tool("tools/evaluate_results.py", "--results", path, "--dataset", part[:-8])
    assert "error: unknown dataset" in done.stderr
    # A variable of a shell that is not set.
    done = tool("tools/evaluate_results.py", "--results", path, "--dataset", "")
    assert done.stderr.startswith("error: unknown dataset ''")
    done = tool(
        "tools/evaluate_results.py", "--results", path, "--dataset", "cityscapes_instance_test"
    )
    assert "cityscapes_instance_test has no labels to score against" in done.stderr
    done = tool(
        "tools/evaluate_results.py", "--results", path, "--dataset", "cityscapes_instance_val"
    )
    assert done.returncode == 1
    assert f"{path} holds no result file " in done.stderr
