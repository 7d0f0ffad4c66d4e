"""Requests to stop: SIGINT (Ctrl-C) and SIGTERM.

Python calls handlers of signals in the main thread, between two bytecodes: too late while that
thread waits for another process or computes in C++, and what a handler raises there is lost inside
callbacks, such as those around a fork. Here the handlers do nothing: the interpreter's own handler
wakes a thread, which acts at once even while the main thread is busy.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


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
        on_signal: called with the number of every signal, in a thread of its own.
        interruptible: let Ctrl-C end the process at once more than a second after the first signal.
            Sooner it may be the same one: the terminal sends it to every process of the group, and
            a parent may pass it on.
        notice: what this process does when it is asked to stop, such as ``stopping after this
            step``; written to standard error at once.

    Attributes:
        signals: those that came, in order.
    """

    def __init__(
        self,
        on_signal: Callable[[int], object] | None = None,
        interruptible: bool = False,
        notice: str = "",
    ) -> None:
        self.signals: list[int] = []
        self._on_signal = on_signal
        self._interruptible = interruptible
        self._notice = notice
        self._first_time = 0.0

    @contextmanager
    def listening(self) -> Iterator[StopRequests]:
        """Take over both signals for the time of a ``with`` block.

        All signals that came in the block are counted when it ends. In a thread other than the main
        one this does nothing, as Python allows no more.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        thread = self._start(receiver)
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            for number in STOP_SIGNALS:
                signal.signal(number, _leave_to_thread)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
            sender.close()
            thread.join()

    def take_over(self) -> None:
        """Take over both signals for the rest of this process, also where its parent blocked them.

        In a thread other than the main one this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        self._start(receiver)
        signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, _leave_to_thread)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _start(self, receiver: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=self._note_all, args=(receiver,), daemon=True)
        thread.start()
        return thread

    def _note_all(self, receiver: socket.socket) -> None:
        with receiver:
            while numbers := receiver.recv(1):
                if numbers[0] in STOP_SIGNALS:
                    self._note(numbers[0])

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if not self.signals:
            self._first_time = now
            self._write_notice(number)
        self.signals.append(number)
        if self._interruptible and number == signal.SIGINT and now > self._first_time + 1.0:
            end_at_once(number)
        if self._on_signal is not None:
            self._on_signal(number)

    def _write_notice(self, number: int) -> None:
        if not self._notice:
            return
        again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        # In the place of a line that lives on the terminal, and of the ^C in it.
        clear = "\r\x1b[K" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{clear}{self._notice}{again}\n".encode())


def end_on_signals() -> None:
    """Have both signals end this process at once, without a traceback: status 130 or 143.

    Nothing is lost: files appear whole or not at all. Tools call this before their slow imports;
    what has more to finish takes the signals over, see :meth:`StopRequests.listening`.
    """
    if signal.getsignal(signal.SIGINT) is not _leave_to_thread:
        StopRequests(end_at_once).take_over()
        # multiprocessing's tracker, a process of its own that gets these options, removes what is
        # left behind then; it need not say so.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        # Later Python gives the signals back to the system, which would end it with another status.
        atexit.register(_ignore_signals)


def end_at_once(number: int) -> None:
    """End this process as one that was asked to: no exit handlers, status 128 plus the number."""
    # The processes of a run say nothing, also not while they start and have no parent yet.
    if parent_process() is None and "--multiprocessing-fork" not in sys.orig_argv:
        word = "interrupted" if number == signal.SIGINT else "terminated"
        with suppress(OSError):
            os.write(2, f"{word}\n".encode())
    os._exit(128 + number)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block both signals in a ``with`` block: a process that is started in it inherits that.

    They reach it when it is ready for them, instead of ending it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_to_thread(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter has woken the thread that acts."""


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _reset_in_child() -> None:
    """Keep the signals of a forked process from its parent's thread."""
    if signal.getsignal(signal.SIGINT) is _leave_to_thread:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_reset_in_child)
