"""The processes of a run: start them on this machine, and connect those of all machines."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, Final

import torch
from detectron2.utils import comm

from cityscapes_maskrcnn.utils.child import end_with_parent
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.process_group import Place, process_group
from cityscapes_maskrcnn.utils.stop import StopRequests, blocked_signals, end_on_signals
from cityscapes_maskrcnn.utils.tool import one_line

# Seconds in which processes find out that another one has failed, before they are killed.
_GRACE: Final = 10.0


@dataclass(frozen=True)
class GroupSettings:
    """What processes need before they join the others.

    Attributes:
        gpus: of this machine; 0: they compute on CPUs.
        timeout: PROCESS_TIMEOUT, seconds.
    """

    gpus: int
    timeout: float


def run_processes(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, settings: GroupSettings
) -> int:
    """Run ``main(args)`` in ``--num-gpus`` processes and wait for them.

    Signals are passed on to them.

    Args:
        main: must be importable by name: the processes are spawned.
        args: with Detectron2's flags.
        settings: of all processes.

    Returns:
        Exit status: 0, or that of the process that ended first with another one.

    Raises:
        InputError: a process found bad input, or was killed, or another machine's was lost.
    """
    context = multiprocessing.get_context("spawn")
    # This process reports what is wrong with the input; the others send it here.
    problems = context.SimpleQueue()
    url = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
    processes = [
        context.Process(
            target=_process_main,
            args=(
                Place(
                    rank=args.machine_rank * args.num_gpus + local_rank,
                    local_rank=local_rank,
                    world_size=args.num_machines * args.num_gpus,
                    url=url,
                ),
                main,
                args,
                settings,
                problems,
            ),
        )
        for local_rank in range(args.num_gpus)
    ]

    def pass_on(number: int) -> None:
        for process in processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    with StopRequests(pass_on, interruptible=True).listening() as stop:
        with blocked_signals():
            for process in processes:
                process.start()
        if stop.signals:
            # Some may not have existed yet.
            pass_on(stop.signals[0])
        first = _wait(processes, lambda: pass_on(signal.SIGTERM) if not stop.signals else None)
    if first is None:
        return 0
    status = processes[first].exitcode or 0
    if status == -signal.SIGKILL:
        raise InputError(f"process {first} was killed, perhaps because memory ran out")
    # Later errors of other processes follow from the first.
    if not problems.empty():
        raise InputError(problems.get())
    if status < 0:
        name = signal.Signals(-status).name
        raise InputError(f"process {first} was ended by {name}, see its output above")
    return status


def _wait(processes: list[SpawnProcess], end_others: Callable[[], object]) -> int | None:
    """Wait for the end of all processes.

    When one was stopped by a signal, the others are asked to end, and finish what they do. When one
    has failed, they find that out themselves; those that do not are killed.

    Returns:
        Index of the first that ended with another status than 0; None if all ended with 0.
    """
    first = None
    deadline = math.inf
    while True:
        # Asked once a round: a process may end at any time.
        codes = [process.exitcode for process in processes]
        failed = [number for number, code in enumerate(codes) if code]
        if failed and first is None:
            first = failed[0]
            if codes[first] in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                end_others()
            else:
                deadline = time.monotonic() + _GRACE
        alive = [process for process, code in zip(processes, codes, strict=True) if code is None]
        if not alive:
            return first
        if time.monotonic() > deadline:
            for process in alive:
                process.kill()
        connection.wait([process.sentinel for process in alive], timeout=1.0)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _process_main(
    place: Place,
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    settings: GroupSettings,
    problems: SimpleQueue[str],
) -> None:
    """Run ``main`` in one process of several."""
    end_on_signals()
    # Save and stop, as on a request to stop, when the parent is gone.
    end_with_parent(signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:
        # It was killed before the kernel was told.
        raise SystemExit(1)
    try:
        run_in_group(main, args, place=place, settings=settings, report=problems.put)
    except (InputError, OSError) as error:
        problem = one_line(error)
        if problem is None:
            raise
        problems.put(problem)
        raise SystemExit(1) from None


def run_in_group(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    *,
    place: Place,
    settings: GroupSettings,
    report: Callable[[str], None],
) -> None:
    """Run ``main(args)`` as one of several processes, of which this is one.

    Args:
        main: what all run.
        args: for it.
        place: of this process among them.
        settings: of all processes.
        report: see :func:`.process_group`.

    Raises:
        InputError: the processes are not arranged as Detectron2 needs it, or do not meet.
    """
    gpus = settings.gpus
    if gpus:
        # srun can show every process one GPU only, its own.
        alone = gpus == 1 and "SLURM_LOCALID" in os.environ
        if place.local_rank >= gpus and not alone:
            raise InputError(f"local rank {place.local_rank}: this machine has {gpus} GPUs")
        torch.cuda.set_device(0 if alone else place.local_rank)
    with process_group(
        place, backend="nccl" if gpus else "gloo", timeout=settings.timeout, report=report
    ):
        local_ranks = comm.all_gather(place.local_rank)
        size = max(local_ranks) + 1
        if local_ranks != [rank % size for rank in range(place.world_size)]:
            raise InputError(
                f"local ranks {local_ranks}: every machine needs as many processes, and ranks that "
                "follow each other (srun --distribution=block)"
            )
        comm.create_local_process_group(size)
        main(args)
