"""The time that iterations and evaluations of a training take, and the time remaining."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

# Iterations whose mean is the pace.
_PACE_WINDOW: Final = 100
# Worker processes start in the first iterations, and what is compiled is compiled in them.
_WARM_UP: Final = 3


class RunClock:
    """Tells, by the wall clock, what iterations and evaluations take, and what is left.

    An iteration is all from its beginning to the next one's: its step, its hooks, a checkpoint. In
    an iteration with an evaluation, what comes after the step is the evaluation.

    Args:
        clock: seconds, growing.

    Attributes:
        evaluations: how many there were.
        evaluation_seconds: all of them together.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.evaluations = 0
        self.evaluation_seconds = 0.0
        self._now = clock
        self._iterations: deque[float] = deque(maxlen=_PACE_WINDOW)
        self._num_iterations = 0
        self._began = self._stepped = clock()

    def begin(self) -> None:
        """Begin an iteration."""
        self._began = self._now()

    def step(self) -> None:
        """Note the end of an iteration's step."""
        self._stepped = self._now()

    def end(self, evaluated: bool) -> None:
        """End an iteration.

        Args:
            evaluated: whether it was followed by an evaluation.
        """
        now = self._now()
        if evaluated:
            self.evaluations += 1
            self.evaluation_seconds += now - self._stepped
            now = self._stepped
        self._iterations.append(now - self._began)
        self._num_iterations += 1
        if self._num_iterations == _WARM_UP + 1:
            for _ in range(_WARM_UP):
                self._iterations.popleft()

    @property
    def pace(self) -> float | None:
        """Seconds an iteration."""
        return sum(self._iterations) / len(self._iterations) if self._iterations else None

    @property
    def evaluation(self) -> float | None:
        """Seconds an evaluation."""
        return self.evaluation_seconds / self.evaluations if self.evaluations else None

    def eta(self, iterations: int, evaluations: float) -> float | None:
        """Seconds that are left; None before the first iteration.

        Args:
            iterations: that are left.
            evaluations: that are left, in units of those so far; before the first of them none is
                counted.
        """
        if self.pace is None:
            return None
        return iterations * self.pace + evaluations * (self.evaluation or 0.0)
