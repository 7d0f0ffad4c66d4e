from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_becomes_a_page(tool: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / "stage_0").mkdir(parents=True)
    done = tool(
        "tools/report.py", "--run", tmp_path / "run", "--output", tmp_path / "sub" / "r.html"
    )
    assert (done.returncode, done.stderr) == (0, "")
    size = (tmp_path / "sub" / "r.html").stat().st_size
    assert 10_000 < size < 100_000
    assert done.stdout == f"{tmp_path}/sub/r.html: {size / 1000:.0f} kB, open it in a browser\n"
    assert tool("tools/report.py", "--run", tmp_path / "run").returncode == 0
    assert "<!doctype html>" in (tmp_path / "run" / "report.html").read_text()


def test_no_run_gets_one_line(tool: Run, tmp_path: Path) -> None:
    done = tool("tools/report.py", "--run", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path}: no run of the recipe, which has folders such as stage_1; name the "
        "--output of tools/train_stages.py\n"
    )
