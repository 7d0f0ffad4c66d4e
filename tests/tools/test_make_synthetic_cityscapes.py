from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tool: Run) -> Run:
    return partial(tool, "datasets/make_synthetic_cityscapes.py")


def test_writes_all_splits_then_finds_them(make: Run, tmp_path: Path) -> None:
    counts = "--train 2 --val 1 --test 1 --train-extra 1 --height 64 --width 128 --seed 3"
    root = tmp_path / "a folder"
    arguments = [root, *counts.split(), "--num-workers", 1]
    first = make(*arguments)
    assert first.returncode == 0, first.stderr
    assert "train 2, val 1, test 1, train_extra 1 images of 64x128\n" in first.stdout
    assert first.stdout.endswith(f"export DETECTRON2_DATASETS='{root}'\n")
    images = [path.parent.parent.name for path in root.glob("cityscapes/leftImg8bit/*/*/*.png")]
    assert sorted(images) == ["test", "train", "train", "train_extra", "val"]
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    second = make(*arguments)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["real"], "real/cityscapes holds data that is not synthetic"),
        (["new", "--height", "10"], "10x512"),
        (["file"], "file/cityscapes"),
    ],
)
def test_bad_input_is_one_line(
    make: Run, arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "real" / "cityscapes" / "leftImg8bit").mkdir(parents=True)
    (tmp_path / "file").touch()
    done = make(tmp_path / arguments[0], "--train", "1", *arguments[1:])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_an_empty_name_is_not_the_current_folder(make: Run, tmp_path: Path) -> None:
    """As of a shell variable that is not set."""
    done = make("", "--train", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: ROOT is empty: name a folder\n")
    assert not list(tmp_path.iterdir())
