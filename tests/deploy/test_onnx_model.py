"""The whole tool on an exported model, without torch and Detectron2, and on its checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cityscapes_maskrcnn.deploy.checkpoint_model import CheckpointModel
from cityscapes_maskrcnn.deploy.frames import open_source
from cityscapes_maskrcnn.deploy.prediction_output import JsonLines
from cityscapes_maskrcnn.deploy.prediction_stream import PredictionStream

TOOL = Path(__file__).parents[2] / "tools" / "predict.py"


@pytest.fixture
def run_without_torch(
    tmp_path: Path, without_other_packages: Callable[..., str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the tool with what the extra ``predict`` installs."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(without_other_packages("predict"))
    path = os.pathsep.join([str(tmp_path / "hidden"), str(TOOL.parents[1])])

    def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(TOOL), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
        )

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, size in enumerate([(192, 96), (192, 96), (120, 100)]):
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, size, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{seed}.png"), picture)
    return folder


def test_exported_model_finds_what_its_checkpoint_finds(
    exported, config, images, tmp_path, run_without_torch
):
    thin = images / "3.png"
    cv2.imwrite(str(thin), np.zeros((1, 9000, 3), np.uint8))
    done = run_without_torch(
        "--model", exported, "--input", images, "--output", "a.jsonl", "pictures",
        "--score-thresh", 0.1, "--batch-size", 2, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"warning: {thin}: 9000x1 pixels cannot be resized to 192x0;" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: images that could not be read, see above: 1"
    assert done.stdout.startswith("3 images are in a.jsonl and pictures (")
    assert len(list((tmp_path / "pictures").iterdir())) == 3

    thin.unlink()
    config.TEST.BATCH_SIZE = 2
    model = CheckpointModel(config, 0.1)
    lines = JsonLines(tmp_path / "b.jsonl", model.class_names)
    PredictionStream(open_source([str(images)]), model, lines.write, depth=4).run(lambda: None)
    lines.close()

    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("a.jsonl", "b.jsonl")
    )
    assert len(ours) == len(theirs) > 0
    assert {entry["image_id"] for entry in ours} == {0, 1, 2}
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("image_id", "category_id", "category"):
            assert mine[key] == other[key]
        assert mine["score"] == pytest.approx(other["score"], abs=2e-4)
        np.testing.assert_allclose(mine["bbox"], other["bbox"], atol=0.05)
        masks = [coco_mask.decode(each["segmentation"]) for each in (mine, other)]
        assert (masks[0] != masks[1]).mean() < 1e-3
