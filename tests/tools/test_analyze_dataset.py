from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

Run = Callable[..., CompletedProcess[str]]
PICTURES = {
    "classes.png",
    "sizes.png",
    "objects_per_image.png",
    "aspect_ratios.png",
    "visible_shares.png",
    "positions.png",
}
TRAIN, VAL = "cityscapes_instance_train", "cityscapes_instance_val"


def test_two_splits_are_compared(tool: Run, tmp_path: Path) -> None:
    output = tmp_path / "new" / "data"
    done = tool("tools/analyze_dataset.py", "--dataset", TRAIN, VAL, "--output", output)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.iterdir()} == PICTURES | {
        "report.md",
        "classes.csv",
        "objects.csv",
    }
    assert f"| {TRAIN} " in done.stdout
    assert str(output / "report.md") in done.stdout
    assert "8/8" in done.stderr  # the progress bar, of 8 images
    text = (output / "report.md").read_text()
    assert f"**{VAL}: generated scenes, not Cityscapes.**" in text
    assert "## Differences" in text
    for name in PICTURES:
        assert f"({name})" in text
        with Image.open(output / name) as picture:
            assert picture.width >= 1000
    rows = list(csv.DictReader((output / "classes.csv").open()))
    assert len(rows) == 2 * (1 + 8)
    objects = list(csv.DictReader((output / "objects.csv").open()))
    assert len(objects) == int(rows[0]["objects"]) + int(rows[9]["objects"]) > 20


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cityscapes_instance_vall"], "unknown dataset 'cityscapes_instance_vall'; did you mean"),
        (["cityscapes_instance_test"], "cityscapes_instance_test has no annotated instances"),
        (["cityscapes_fine_semantic_val"], "cityscapes_fine_semantic_val has no instances in the"),
        (["coco_2017_val"], "coco_2017_val has no instances in the Cityscapes layout; name a data"),
        ([VAL, VAL], f"--dataset {VAL} {VAL}: give one to 4, each once"),
    ],
)
def test_bad_input_is_one_line(tool: Run, tmp_path: Path, names: list[str], message: str) -> None:
    done = tool("tools/analyze_dataset.py", "--dataset", *names, "--output", tmp_path / "data")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_help(tool: Run) -> None:
    done = tool("tools/analyze_dataset.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_in_a_process_of_its_own(tool_process: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ("--dataset", VAL, "--output", tmp_path / "file")
    done = tool_process("tools/analyze_dataset.py", *flags)
    assert done.returncode == 1
    assert f"error: --output {tmp_path / 'file'}" in done.stderr.splitlines()[-1]
