"""Requests to stop: SIGINT (Ctrl-C) and SIGTERM."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818 - not an error
    """This process was asked to stop, and what it ran has stopped.

    Attributes:
        status: exit status to end with: 128 plus the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequests:
    """Counts SIGINT (Ctrl-C) and SIGTERM while in use, instead of ending the process.

    Args:
        interruptible: let Ctrl-C raise KeyboardInterrupt more than a second after the first signal.
            Sooner it may be the same one: the terminal sends it to every process of the group, and
            a parent may pass it on.

    Attributes:
        signals: those that came, in order.
    """

    def __init__(self, interruptible: bool = False) -> None:
        self.signals: list[int] = []
        self._interruptible = interruptible
        self._first_time = 0.0

    @contextmanager
    def listening(self) -> Iterator[StopRequests]:
        """Take over both signals for the time of a ``with`` block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signals:
            self._first_time = now
        self.signals.append(number)
        if self._interruptible and number == signal.SIGINT and now > self._first_time + 1.0:
            raise KeyboardInterrupt
