from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cityscapes_maskrcnn.data.training_stream import TrainingStream

DICTS = [{"image_id": index} for index in range(10)]


def noisy(example: dict) -> dict:
    """A mapper that uses every global generator, as augmentations do."""
    noise = (random.random(), float(np.random.rand()), float(torch.rand(1)))
    return {**example, "noise": noise}


def take(stream: TrainingStream, count: int) -> list[dict]:
    return list(itertools.islice(iter(stream), count))


def test_every_epoch_has_every_image_once_in_another_order() -> None:
    ids = [example["image_id"] for example in take(TrainingStream(DICTS, noisy, 1, 2), 30)]
    epochs = [ids[0:10], ids[10:20], ids[20:30]]
    assert all(Counter(epoch) == Counter(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_resuming_continues_exactly() -> None:
    whole = take(TrainingStream(DICTS, noisy, 1, 2), 26)
    resumed = TrainingStream(DICTS, noisy, 1, 2)
    resumed.start_batch = 7  # 7 batches of 2: from position 14
    assert take(resumed, 12) == whole[14:26]


def test_another_seed_is_another_stream() -> None:
    one, two = (take(TrainingStream(DICTS, noisy, seed, 2), 10) for seed in (1, 2))
    assert one != two


# The loader of this test forks its workers; those of the package do not.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_number_of_workers_does_not_matter() -> None:
    def batches(num_workers: int) -> list[list[dict]]:
        stream = TrainingStream(DICTS, noisy, 1, 2)
        loader = DataLoader(stream, batch_size=2, num_workers=num_workers, collate_fn=list)
        return list(itertools.islice(iter(loader), 9))

    assert batches(0) == batches(2)


def test_processes_share_the_positions_of_a_batch() -> None:
    def positions(rank: int) -> list[int]:
        stream = TrainingStream(DICTS, noisy, 1, 2)
        stream._rank, stream._world_size = rank, 3
        return list(itertools.islice(stream.positions(), 4))

    # Three processes, 2 images each: iteration 0 covers positions 0-5, iteration 1 6-11.
    assert positions(0) == [0, 1, 6, 7]
    assert positions(1) == [2, 3, 8, 9]
    assert positions(2) == [4, 5, 10, 11]


def test_the_callers_generators_are_left_alone() -> None:
    stream = iter(TrainingStream(DICTS, noisy, 1, 2))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    next(stream)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_the_generators_of_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers the stream runs between the seeding of a step and the model's draws."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    next(iter(TrainingStream(DICTS, noisy, 1, 2)))
    assert not seeded
    torch.manual_seed(5)
    assert seeded == [5]
