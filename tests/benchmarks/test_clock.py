from __future__ import annotations

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from cityscapes_maskrcnn.benchmarks.clock import Launches, _launches_of, median_times


def event(name: str, start: float, end: float, **options: object) -> FunctionEvent:
    return FunctionEvent(
        **{"id": 0, "name": name, "thread": 0, "start_us": start, "end_us": end, **options}
    )


def test_a_range_that_spans_kernels_is_none() -> None:
    """Optimizers and compiled parts mark theirs, which a profile has on the GPU too."""
    on_gpu = {"device_type": DeviceType.CUDA}
    events = [
        event("convolution", 0, 300, **on_gpu),
        event("copy", 500, 600, **on_gpu),
        event("Optimizer.step#SGD.step", 0, 600, is_user_annotation=True, **on_gpu),
        event("Optimizer.step#SGD.step", 0, 600, is_user_annotation=True),
        event("cudaStreamSynchronize", 600, 700),
    ]
    assert _launches_of(events, seconds=1e-3) == Launches(
        operations=2, waits=1, busy_percent=pytest.approx(40.0)
    )


def test_computations_take_turns_after_calls_that_do_not_count() -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = median_times(works, blocks=2, calls=3, warm_up=1)
    assert "".join(calls) == "aaaabbbbaaaabbbb"
    assert set(times) == {"a", "b"}
    assert all(0 < each < 100 for each in times.values())
