"""The largest micro-batch that fits, where memory is what a model says it is."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from cityscapes_maskrcnn.engine.auto_batch import largest_micro_batch, try_step
from cityscapes_maskrcnn.engine.precision import CheckedTrainer
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.mark.parametrize(
    ("batch", "limit", "found", "asked"),
    [
        (8, 8, 8, [8]),
        (8, 3, 2, [8, 4, 2]),
        (6, 5, 3, [6, 3]),  # equal parts only
        (7, 6, 1, [7, 1]),
        (1, 1, 1, [1]),
    ],
)
def test_the_largest_equal_part_is_found(
    batch: int, limit: int, found: int, asked: list[int]
) -> None:
    sizes: list[int] = []

    def fits(size: int) -> bool:
        sizes.append(size)
        return size <= limit

    assert largest_micro_batch(fits, batch) == found
    assert sizes == asked


def test_an_image_that_does_not_fit_gets_one_line() -> None:
    message = r"not even one image fits into the GPU's memory: set MODEL\.ACTIVATION_CHECKPOINTING"
    with pytest.raises(InputError, match=message):
        largest_micro_batch(lambda _: False, 4)


class Limited(nn.Module):
    """Has memory for so many images at once, besides gradients that take the room of one."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.limit = limit
        self.passes: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.passes.append(len(batch))
        with_gradients = self.layer[0].weight.grad is not None
        if len(batch) + with_gradients > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        images = torch.stack([each["image"] for each in batch])
        return {"loss": self.layer(images).square().mean()}


@pytest.mark.parametrize(
    ("limit", "found", "passes"),
    [
        (8, 8, [8]),  # one pass, which no gradients precede
        (5, 4, [8, 4, 4]),
        (4, 2, [8, 4, 4, 2, 2]),
    ],
)
def test_trial_steps_leave_nothing_behind(limit: int, found: int, passes: list[int]) -> None:
    model = Limited(limit)
    step = CheckedTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1), accumulate=7)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    images = [{"image": torch.tensor([1.0, float(number)])} for number in range(8)]

    def fits(size: int) -> bool:
        return try_step(step, images[:size], whole=size == 8)

    assert largest_micro_batch(fits, 8) == found
    assert model.passes == passes
    assert [n for n, each in model.state_dict().items() if not torch.equal(each, before[n])] == []
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.grad for each in model.parameters()] == [None] * 4
    assert step.accumulate == 7


def test_on_a_cpu_there_is_nothing_to_find(
    config: Callable[..., CfgNode], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(config("DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False))
    with caplog.at_level(logging.WARNING, "cityscapes_maskrcnn"):
        trainer.choose_micro_batch()
    line = "--auto-batch: nothing to find on a CPU: SOLVER.ACCUMULATE stays 1"
    assert line in caplog.messages
    assert trainer.cfg.SOLVER.ACCUMULATE == 1


class Full(Trainer):
    """Has no memory left for the second batch."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        yield next(iter(super().build_train_loader(cfg)))
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
        )


def test_out_of_memory_names_the_keys(train: Callable[..., Trainer]) -> None:
    line = (
        "out of memory on the GPU in iteration 1: raise SOLVER.ACCUMULATE (now 2; "
        "tools/train_net.py --auto-batch finds a value), set MODEL.ACTIVATION_CHECKPOINTING, or "
        "lower INPUT.MIN_SIZE_TRAIN (in an evaluation INPUT.MIN_SIZE_TEST): "
        "CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    options = ["DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False, "SOLVER.ACCUMULATE", 2]
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        train(*options, kind=Full)
