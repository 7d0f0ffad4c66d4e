"""The benchmark tool on a tiny case: it compares the scores itself, so it can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cityscapes_maskrcnn.benchmarks import evaluation
from cityscapes_maskrcnn.benchmarks.evaluation import benchmark_evaluation
from cityscapes_maskrcnn.benchmarks.evaluation_at_scale import benchmark_scale

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "benchmark.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = ("--predictions", "12", "--height", "96", "--width", "192")


def test_evaluation_prints_ratios_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "evaluation", "--images", "2", "--repeats", "1", *SMALL)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| here")]
    assert len(rows) == 5
    # Times, then ratios to the other system.
    assert all(float(row[1]) > 0 and row[4].strip().endswith("x") for row in rows)
    assert not list(tmp_path.iterdir())


def test_at_scale_has_a_row_for_every_number_of_workers() -> None:
    table = benchmark_scale(9, 12, 96, 192, [1, 0]).splitlines()[-2:]
    cells = [[float(cell) for cell in row.split("|")[1:-1]] for row in table]
    assert [row[0] for row in cells] == [1, 0]
    assert all(row[3] > 0 for row in cells)


def test_scores_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    real = evaluation.to_image_scale

    def off_by_a_pixel(*arguments: object) -> object:
        instances = real(*arguments)  # type: ignore[arg-type]
        instances.pred_boxes.tensor[:, 0] += 1
        return instances

    monkeypatch.setattr(evaluation, "to_image_scale", off_by_a_pixel)
    with pytest.raises(evaluation.InputError, match=r"first: AP.* is .*, officially"):
        benchmark_evaluation(1, 12, 96, 192, 1)
    assert Path.cwd() == tmp_path
    assert "deeplearning" not in sys.modules


def test_bad_numbers(tmp_path: Path) -> None:
    done = run(tmp_path, "evaluation", "--images", "0")
    assert done.returncode == 1
    # What libraries warn of when they are imported stands above.
    last = done.stderr.splitlines()[-1]
    assert last == "error: --images, --predictions and --repeats must be 1 or more"
