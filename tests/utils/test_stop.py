from __future__ import annotations

import signal
import time

import pytest

from cityscapes_maskrcnn.utils.stop import StopRequests


def test_a_second_ctrl_c_interrupts_if_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with StopRequests(interruptible=True).listening() as stop:
        signal.raise_signal(signal.SIGINT)
        now = 50.9  # the same Ctrl-C, passed on by a parent
        signal.raise_signal(signal.SIGINT)
        now = 51.1
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.signals == [signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT]


def test_signals_are_counted_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one has :func:`run_child` kill the child, and the chain or search end in order."""
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    before = signal.getsignal(signal.SIGINT)
    with StopRequests().listening() as stop:
        signal.raise_signal(signal.SIGINT)
        now = 60.0
        signal.raise_signal(signal.SIGINT)
    assert stop.signals == [signal.SIGINT, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
