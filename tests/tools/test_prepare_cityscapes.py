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
    advice = f"Training looks elsewhere: export DETECTRON2_DATASETS={root}\n"
    assert done.stdout.endswith(f"\nThe tree is in order.\n{advice}")
    assert prepare("--allow-subset", root=root).stdout == done.stdout.removesuffix(advice)
    # The folder that training would not find the tree in.
    done = prepare("--allow-subset", root=root / "cityscapes")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"(set DETECTRON2_DATASETS={root}; " in done.stderr

    image = next(root.glob("cityscapes/leftImg8bit/val/*/*.png"))
    image.write_bytes(image.read_bytes()[:-30])
    done = prepare(root, "--allow-subset")
    assert done.returncode == 1
    assert f"  {image}: truncated, or not an image" in done.stdout
    assert "1 problem\n" in done.stdout


def test_weather_variant(prepare: Run, root: Path) -> None:
    """Of val only, in two densities, of which one is checked; and an image in two cities."""
    for image in root.glob("cityscapes/leftImg8bit/val/*/*.png"):
        folder = root / "cityscapes/leftImg8bit_foggy/val" / image.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for beta in ("0.01", "0.02"):
            shutil.copy(image, folder / f"{image.stem}_foggy_beta_{beta}.png")
    options = ("--image-folder", "leftImg8bit_foggy", "--allow-subset", "--image-suffix")
    done = prepare(*options, "_leftImg8bit_foggy_beta_0.02.png", root=root)
    assert (done.returncode, "gtFine/train" in done.stdout) == (0, False), done.stdout
    assert "500  ok; 6 other image files are not read, such as frankfurt/frankfurt_" in done.stdout
    shutil.copy(image, image.parent.parent / "munster")
    done = prepare("--allow-subset", root=root)
    text = f"{image.name} is in several city folders (lindau, munster); keep one of them"
    assert (image.parent.name, text in done.stdout) == ("lindau", True)


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
