from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def prepare(tool: Run) -> Run:
    return partial(tool, "datasets/prepare_cityscapes.py")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three validation images of 64x128 pixels with their annotations."""
    images = tmp_path / "data/cityscapes/leftImg8bit/val/lindau"
    annotations = tmp_path / "data/cityscapes/gtFine/val/lindau"
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for number in range(3):
        stem = f"lindau_{number:06d}_000019"
        Image.new("RGB", (128, 64)).save(images / f"{stem}_leftImg8bit.png")
        for name, dtype in (("labelIds", np.uint8), ("instanceIds", np.uint16)):
            ids = np.full((64, 128), 7, dtype)
            Image.fromarray(ids).save(annotations / f"{stem}_gtFine_{name}.png")
        content = {"imgHeight": 64, "imgWidth": 128, "objects": []}
        (annotations / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_tree_in_order_then_damaged(prepare: Run, root: Path) -> None:
    done = prepare(root, "--allow-subset")
    assert done.returncode == 0, done.stderr
    assert "gtFine/val                  3            3       500  ok" in done.stdout
    assert done.stdout.endswith("\nThe tree is in order.\n")
    assert prepare(root / "cityscapes", "--allow-subset").stdout == done.stdout
    assert prepare("--allow-subset", root=root).stdout == done.stdout

    image = root / "cityscapes/leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
    image.write_bytes(image.read_bytes()[:-30])
    done = prepare(root, "--allow-subset")
    assert done.returncode == 1
    assert f"  {image}: not a whole PNG file" in done.stdout
    assert "1 problem\n" in done.stdout


def test_subset_is_trouble_unless_allowed(prepare: Run, root: Path) -> None:
    done = prepare(root)
    assert (done.returncode, done.stderr) == (1, "")
    assert "3 images where the official release has 500" in done.stdout
    assert done.stdout.count("pixels") == 1  # one line for one cause
    assert "--allow-subset" in done.stdout
    assert done.stdout.endswith("\nThe tree is not in order.\n")


def test_missing_root(prepare: Run, tmp_path: Path) -> None:
    done = prepare(tmp_path / "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {tmp_path}/nowhere: no such folder")


def test_download_hands_over_to_the_official_downloader(
    prepare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a keyboard to type a name on, it gives up before it asks the network for anything.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = prepare(tmp_path / "data", "--download")
    assert done.returncode == 1
    assert "Cityscapes username" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "error: could not download gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip (reason "
    )
