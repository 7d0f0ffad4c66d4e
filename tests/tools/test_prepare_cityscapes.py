from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty validation images of 64x128 pixels with their annotations."""
    images = tmp_path / "data/cityscapes/leftImg8bit/val/lindau"
    truth = tmp_path / "data/cityscapes/gtFine/val/lindau"
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    for number in range(20):
        stem = f"lindau_{number:06d}_000019"
        shape = (64, 128)
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(images / f"{stem}_leftImg8bit.png")
        Image.fromarray(np.full(shape, 7, np.uint8)).save(truth / f"{stem}_gtFine_labelIds.png")
        Image.fromarray(np.full(shape, 7, np.uint16)).save(truth / f"{stem}_gtFine_instanceIds.png")
        annotation = {"imgHeight": 64, "imgWidth": 128, "objects": []}
        (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(annotation))
    return tmp_path / "data"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "datasets/prepare_cityscapes.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_tree_in_order(root):
    result = run(root, "--allow-subset")
    assert result.returncode == 0, result.stderr
    assert "gtFine/val                 20           20       500  ok" in result.stdout
    assert result.stdout.endswith("\nThe tree is in order.\n")
    assert run(root / "cityscapes", "--allow-subset").stdout == result.stdout
    assert run("--allow-subset", DETECTRON2_DATASETS=str(root)).stdout == result.stdout


def test_subset_is_trouble_unless_allowed(root):
    result = run(root)
    assert result.returncode == 1
    assert "20 images where the official release has 500" in result.stdout
    assert result.stdout.count("pixels") == 1  # one line for one cause
    assert "--allow-subset" in result.stdout
    assert result.stdout.endswith("\nThe tree is not in order.\n")
    assert result.stderr == ""


def test_damaged_image(root):
    image = root / "cityscapes/leftImg8bit/val/lindau/lindau_000007_000019_leftImg8bit.png"
    image.write_bytes(image.read_bytes()[:-30])
    result = run(root, "--allow-subset")
    assert result.returncode == 1
    assert f"  {image}: not a whole PNG file" in result.stdout
    assert "1 problem\n" in result.stdout


def test_missing_root(tmp_path):
    result = run(tmp_path / "nowhere")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path}/nowhere: no such folder")
    assert result.stderr.count("\n") == 1


def test_download_hands_over_to_the_official_downloader(tmp_path):
    # Without a keyboard to type a name on, it gives up before it asks the network for anything.
    result = run(tmp_path / "data", "--download", HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path))
    assert result.returncode == 1
    assert "Cityscapes username" in result.stdout
    assert result.stderr.splitlines()[-1].startswith(
        "error: could not download gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip (reason "
    )
