from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine.data_wait import WarnOfWaiting


class Model(nn.Module):
    """One whose step takes some time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        time.sleep(0.01)
        return {"loss": (self.weight * batch).sum()}


def train(cfg: CfgNode, *, seconds_a_batch: float, slow_until: int = 1000) -> None:
    def batches() -> Iterator[Tensor]:
        for number in range(1000):
            if number < slow_until:
                time.sleep(seconds_a_batch)
            yield torch.ones(1)

    model = Model()
    trainer = SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([WarnOfWaiting(cfg, window=10)])
    trainer.train(0, 32)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    return cfg


def test_a_slow_loader_is_one_warning_that_names_the_keys(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    train(cfg, seconds_a_batch=0.03)
    messages = [record.getMessage() for record in caplog.records]
    (message,) = [each for each in messages if "waiting for data" in each]
    assert message.startswith("In the last 10 iterations training spent ")
    # 30 of 40 ms, and what a busy machine adds to both.
    assert 40 < float(message.split(" spent ")[1].split(" %")[0]) < 95
    assert "raise DATALOADER.NUM_WORKERS (now 4; " in message
    assert message.endswith(", or set INPUT.CACHE to disk (now none)")
    caplog.clear()
    cfg.INPUT.CACHE = "disk"
    train(cfg, seconds_a_batch=0.03)
    assert caplog.text.count("training spent") == 1
    assert "INPUT.CACHE" not in caplog.text


def test_a_loader_that_is_slow_to_start_is_no_warning(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    train(cfg, seconds_a_batch=0.05, slow_until=10)
    assert "waiting for data" not in caplog.text
