"""The same work on many items, on every core, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

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
    # Fork where there is one: the other start methods import the caller's main module again, which
    # fails for scripts without a guard and for notebooks.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    chunk_size = max(1, min(32, len(items) // (workers * 8)))
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context(method), initializer=_start_worker
    ) as pool:
        results = pool.map(function, items, chunksize=chunk_size)
        return list(_with_progress(results, len(items), description))


def _with_progress(results: Iterable[Result], total: int, description: str) -> Iterable[Result]:
    """Show how many of ``total`` results have arrived: a live bar, or rare lines in a log file."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(results, description, total, mininterval=interval, delay=1.0, leave=False)


def _start_worker() -> None:
    """Let the parent process decide when a worker ends.

    Ctrl-C reaches the parent alone, so that workers print no tracebacks of their own. When the
    parent is killed, its workers would wait for work for ever; a thread ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
