from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "datasets" / "make_synthetic_cityscapes.py"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        check=False,
    )


def test_writes_all_splits_then_finds_them(tmp_path: Path) -> None:
    arguments = [
        str(tmp_path), "--train", "2", "--val", "1", "--test", "1", "--train-extra", "1",
        "--height", "64", "--width", "128", "--seed", "3", "--num-workers", "2",
    ]  # fmt: skip
    first = _run(*arguments)
    assert first.returncode == 0, first.stderr
    assert "train 2, val 1, test 1, train_extra 1 images of 64x128, written" in first.stdout
    assert "5/5" in first.stderr  # the progress bar
    images = [path.parent.parent.name for path in tmp_path.glob("cityscapes/leftImg8bit/*/*/*.png")]
    assert sorted(images) == ["test", "train", "train", "train_extra", "val"]
    second = _run(*arguments)
    assert second.returncode == 0
    assert "already there" in second.stdout
    assert second.stderr == ""


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cityscapes" / "leftImg8bit").mkdir(parents=True)
    other = _run(str(tmp_path), "--train", "1")
    assert other.returncode == 1
    assert other.stderr.count("\n") == 1
    assert str(tmp_path) in other.stderr
    assert "not synthetic" in other.stderr
    small = _run(str(tmp_path / "new"), "--height", "10")
    assert (small.returncode, small.stderr.count("\n")) == (1, 1)
    assert "10x512" in small.stderr
    blocked = tmp_path / "file"
    blocked.write_text("")
    wrong = _run(str(blocked), "--train", "1")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert str(blocked) in wrong.stderr
