"""Further processes that work in an ablation's folder while the first one does."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from cityscapes_maskrcnn.utils.child import end_with_parent
from cityscapes_maskrcnn.utils.parallel import available_cores


@contextmanager
def helpers(
    workers: int, work: Callable[..., object], arguments: Mapping[str, Any]
) -> Iterator[None]:
    """Have further processes do the same work during a ``with`` block; the cores are shared.

    They end with the block, and with this process. What they leave undone, because they fail or
    are stopped, is left to this process, which then fails with the same message.

    Args:
        workers: number of processes, this one included; at least 1.
        work: a function of a module.
        arguments: of ``work``, by name.
    """
    threads = torch.get_num_threads()
    share = max(1, available_cores() // workers) if workers > 1 else threads
    # CUDA does not survive a fork, nor do threads.
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_help, args=(work, dict(arguments), share))
        for _ in range(workers - 1)
    ]
    try:
        torch.set_num_threads(share)
        for process in processes:
            process.start()
        yield
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            if process.is_alive():
                process.terminate()
            if process.pid is not None:
                process.join()


def _help(work: Callable[..., object], arguments: dict[str, Any], threads: int) -> None:
    end_with_parent(signal.SIGTERM)
    torch.set_num_threads(threads)
    work(**arguments)
