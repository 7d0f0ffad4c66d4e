"""The same work on many items, on every core, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        function: a module-level function (it is sent to other processes); so are its results.
        items: what to apply it to.
        description: shown before the progress bar.
        num_workers: processes; default one per available core. With one, with few items, and
            inside a daemonic process (which may not have children) no process is started.

    Returns:
        The results in the order of ``items``.

    Raises:
        Exception: the first exception ``function`` raised, in the order of ``items``.
    """
    workers = min(num_workers or available_cores(), len(items) // 8)
    if workers <= 1 or multiprocessing.current_process().daemon:
        return list(_with_progress(map(function, items), len(items), description))
    chunk_size = max(1, min(32, len(items) // (workers * 8)))
    with _start_pool(workers) as pool:
        results = pool.map(function, items, chunksize=chunk_size)
        return list(_with_progress(results, len(items), description))


class TaskQueue:
    """Work that other processes do while the caller goes on, a bounded amount of it at a time.

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
        self._initializer = initializer
        self._pool: ProcessPoolExecutor | None = None
        self._pending: deque[tuple[str, Future[Any]]] = deque()
        self._results: dict[str, Any] = {}

    def put(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Have ``function(*arguments)`` called; its result replaces an earlier one of that name.

        Waits while every worker has work for some time: what waits takes memory.

        Args:
            name: of the result.
            function: a module-level function (it is sent to other processes, as are its arguments).
            arguments: for it.

        Raises:
            Exception: what an earlier call raised.
        """
        if not self._num_workers:
            self._results[name] = function(*arguments)
            return
        if self._pool is None:
            self._pool = _start_pool(self._num_workers, self._initializer)
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


def _start_pool(
    num_workers: int, initializer: Callable[[], object] | None = None
) -> ProcessPoolExecutor:
    # Fork where there is one: the other start methods import the caller's main module again, which
    # fails for scripts without a guard and for notebooks.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    return ProcessPoolExecutor(num_workers, context, _start_worker, (initializer,))


def _with_progress(results: Iterable[Result], total: int, description: str) -> Iterable[Result]:
    """Show how many of ``total`` results have arrived: a live bar, or rare lines in a log file."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(results, description, total, mininterval=interval, delay=1.0, leave=False)


def _start_worker(initializer: Callable[[], object] | None) -> None:
    """Let the parent process decide when a worker ends.

    Signals to the process group (Ctrl-C, timeout) reach the parent alone, so that it can finish
    what it does and workers print no tracebacks of their own. The parent's own SIGTERM ends a
    worker, whatever handler it has inherited. When the parent is killed, its workers would wait for
    work for ever; a thread ends them.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
