from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor
from torch.utils.data import DataLoader

from cityscapes_maskrcnn.data.prefetch import PrefetchedLoader, map_tensors, one_ahead, prefetch
from cityscapes_maskrcnn.data.training_stream import TrainingStream


def test_one_more_is_started_than_the_caller_has_got() -> None:
    started: list[int] = []

    def start(number: int) -> int:
        started.append(number)
        return 10 * number

    items = one_ahead(range(4), start)
    seen = []
    for item in items:
        seen.append(item)
        assert started == list(range(min(4, len(seen) + 1)))
    assert seen == [0, 10, 20, 30]
    assert list(one_ahead([], start)) == []
    assert list(one_ahead([7], start)) == [70]


def test_what_the_loader_raises_comes_after_its_last_batch() -> None:
    """Otherwise the step before would be lost, and the error be that of another iteration."""

    def batches() -> Iterator[str]:
        yield "first"
        yield "second"
        raise ValueError("a broken image")

    items = one_ahead(batches(), str.upper)
    assert [next(items), next(items)] == ["FIRST", "SECOND"]
    with pytest.raises(ValueError, match="a broken image"):
        next(items)


def test_a_resumed_run_sees_what_was_prefetched_and_not_used() -> None:
    def batches(start: int) -> Iterator[list[int]]:
        stream = TrainingStream(
            dicts=[{"number": number} for number in range(10)],
            mapper=lambda example: example["number"],
            seed=1,
            batch_size=3,
        )
        stream.start_batch = start
        return one_ahead(DataLoader(stream, batch_size=3, collate_fn=list), list)

    expected = list(islice(batches(0), 9))
    assert list(islice(batches(0), 4)) + list(islice(batches(4), 5)) == expected


def batch() -> list[dict[str, Any]]:
    instances = Instances((20, 30))
    instances.gt_boxes = Boxes([[1.0, 2.0, 3.0, 4.0]])
    instances.gt_classes = torch.tensor([3])
    instances.gt_masks = PolygonMasks([[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]])
    instances.bits = BitMasks(torch.ones(1, 20, 30, dtype=torch.bool))
    return [{"file_name": "a.png", "image": torch.zeros(3, 20, 30), "instances": instances}]


def test_every_tensor_of_a_batch_is_moved() -> None:
    before = batch()
    moved: list[Tensor] = []

    def move(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return tensor.to("meta")

    (example,) = map_tensors(before, move)
    assert len(moved) == 4
    assert example["file_name"] == "a.png"
    assert example["image"].is_meta
    instances = example["instances"]
    assert instances.image_size == (20, 30)
    assert len(instances) == 1
    assert instances.gt_boxes.tensor.is_meta
    assert instances.gt_classes.is_meta
    assert instances.bits.tensor.is_meta
    assert instances.gt_masks is before[0]["instances"].gt_masks
    assert not before[0]["image"].is_meta


def test_on_a_cpu_the_loader_is_the_same() -> None:
    loader = DataLoader([1, 2])
    assert prefetch(loader, "cpu") is loader
    ahead = prefetch(loader, "cuda")
    assert isinstance(ahead, PrefetchedLoader)
    assert len(ahead) == 2
    assert ahead.dataset is loader.dataset


@pytest.mark.gpu
def test_batches_are_copied_before_they_are_used() -> None:
    data = [torch.full((3, 1000, 1000), number) for number in range(20)]
    loader = DataLoader(data, batch_size=None, pin_memory=True)
    seen = []
    for tensor in PrefetchedLoader(loader):
        assert tensor.is_cuda
        torch.cuda._sleep(1_000_000)
        # Read later than the next copies have begun.
        seen.append(tensor.double().mean())
    assert [int(mean) for mean in seen] == list(range(20))
