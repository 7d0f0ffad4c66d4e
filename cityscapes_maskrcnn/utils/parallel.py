"""Work in other processes: many items at once, or tasks that are done while the caller goes on.

The caller is never forked: it may have CUDA, NCCL and other threads, whose locks a forked process
would inherit locked. Workers are spawned; those of data loaders, which need large packages, are
forked from a process that has imported them and has no threads. A worker imports the module of its
function and not the caller's main module, so it starts in a fifth of a second, and scripts without
``if __name__ == "__main__"`` and notebooks work; functions of a main module cannot be sent to it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import (
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from types import ModuleType, TracebackType
from typing import Any, Final, TypeVar

from tqdm import tqdm

from cityscapes_maskrcnn.utils.stop import STOP_SIGNALS, blocked_signals
from cityscapes_maskrcnn.utils.text import printable

Item = TypeVar("Item")
Result = TypeVar("Result")

# A worker pays off from about so many items: until it has started, the caller has done as many.
_ITEMS_PER_WORKER: Final = 16


def available_cores() -> int:
    """Number of CPU cores this process may use (a container or a job may have fewer than all)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    num_workers: int | None = None,
) -> list[Result]:
    """Apply ``function`` to every item in worker processes, showing progress and remaining time.

    Args:
        function: of an imported module; it is sent to other processes, as are items and results.
        items: what to apply it to.
        description: shown before the progress bar.
        num_workers: processes; default one per available core. With one, with few items, and
            inside a daemonic process (which may not have children) no process is started.

    Returns:
        The results in the order of ``items``.

    Raises:
        Exception: the first exception ``function`` raised, in the order of ``items``.
    """
    workers = min(num_workers or available_cores(), len(items) // _ITEMS_PER_WORKER)
    if workers <= 1 or multiprocessing.current_process().daemon:
        return list(_with_progress(map(function, items), len(items), description))
    chunk_size = max(1, min(32, len(items) // (workers * 8)))
    with _start_pool(workers) as pool:
        results = pool.map(function, items, chunksize=chunk_size)
        return list(_with_progress(results, len(items), description))


class TaskQueue:
    """Work that other processes do while the caller goes on, a bounded amount of it at a time.

    The caller does the first few tasks itself: only for more of them processes are started.

    Args:
        num_workers: processes; 0, and any number inside a daemonic process, which may not have
            children, makes the caller do the work itself.
        initializer: called once in every worker process.
    """

    def __init__(
        self, num_workers: int = 0, initializer: Callable[[], object] | None = None
    ) -> None:
        daemon = multiprocessing.current_process().daemon
        self._num_workers = 0 if daemon else num_workers
        self._num_tasks = 0
        self._initializer = initializer
        self._pool: ProcessPoolExecutor | None = None
        self._pending: deque[tuple[str, Future[Any]]] = deque()
        self._results: dict[str, Any] = {}

    def put(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Have ``function(*arguments)`` called; its result replaces an earlier one of that name.

        Waits while every worker has work for some time: what waits takes memory.

        Args:
            name: of the result.
            function: of an imported module; it is sent to other processes, as are its arguments.
            arguments: for it.

        Raises:
            Exception: what an earlier call raised.
        """
        self._num_tasks += 1
        if not self._num_workers or self._num_tasks <= _ITEMS_PER_WORKER:
            self._results[name] = function(*arguments)
            return
        if self._pool is None:
            self._pool = _start_pool(self._num_workers, self._initializer)
            # A process that multiprocessing has started waits for its children when it ends, before
            # Python would end those of a pool. Queues, over which that happens, close at 10.
            multiprocessing.util.Finalize(
                self, self._pool.shutdown, kwargs={"cancel_futures": True}, exitpriority=20
            )
        while len(self._pending) >= 2 * self._num_workers + 2:
            self._collect()
        self._pending.append((name, self._pool.submit(function, *arguments)))

    def results(self) -> dict[str, Any]:
        """Wait for all work and end the worker processes.

        Returns:
            All results by name, in the order in which the names were first given.

        Raises:
            Exception: what a call raised.
        """
        while self._pending:
            self._collect()
        self.close()
        return self._results

    def close(self) -> None:
        """End the worker processes; work that has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._pending.clear()

    def _collect(self) -> None:
        name, future = self._pending.popleft()
        try:
            self._results[name] = future.result()
        except BaseException:
            self.close()
            raise


class _WithoutMain:
    """Part of a process that starts without the caller's main module, see the top of this file."""

    @classmethod
    def _Popen(cls, process_obj: Any) -> Any:  # noqa: N802
        main = sys.modules["__main__"]
        # Blocked until start_worker has handlers: a signal to the group must not end a worker.
        with blocked_signals():
            try:
                sys.modules["__main__"] = ModuleType("__main__")
                popen = super()._Popen(process_obj)  # type: ignore[misc]
            finally:
                sys.modules["__main__"] = main
        # Workers ignore SIGTERM. A pool in which one died ends the others by it, and so does
        # multiprocessing when Python exits.
        popen.terminate = popen.kill
        return popen


class _SpawnedWorker(_WithoutMain, SpawnProcess):
    pass


class _SpawnedContext(SpawnContext):
    Process = _SpawnedWorker


class _ForkedWorker(_WithoutMain, ForkServerProcess):
    pass


class _ForkedContext(ForkServerContext):
    Process = _ForkedWorker


def loader_context(preload: str, with_main: bool = False) -> ForkServerContext:
    """Get what starts the workers of data loaders, see the top of this file.

    The process that they are forked from starts now if there is none, and imports meanwhile. It
    ends when this process and all workers have.

    Args:
        preload: module that workers need.
        with_main: workers import the caller's main module too, because they need what is in it.
    """
    context = ForkServerContext() if with_main else _ForkedContext()
    context.set_forkserver_preload([preload])
    # Started below, it would unblock the signals.
    resource_tracker.ensure_running()
    with blocked_signals():
        forkserver.ensure_running()
    return context


def _start_pool(
    num_workers: int, initializer: Callable[[], object] | None = None
) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_workers, _SpawnedContext(), start_worker, (initializer,))


def _with_progress(results: Iterable[Result], total: int, description: str) -> Iterable[Result]:
    """Show how many of ``total`` results have arrived: a live bar, or rare lines in a log file."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(
        results, printable(description), total, mininterval=interval, delay=1.0, leave=False
    )


def start_worker(initializer: Callable[[], object] | None = None) -> None:
    """Let the parent process decide when a worker ends.

    Signals to the process group (Ctrl-C, timeout) and to every process of a job (schedulers send
    SIGTERM so) are for the parent alone, so that it can finish what it does and workers print no
    tracebacks of their own. When the parent is killed, its workers would wait for work for ever; a
    thread ends them.
    """
    os.setpgid(0, 0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    sys.excepthook = _ignore_lost_connections
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()


def _ignore_lost_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Keep silent about a parent that ends while it takes over a tensor.

    multiprocessing's thread for that reports the broken connection here.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
