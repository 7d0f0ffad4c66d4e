from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cityscapes_maskrcnn.utils.stop import StopRequests

# The main thread waits in C for ever, where Python calls no handlers of signals.
WAITING = """
import threading
from cityscapes_maskrcnn.utils.stop import StopRequests, end_on_signals
end_on_signals()
lock = threading.Lock()
lock.acquire()
{listen}
print("ready", flush=True)
lock.acquire()
"""


def waiting(listen: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(listen=listen)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
)
def test_a_tool_ends_at_once_wherever_it_is(number: int, status: int, word: str) -> None:
    process = waiting()
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (status, word)


def test_a_second_ctrl_c_ends_what_would_save_first() -> None:
    process = waiting("StopRequests(interruptible=True).take_over()")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # the same Ctrl-C, passed on by a parent
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_signals_are_counted_and_given_back() -> None:
    """A second one has :func:`run_child` kill the child, and the chain or search end in order."""
    before, wakeup = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    with StopRequests().listening() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)
    assert stop.signals == [signal.SIGINT, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(wakeup) == -1


# As a data loader of a user's own forks its workers.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_keeps_its_signals_from_its_parent() -> None:
    receiver, sender = os.pipe()
    with StopRequests().listening() as stop:
        child = os.fork()
        if not child:
            os.write(sender, b".")
            time.sleep(60)
            os._exit(0)
        os.read(receiver, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert stop.signals == []
