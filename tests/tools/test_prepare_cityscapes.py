from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def prepare(tool: Run) -> Run:
    return partial(tool, "datasets/prepare_cityscapes.py")


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy, to damage it, of generated data of 96x192 pixels."""
    return shutil.copytree(small_root, tmp_path / "data")


def test_tree_in_order_then_damaged(prepare: Run, root: Path) -> None:
    done = prepare(root, "--allow-subset")
    assert done.returncode == 0, done.stderr
    assert "gtFine/val                  6            6       500  ok" in done.stdout
    assert done.stdout.endswith("\nThe tree is in order.\n")
    assert prepare(root / "cityscapes", "--allow-subset").stdout == done.stdout
    assert prepare("--allow-subset", root=root).stdout == done.stdout

    image = next(root.glob("cityscapes/leftImg8bit/val/*/*.png"))
    image.write_bytes(image.read_bytes()[:-30])
    done = prepare(root, "--allow-subset")
    assert done.returncode == 1
    assert f"  {image}: not a whole PNG file" in done.stdout
    assert "1 problem\n" in done.stdout


def test_subset_is_a_problem_unless_allowed(prepare: Run, small_root: Path) -> None:
    done = prepare(small_root)
    assert (done.returncode, done.stderr) == (1, "")
    assert "6 images where the official release has 500" in done.stdout
    assert "6 images are not 2048x1024 pixels, the first: " in done.stdout
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
