from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
)
from torch import nn

from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.hooks import CheckFrozen, SeedEveryStep, StopOnSignal, WriteEvents
from cityscapes_maskrcnn.utils.errors import InputError


def drawn(seed: int, iteration: int) -> list[float]:
    hook = SeedEveryStep(seed)
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return torch.rand(4).tolist()


def test_draws_depend_on_seed_and_iteration_only() -> None:
    expected = drawn(3, 10)
    torch.rand(1000)  # anything may happen in between
    assert drawn(3, 10) == expected
    # With seed + iteration, seed 4 at iteration 9 would repeat seed 3 at iteration 10.
    others = [drawn(3, 11), drawn(4, 10), drawn(4, 9)]
    assert expected not in others


def test_a_frozen_part_that_changed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), FrozenBatchNorm2d(2), nn.Conv2d(2, 1, 1))
    model[0].requires_grad_(False)
    hook = CheckFrozen()
    hook.trainer = SimpleNamespace(model=model)
    hook.before_train()
    model[2].weight.data += 1.0
    hook.after_train()
    # Weight and bias of the first convolution, and weight, bias, mean and variance of the norm.
    assert "All 6 frozen tensors are bit-equal" in caplog.text
    model[1].running_var += 1e-6
    hook.after_train()
    assert "1 of 6 frozen tensors changed in training, such as 1.running_var" in caplog.text


def write_events(path: Path, eval_period: int) -> dict[int, list[dict[str, float]]]:
    """What stands in the file after each of 30 iterations, of which some are evaluated."""
    hook = WriteEvents([JSONWriter(str(path))], eval_period)
    entries = {}
    with EventStorage() as storage:
        for iteration in range(30):
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=30, storage=storage)
            storage.put_scalar("total_loss", 1.0)
            if eval_period and (iteration + 1) % eval_period == 0:
                storage.put_scalar("segm/AP", float(iteration), smoothing_hint=False)
            hook.after_step()
            entries[iteration] = [json.loads(line) for line in path.read_text().splitlines()]
            storage.step()
        hook.after_train()
    return entries


def test_events_are_written_every_20_iterations_and_after_every_evaluation(tmp_path: Path) -> None:
    entries = write_events(tmp_path / "plain.json", eval_period=0)
    assert [len(entries[iteration]) for iteration in (18, 19, 28, 29)] == [0, 1, 1, 2]
    entries = write_events(tmp_path / "evaluated.json", eval_period=6)
    for iteration, expected in {4: [], 5: [5], 11: [5, 11], 29: [5, 11, 17, 23, 29]}.items():
        assert [each["segm/AP"] for each in entries[iteration] if "segm/AP" in each] == expected


def test_a_run_may_end_right_after_an_early_evaluation(tmp_path: Path) -> None:
    """As when SIGTERM came in that evaluation: the printer has no pace to tell an ETA by yet."""
    hook = WriteEvents([CommonMetricPrinter(100), JSONWriter(str(tmp_path / "m.json"))], 1)
    with EventStorage(98) as storage:
        hook.trainer = SimpleNamespace(iter=98, max_iter=100, storage=storage)
        storage.put_scalars(total_loss=1.0, lr=0.1)
        hook.after_step()
        hook.after_train()


@pytest.mark.parametrize("saved", [True, False])
def test_a_stop_saves_what_no_other_hook_has_saved(tmp_path: Path, saved: bool) -> None:
    """Whoever builds other hooks may leave out the one that saves regularly."""
    model = nn.Linear(1, 1)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    hook = StopOnSignal(checkpointer)
    hook.trainer = SimpleNamespace(iter=1, max_iter=2, model=model)
    hook.before_train()
    try:
        if saved:
            checkpointer.save("model_final", iteration=1)
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        with pytest.raises(SystemExit) as left:
            while time.monotonic() < end:
                hook.after_step()
    finally:
        hook.release()
    assert left.value.code == 128 + signal.SIGTERM
    expected = "model_final.pth" if saved else "model_0000001.pth"
    assert (tmp_path / "last_checkpoint").read_text() == expected
    assert len(list(tmp_path.glob("*.pth"))) == 1


def test_a_full_disk_ends_in_a_line_with_the_file_of_events(
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """TensorBoard's writer writes in a thread, whose error would be printed as a traceback."""
    hook = WriteEvents([CommonMetricPrinter(100), TensorboardXWriter(str(tmp_path))], 1)
    before = threading.excepthook
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=100, storage=storage)
        hook.before_train()
        storage.put_scalars(total_loss=1.0, lr=0.1)
        hook.after_step()
        with full_disk(100):
            with pytest.raises(InputError, match=rf"{tmp_path}/events.*: File too large; --resume"):
                for iteration in range(1, 10_000):
                    hook.trainer.iter = storage.iter = iteration
                    storage.put_scalars(total_loss=1.0, lr=0.1)
                    hook.after_step()
            with pytest.raises(InputError, match=r"events.*: File too large"):
                hook.after_train()
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is before
