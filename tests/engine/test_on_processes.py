"""What two processes, with other images each, have to agree on."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cityscapes_maskrcnn.engine.hooks import average_norm_statistics
from cityscapes_maskrcnn.engine.validation import validation_losses

SCRIPT = Path(__file__).with_name("average_on_processes.py")


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process got."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder],
        # Processes that share a GPU would want NCCL, which wants a GPU for each.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_norm_statistics_become_their_mean(
    script: SimpleNamespace, found: list[dict[str, Any]]
) -> None:
    for rank in (0, 1):
        before, after = script.norms(rank).state_dict(), found[rank]["norms"]
        # (1 + 3) / 2 and (-2 - 6) / 2; (0.5 + 1) / 2 and (4 + 8) / 2
        assert after.pop("1.running_mean").tolist() == [2.0, -4.0]
        assert after.pop("1.running_var").tolist() == [0.75, 6.0]
        # Parameters and the count of batches stay each process's own.
        del before["1.running_mean"], before["1.running_var"]
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
    ours, theirs = (found[rank]["norms"]["0.weight"] for rank in (0, 1))
    assert not torch.equal(ours, theirs)


def test_one_process_keeps_its_statistics(script: SimpleNamespace) -> None:
    model = script.norms(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average_norm_statistics(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_validation_losses_are_those_of_one_process(
    script: SimpleNamespace, found: list[dict[str, Any]]
) -> None:
    images = script.images()
    network = script.network("stage_0_backbone")
    expected = validation_losses(network, [[image] for image in images])
    assert expected.keys() == {"loss_sem_seg", "total_loss"}
    for share in ("two and one", "three and none"):
        # Whatever follows from them, such as the learning rate, is the same everywhere.
        assert found[0][share] == found[1][share]
        assert found[0][share] == pytest.approx(expected, abs=1e-6)
    assert found[0]["none"] == found[1]["none"] == {}
    # The mean of the processes' means would be another number.
    means = [validation_losses(network, part) for part in ([images[:2]], [images[2:]])]
    wrong = sum(each["total_loss"] for each in means) / 2
    assert abs(wrong - expected["total_loss"]) > 1e-4


def test_the_same_regions_are_drawn_whoever_has_an_image(
    script: SimpleNamespace, found: list[dict[str, Any]]
) -> None:
    network = script.network("stage_1_heads")
    expected = validation_losses(network, [[image] for image in script.images()])
    assert len(expected) == 6
    assert found[0]["instances"] == found[1]["instances"]
    assert found[0]["instances"] == pytest.approx(expected, abs=1e-6)


def test_all_leave_a_measurement_when_one_is_asked_to(found: list[dict[str, Any]]) -> None:
    """The shares have 1000 batches and one, in which the signal comes."""
    assert [each["left"] for each in found] == [(143, 1, ["model_0000004"])] * 2
    assert [each["to the end"] for each in found] == [(0, 5, []), (0, 2, [])]
