"""The processes of one training: how they connect, and what they do if one is lost.

When one is gone, the collectives of the others end with a traceback of gloo's or NCCL's, or not at
all. Here every process shows that it lives, in the store over which the processes met. When one
does not any longer, or has failed, all end with the same line that names it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import one_line

# Seconds between two signs of life.
_INTERVAL: Final = 1.0
# Without a sign for so many seconds a process is the one that broke a collective.
_BROKEN_PATIENCE: Final = 4.0
# Seconds in which the store has to answer a process that has something to tell.
_ANSWER: Final = 5.0
# Keys in the store: how all have to end, and the signal that the main process has to get.
_VERDICT: Final = "verdict"
_ASKED: Final = "asked"


@dataclass(frozen=True)
class Place:
    """Place of this process among those of a training.

    Attributes:
        rank: number among all of them.
        local_rank: number among those of this machine, which is that of its GPU.
        world_size: how many there are on all machines.
        url: where they meet, such as ``tcp://HOST:PORT``.
    """

    rank: int
    local_rank: int
    world_size: int
    url: str


def place_of_launcher(environ: Mapping[str, str], several_by_flag: bool) -> Place | None:
    """Read which of several processes this is, if torchrun or srun has started them.

    Args:
        environ: environment variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT,
            or SLURM_PROCID, SLURM_LOCALID and the number of tasks of the step.
        several_by_flag: the command line names several processes itself.

    Returns:
        None if there is one process only.

    Raises:
        InputError: a variable is missing or no number, or mpirun has started several.
    """

    def number(*names: str) -> int:
        name = next((each for each in names if environ.get(each)), names[0])
        try:
            return int(environ[name])
        except KeyError:
            raise InputError(
                f"environment: {name} is missing beside those that torchrun or srun set; set it, "
                "or unset RANK, WORLD_SIZE and SLURM_PROCID and use --num-gpus and --num-machines"
            ) from None
        except ValueError:
            raise InputError(f"environment: {name}={environ[name]} is not an integer") from None

    if "WORLD_SIZE" in environ or "LOCAL_RANK" in environ:
        if number("WORLD_SIZE") == 1:
            return None
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environ.get(name):
                raise InputError(f"environment: {name} is missing beside WORLD_SIZE")
        place = Place(number("RANK"), number("LOCAL_RANK"), number("WORLD_SIZE"), "env://")
    elif "SLURM_PROCID" in environ:
        step = "SLURM_STEP_NUM_TASKS" in environ or number("SLURM_PROCID") > 0
        several = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if step else 1
        if several == 1:
            # A batch script's own commands have the variables of its job; srun's have a step's.
            if not step and not several_by_flag and int(environ.get("SLURM_NTASKS") or 1) > 1:
                raise InputError(
                    f"this job of Slurm has {environ['SLURM_NTASKS']} tasks, but this is no step of"
                    " srun: start the command with srun, or name its processes with --num-gpus, or "
                    "unset SLURM_NTASKS for one process"
                )
            return None
        host = environ.get("MASTER_ADDR") or _first_host(environ)
        port = environ.get("MASTER_PORT") or 20_000 + number("SLURM_JOB_ID") % 20_000
        place = Place(
            number("SLURM_PROCID"), number("SLURM_LOCALID"), several, f"tcp://{host}:{port}"
        )
    else:
        # Each of them would be a training of its own.
        for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
            if environ.get(name) and number(name) > 1 and not several_by_flag:
                raise InputError(
                    f"environment: {name}={environ[name]}: processes that mpirun starts do not "
                    "find each other here; start the command with torchrun or srun, or once, with "
                    "--num-gpus"
                )
        return None
    if not 0 <= place.local_rank <= place.rank < place.world_size:
        raise InputError(
            f"environment: rank {place.rank}, local rank {place.local_rank} of {place.world_size} "
            "processes is no place among them"
        )
    return place


def _first_host(environ: Mapping[str, str]) -> str:
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = next((environ[name] for name in names if environ.get(name)), "")
    # a1,a2  a[07-12,15],b3  a[07,15]-ib
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", hosts)
    if not found:
        raise InputError("environment: SLURM_JOB_NODELIST is missing; set MASTER_ADDR to the host")
    return "".join(part or "" for part in found.groups())


@contextmanager
def process_group(
    place: Place, *, backend: str, timeout: float, report: Callable[[str], None]
) -> Iterator[None]:
    """Join the other processes for the time of a ``with`` block, in which all need each other.

    Args:
        place: of this process.
        backend: of torch's collectives, ``gloo`` or ``nccl``.
        timeout: seconds in which all must have come, and without a heartbeat from a process
            after which it counts as lost.
        report: called with the line about another process that failed or was lost, in a thread,
            right before this process ends with status 1.

    Raises:
        InputError: the others did not come in time.
    """
    patience = timedelta(seconds=timeout)
    same = "MASTER_ADDR and MASTER_PORT" if place.url == "env://" else "--dist-url"
    missed = (
        f"process {place.rank} of {place.world_size} did not meet the others at {place.url} within "
        f"PROCESS_TIMEOUT {timeout:g} s: start all of them, with the same {same}"
    )

    def give_up() -> None:
        report(f"{missed} (no answer)")
        os._exit(1)

    # A suspended process lets others connect, and wait for its answer beyond their timeouts.
    limit = timeout + 3 * _INTERVAL
    try:
        with _limited(limit, give_up):
            store, rank, world_size = next(
                rendezvous(place.url, place.rank, place.world_size, timeout=patience)
            )
        # Whoever came last may have used up most of the time.
        with _limited(limit, give_up):
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                # The main process may score alone for long while others wait for it.
                timeout=max(patience, timedelta(minutes=30)),
            )
            watch = _Watch(place, timeout, report)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise InputError(f"{missed} ({str(error).splitlines()[0][:200]})") from error
    watch.start()
    try:
        yield
    except Exception as error:
        if _is_of_collective(error):
            watch.wait_for_verdict()
        problem = one_line(error) if isinstance(error, (InputError, OSError)) else None
        watch.fail(problem or f"{type(error).__name__}, see its own output")
        raise
    finally:
        watch.leave()


@contextmanager
def _limited(seconds: float, give_up: Callable[[], object]) -> Iterator[None]:
    """Call a function, in a thread, if a ``with`` block takes longer than so many seconds."""
    limit = threading.Timer(seconds, give_up)
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


def end_all(status: int) -> None:
    """End this process at once, and have the others of its group, if it has one, end alike.

    Args:
        status: exit status of all.
    """
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        _tell(lambda store: _post(store, {"status": status, "rank": rank, "problem": ""}))
        if rank == 0:
            # The store ends with this process.
            time.sleep(2 * _INTERVAL)
    os._exit(status)


def ask_main_process(number: int) -> None:
    """Have the main process of this group, if it has one, get a signal.

    Args:
        number: of the signal.
    """
    if dist.is_available() and dist.is_initialized():
        _tell(lambda store: store.set(_ASKED, str(int(number))))


class _Watch:
    """Shows that this process lives, and ends it when another one does not."""

    def __init__(self, place: Place, timeout: float, report: Callable[[str], None]) -> None:
        self._place = place
        self._report = report
        self._store = _own_connection(timeout)
        self._store.set(f"host {place.rank}", socket.gethostname())
        self._store.set(f"sign {place.rank}", "0")
        self._ranks = range(place.world_size)
        hosts = self._store.multi_get([f"host {rank}" for rank in self._ranks])
        self._hosts = [host.decode() for host in hosts]
        self._patience = timeout
        self._leaving = threading.Event()
        self._failed = False
        self._rounds = 0
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin, in threads."""
        self._thread.start()
        if self._place.rank:
            threading.Thread(target=self._watch_store, daemon=True).start()

    def wait_for_verdict(self) -> None:
        """Give the thread time to find out who has broken a collective; it ends this process."""
        self._patience = min(self._patience, _BROKEN_PATIENCE)
        self._thread.join(3 * self._patience + 3 * _INTERVAL)

    def fail(self, problem: str) -> None:
        """Let the others know why this process ends."""
        self._failed = True
        verdict = {"status": 1, "rank": self._place.rank, "problem": problem}
        _tell(lambda store: _post(store, verdict))

    def leave(self) -> None:
        """End in order; the process that holds the store waits for the others."""
        self._leaving.set()
        if self._failed and self._place.rank == 0:
            time.sleep(2 * _INTERVAL)
        elif not self._failed:
            self._thread.join()
            dist.destroy_process_group()

    def _run(self) -> None:
        silent = [0.0] * self._place.world_size
        last = [b""] * self._place.world_size
        sign = 0
        while True:
            left = self._leaving.wait(_INTERVAL)
            if self._failed:
                return
            pause = _INTERVAL / 10 if left else _INTERVAL
            sign += 1
            try:
                self._store.set(f"sign {self._place.rank}", "left" if left else str(sign))
                verdict = self._store.compare_set(_VERDICT, "", "")
                asked = self._store.compare_set(_ASKED, "", "")
                signs = self._store.multi_get([f"sign {rank}" for rank in self._ranks])
                self._rounds += 1
            except (dist.DistError, RuntimeError):
                if not left:
                    self._end({"status": 1, "rank": 0, "problem": ""})
                return
            if asked and self._place.rank == 0:
                self._store.set(_ASKED, "")
                os.kill(os.getpid(), int(asked))
            if left and (self._place.rank or all(each == b"left" for each in signs)):
                return
            # Counted in rounds of this process: while all are suspended, nobody is lost.
            for rank, now in enumerate(signs):
                same = now == last[rank] and now != b"left" and rank != self._place.rank
                silent[rank] = silent[rank] + pause if same else 0.0
            last = signs
            if not verdict and max(silent) > self._patience:
                lost = silent.index(max(silent))
                verdict = _post(self._store, {"status": 1, "rank": lost, "problem": ""})
            if verdict:
                self._end(json.loads(verdict))
                return
            if left:
                time.sleep(pause)

    def _watch_store(self) -> None:
        """End this process when the main one, which holds the store, does not answer.

        Its process may be suspended, or its machine gone without closing the connection: then the
        calls of the other thread do not return at their timeout.
        """
        silent, last = 0.0, -1
        while self._thread.is_alive():
            self._thread.join(_INTERVAL)
            silent = silent + _INTERVAL if self._rounds == last else 0.0
            last = self._rounds
            if silent > self._patience:
                self._end({"status": 1, "rank": 0, "problem": ""})

    def _end(self, verdict: dict[str, Any]) -> None:
        """Report what has become of another process, and end as it did."""
        # Both threads may find it out; one line is enough.
        if self._failed or not self._ending.acquire(blocking=False):
            return
        rank, problem = verdict["rank"], verdict["problem"]
        if verdict["status"] == 1:
            self._report(
                f"process {rank} on {self._hosts[rank]}: "
                + (
                    problem
                    or "no heartbeat; it was killed (out of memory?) or its machine cannot be "
                    "reached; start all processes again, with --resume to continue from the last "
                    "checkpoint"
                )
            )
        if self._place.rank == 0:
            time.sleep(2 * _INTERVAL)
        os._exit(verdict["status"])


def _own_connection(timeout: float) -> dist.Store:
    """Connect to the store of the group anew: a connection serves one caller at a time."""
    store = dist.distributed_c10d._get_default_store().clone()
    store.set_timeout(timedelta(seconds=timeout))
    return store


def _tell(message: Callable[[dist.Store], object]) -> None:
    """Send something to the store, unless it does not answer in time."""

    def send() -> None:
        with suppress(dist.DistError, RuntimeError):
            message(_own_connection(_ANSWER))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(_ANSWER)


def _post(store: dist.Store, verdict: dict[str, Any]) -> bytes:
    """Propose a verdict; the first one that any process proposed is that of all."""
    return store.compare_set(_VERDICT, "", json.dumps(verdict))


def _is_of_collective(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and re.search(r"gloo|NCCL|Connection (closed|reset)|Broken pipe", str(error)) is not None
    )
