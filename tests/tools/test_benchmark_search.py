from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_search.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True
    )


def test_simulated_curves() -> None:
    done = run("--simulated", 12, "--orders", 2, "SEARCH.PRUNER.REDUCTION", 3)
    assert done.returncode == 0, done.stderr
    assert "12 trials of 1000 iterations, with pruning / without" in done.stdout
    assert "training of a search" in done.stdout


def test_no_database(tmp_path: Path) -> None:
    done = run("--storage", tmp_path / "none.db")
    assert done.returncode == 1
    assert "none.db: no such file" in done.stderr.splitlines()[-1]


def test_numbers_that_make_no_sense() -> None:
    for wrong in (("--simulated", 0), ("--simulated", -1), ("--simulated", 9, "--orders", 0)):
        done = run(*wrong)
        assert done.returncode == 2
        assert f"argument {wrong[-2]}: " in done.stderr.splitlines()[-1]
    done = run("--simulated", 9, "--tolerance", -1)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: tolerance -1.0: at least 0"
