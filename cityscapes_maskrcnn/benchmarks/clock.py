"""Time, memory and launches of a computation that is called many times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter


def median_times(
    works: Mapping[Hashable, Callable[[], object]],
    *,
    blocks: int,
    calls: int,
    warm_up: int = 0,
) -> dict[Hashable, float]:
    """Time several computations in turn, so that a busy machine slows all of them alike.

    Args:
        works: by name; warmed up, where the first call does more than the others.
        blocks: how often each is measured; the median counts.
        calls: of a computation in a block. On a GPU the host waits for it after each block only.
        warm_up: calls before each block that are not counted: threads of another runtime may spin
            for some time after its last one.

    Returns:
        Milliseconds a call, by name.
    """
    seconds: dict[Hashable, list[float]] = {name: [] for name in works}
    for _ in range(blocks):
        for name, work in works.items():
            for _ in range(warm_up):
                work()
            start = _now()
            for _ in range(calls):
                work()
            seconds[name].append((_now() - start) / calls)
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


def peak_gigabytes(work: Callable[[], object], already: int) -> float:
    """Measure the most memory that a computation holds on the GPU.

    Args:
        work: warmed up.
        already: bytes that were allocated before its model was built.
    """
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - already) / 1e9


def saved_gigabytes(forward: Callable[[], object]) -> float:
    """Count what autograd keeps of a forward pass for the backward pass; each storage once.

    Args:
        forward: returns something that holds the graph, or nothing.
    """
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(storages.values()) / 1e9


@dataclass(frozen=True)
class Launches:
    """What a computation asks of the device.

    Attributes:
        operations: kernels on a GPU; torch's operations on a CPU.
        waits: stream synchronisations on a GPU; on a CPU the operations that would cause them.
        busy_percent: of the time, in which the GPU works; 0 on a CPU.
    """

    operations: int
    waits: int
    busy_percent: float


def count_launches(work: Callable[[], object]) -> Launches:
    """Count kernels, synchronisations and the busy time of one call."""
    if not torch.cuda.is_available():
        with OperationCounter() as counter:
            work()
        return Launches(counter.operations.total(), counter.waiting.total(), 0.0)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        start = _now()
        work()
        elapsed = _now() - start
    launches = _launches_of(profiler.events(), elapsed)
    # The two synchronisations of the clock above are not the computation's.
    return replace(launches, waits=launches.waits - 2)


def _launches_of(events: Iterable[FunctionEvent], seconds: float) -> Launches:
    """Count what a profile of so many seconds on a GPU shows."""
    kernels, waits, busy = 0, 0, 0.0
    for event in events:
        if event.device_type != DeviceType.CUDA:
            waits += "Synchronize" in event.name
        elif not event.is_user_annotation:  # which spans the kernels of an optimizer's step, say
            kernels += 1
            busy += event.time_range.elapsed_us()
    return Launches(kernels, waits, min(busy / 1e4 / seconds, 100.0))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
