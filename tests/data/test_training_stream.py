from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
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


FACTORS = np.array([1, 1, 1, 1, 1, 1, 1, 1.25, 2.5, 3], np.float32)


def test_repeated_images_come_as_often_as_in_detectron2s_sampler() -> None:
    """Over 400 passes, to 3 standard deviations of what is drawn: 0.5 / sqrt(400) each."""
    passes, generator = 400, torch.Generator().manual_seed(0)
    theirs: Counter[int] = Counter()
    sampler = RepeatFactorTrainingSampler(torch.tensor(FACTORS), seed=0)
    for _ in range(passes):
        theirs.update(sampler._get_epoch_indices(generator).tolist())
    ours: Counter[int] = Counter()
    stream = TrainingStream(DICTS, noisy, 1, 2, FACTORS)
    orders = [stream._order(number) for number in range(passes)]
    for order in orders:
        ours.update(order.tolist())
    # Whole factors are kept in every pass.
    assert [ours[index] for index in range(7)] == [passes] * 7
    assert ours[9] == 3 * passes
    for index in (7, 8):
        assert ours[index] / passes == pytest.approx(FACTORS[index], abs=0.075)
        assert theirs[index] / passes == pytest.approx(FACTORS[index], abs=0.075)
    # 7 + 1 or 2 + 2 or 3 + 3.
    assert {len(order) for order in orders} == {13, 14, 15}
    positions = [stream.index(position) for position in range(300)]
    assert positions == np.concatenate(orders)[:300].tolist()


def test_resuming_with_repeated_images_continues_exactly() -> None:
    whole = take(TrainingStream(DICTS, noisy, 1, 2, FACTORS), 200)
    for start in (3, 50, 93):
        resumed = TrainingStream(DICTS, noisy, 7, 2, FACTORS)
        resumed.index(180)
        resumed.seed = 1  # of the checkpoint
        resumed.start_batch = start
        assert take(resumed, 14) == whole[2 * start : 2 * start + 14]


def test_processes_share_the_same_passes() -> None:
    whole = TrainingStream(DICTS, noisy, 1, 6, FACTORS)
    for rank in range(3):
        stream = TrainingStream(DICTS, noisy, 1, 2, FACTORS)
        stream._rank, stream._world_size = rank, 3
        positions = list(itertools.islice(stream.positions(), 32))
        assert positions[30:] == [90 + 2 * rank, 91 + 2 * rank]
        ids = [example["image_id"] for example in take(stream, 32)]
        assert ids == [whole.index(position) for position in positions]


def test_factors_of_one_change_nothing() -> None:
    plain = take(TrainingStream(DICTS, noisy, 1, 2), 25)
    assert take(TrainingStream(DICTS, noisy, 1, 2, np.ones(10)), 25) == plain
