"""plot_training.py as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

TOOL = "tools/plot_training.py"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two stages."""
    for stage in ("stage_0", "stage_1"):
        folder = tmp_path / "recipe" / stage
        folder.mkdir(parents=True)
        lines = [
            {"iteration": at, "total_loss": 30 / (at + 9), "lr": 1e-3, "time": 1.0}
            for at in (19, 39)
        ]
        (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path / "recipe"


def test_a_folder_gets_a_picture_of_every_run_and_one_of_all(
    tool: Run, recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = recipe / "curves"
    done = tool(TOOL, recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    names = ["stage_0.png", "stage_1.png", "comparison.png"]
    assert done.stdout.splitlines() == [str(output / name) for name in names]
    assert all((output / name).stat().st_size > 1000 for name in names)
    done = tool(TOOL, recipe / "stage_0", "--output", recipe / "one.png")
    assert done.stdout == f"{recipe}/one.png\n"
    # A suffix in capitals names a picture too.
    done = tool(TOOL, recipe / "stage_0", "--output", recipe / "two.PNG")
    assert done.stdout == f"{recipe}/two.PNG\n"
    assert (recipe / "two.PNG").is_file()
    # A training that was killed leaves half a line; the picture is of all others.
    with (recipe / "stage_1" / "metrics.json").open("a") as file:
        file.write('{"iteration": 59, "tot')
    done = tool(TOOL, recipe / "stage_1", "--output", recipe / "one.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert caplog.messages == [f"{recipe}/stage_1/metrics.json: a line is no metrics: skipped"]


def test_bad_input_is_one_line(tool: Run, recipe: Path) -> None:
    (recipe / "empty").mkdir()
    (recipe / "begun").mkdir()
    (recipe / "begun" / "metrics.json").touch()
    advice = "name the output folder of a training"
    for folder, problem in {
        recipe / "typo": f"{recipe}/typo: no such folder; {advice}",
        recipe / "empty": f"{recipe}/empty: holds no metrics.json and no stage_*; {advice}",
        recipe / "begun": f"{recipe}/begun/metrics.json: no loss, score or learning rate in it; "
        "did training start?",
        recipe / "stage_0" / "metrics.json": f"{recipe}/stage_0/metrics.json: a file; {advice}",
    }.items():
        done = tool(TOOL, recipe / "stage_0", folder, "--output", recipe / "x.png")
        assert (done.returncode, done.stderr) == (1, f"error: {problem}\n")
    done = tool(TOOL, recipe, "--output", recipe / "stage_0" / "metrics.json")
    assert done.stderr.endswith("metrics.json: name a PNG file or a folder\n")
    assert not (recipe / "x.png").exists()
