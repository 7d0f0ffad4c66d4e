from __future__ import annotations

import pytest

from cityscapes_maskrcnn.engine.run_clock import RunClock


class Clock(RunClock):
    """Its time is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(lambda: self.seconds)

    def iterate(self, step: float, hooks: float, evaluated: bool = False) -> None:
        self.begin()
        self.seconds += step
        self.step()
        self.seconds += hooks
        self.end(evaluated)


def test_the_remaining_time_counts_evaluations_by_the_wall_clock() -> None:
    clock = Clock()
    assert clock.eta(10, 1) is None  # nothing has been measured
    clock.iterate(step=1.0, hooks=0.5)
    assert clock.eta(10, 1) == 15.0  # 10 x (1 + 0.5) s, and an evaluation of unknown length
    clock.iterate(step=1.5, hooks=8.0, evaluated=True)
    assert (clock.evaluations, clock.evaluation_seconds) == (1, 8.0)
    # Both iterations took 1.5 s without the evaluation.
    assert clock.eta(10, 2.5) == 10 * 1.5 + 2.5 * 8
    clock.iterate(step=1.5, hooks=4.0, evaluated=True)
    assert clock.evaluation == 6.0


def test_the_first_iterations_are_forgotten_as_soon_as_there_are_others() -> None:
    clock = Clock()
    for seconds in (30.0, 20.0, 10.0):
        clock.iterate(step=seconds, hooks=0.0)
    assert clock.pace == 20.0
    clock.iterate(step=2.0, hooks=0.0)
    assert clock.pace == 2.0
    # It follows a change within 100 iterations.
    for _ in range(100):
        clock.iterate(step=1.0, hooks=0.0)
    assert clock.pace == pytest.approx(1.0)
