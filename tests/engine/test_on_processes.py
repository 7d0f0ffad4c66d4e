"""What two processes, with other images each, have to agree on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What one process found ``alone``, and what each of two did: ``0`` and ``1``."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("on_processes.py"), folder],
        # Processes that share a GPU would want NCCL, which wants a GPU for each.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    return {
        name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", "0", "1")
    } | {"saved": (folder / "saved").read_text()}


def test_norm_statistics_become_their_mean(found: dict[str, Found]) -> None:
    for rank in (0, 1):
        before, after = found["alone"]["norms"][rank], found[str(rank)]["norms"]
        # (1 + 3) / 2 and (-2 - 6) / 2; (0.5 + 1) / 2 and (4 + 8) / 2
        assert after.pop("1.running_mean").tolist() == [2.0, -4.0]
        assert after.pop("1.running_var").tolist() == [0.75, 6.0]
        # Parameters and the count of batches stay each process's own.
        del before["1.running_mean"], before["1.running_var"]
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(
    ("shares", "model", "losses"),
    [
        ("two and one", "semantic", 2),
        ("three and none", "semantic", 2),
        # The same regions are drawn whoever has an image.
        ("instances", "instances", 6),
    ],
)
def test_validation_losses_are_those_of_one_process(
    found: dict[str, Found], shares: str, model: str, losses: int
) -> None:
    # What follows from them, such as the learning rate, must be the same everywhere.
    assert found["0"][shares] == found["1"][shares]
    assert found["0"][shares] == pytest.approx(found["alone"][model], abs=1e-6)
    assert len(found["0"][shares]) == losses


def test_validation_losses_are_means_over_images(found: dict[str, Found]) -> None:
    assert found["0"]["none"] == found["1"]["none"] == {}
    wrong = sum(part["total_loss"] for part in found["alone"]["parts"]) / 2
    assert abs(wrong - found["alone"]["semantic"]["total_loss"]) > 1e-4


def test_micro_batches_count_as_processes_do(found: dict[str, Found]) -> None:
    """Two micro-batches in each of two processes, and four in one; labelled pixels differ."""
    alone, one, other = (found[name]["gradients"] for name in ("alone", "0", "1"))
    assert alone.keys() == one["found"].keys()
    for name, expected in alone.items():
        assert torch.equal(one["found"][name], other["found"][name])
        assert (one["found"][name] - expected).norm() <= 1e-4 * expected.norm() + 1e-9
    # All parameters fit in one bucket, which is exchanged after the last micro-batch only.
    assert one["exchanges"] == other["exchanges"] == [0]


def test_all_leave_a_measurement_when_one_is_asked_to(found: dict[str, Found]) -> None:
    """Not the main process is, which saves; the measurement would take 100 seconds."""
    assert found["saved"] == "model_0000004 4"


def test_only_the_main_process_fits_anchors(found: dict[str, Found]) -> None:
    one, other = found["0"]["fit"], found["1"]["fit"]
    assert (one["read"], other["read"]) == (True, False)
    assert one["anchors"] == other["anchors"]
    assert [len(one["anchors"][0]), len(one["anchors"][1][0])] == [2, 3]
    # What it finds wrong ends the others too, with the same line.
    assert one["error"] == other["error"]
    assert "too few for 31 clusters" in one["error"]
