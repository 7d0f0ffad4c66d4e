from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.process_group import Place, place_of_launcher

TORCHRUN = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=1"
SRUN = "SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_STEP_NUM_TASKS=4 SLURM_JOB_ID=123456"


def variables(text: str) -> dict[str, str]:
    return dict(each.split("=") for each in text.split())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", None),
        (TORCHRUN, Place(rank=5, local_rank=1, world_size=8, url="env://")),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", None),
        # 20000 + 123456 % 20000
        (f"{SRUN} SLURM_STEP_NODELIST=n1,n2", Place(3, 1, 4, "tcp://n1:23456")),
        (f"{SRUN} SLURM_JOB_NODELIST=gpu-[07-12,15],b3", Place(3, 1, 4, "tcp://gpu-07:23456")),
        (f"{SRUN} SLURM_NODELIST=a[1,3]-ib", Place(3, 1, 4, "tcp://a1-ib:23456")),
        (f"{SRUN} MASTER_ADDR=x MASTER_PORT=7", Place(3, 1, 4, "tcp://x:7")),
        # A command of a batch script, and one step of a single task in a larger job.
        ("SLURM_PROCID=0 SLURM_NTASKS=1", None),
        ("OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0", None),
        ("SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=1", None),
    ],
)
def test_places_of_launchers(text: str, place: Place | None) -> None:
    assert place_of_launcher(variables(text), several_by_flag=False) == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TORCHRUN.replace("LOCAL_RANK=1", ""), "LOCAL_RANK is missing beside those that torchrun"),
        (TORCHRUN.replace("MASTER_PORT=1", ""), "MASTER_PORT is missing beside WORLD_SIZE"),
        (TORCHRUN.replace("=8", "=two"), "WORLD_SIZE=two is not an integer"),
        (TORCHRUN.replace("RANK=5", "RANK=8"), "rank 8, local rank 1 of 8 processes is no place"),
        (SRUN, "SLURM_JOB_NODELIST is missing; set MASTER_ADDR to the host"),
        ("OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2: processes that"),
        (
            "PMI_SIZE=4 PMI_RANK=0",
            "PMI_SIZE=4: processes that mpirun starts do not ",
        ),
        ("SLURM_PROCID=0 SLURM_NTASKS=2", "this job of Slurm has 2 tasks, but this is no step of"),
    ],
)
def test_what_launchers_leave_out_gets_a_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        place_of_launcher(variables(text), several_by_flag=False)


def test_a_batch_script_may_name_its_processes_by_flag() -> None:
    environ = variables("SLURM_PROCID=0 SLURM_NTASKS=2")
    assert place_of_launcher(environ, several_by_flag=True) is None


# One waits in a collective, as for the gradients of the other.
WAITING = """
import sys, torch, torch.distributed as dist
from cityscapes_maskrcnn.utils.process_group import Place, process_group
rank, url, waits = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
place = Place(rank=rank, local_rank=0, world_size=2, url=url)
with process_group(place, backend="gloo", timeout=3.0, report=lambda line: print(line, flush=True)):
    dist.barrier()
    print("ready", flush=True)
    if rank == waits:
        dist.barrier()
    sys.stdin.read()
"""


@pytest.mark.parametrize("lost", [1, 0])
def test_a_process_that_gives_no_sign_of_life_ends_the_others_in_time(lost: int) -> None:
    """Its connections stay open, as those of a machine without power."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    one, other = (
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(rank), url, str(1 - lost)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1 - lost, lost)
    )
    with one, other:
        try:
            assert one.stdout.readline() == other.stdout.readline() == "ready\n"
            other.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            line, errors = one.communicate(timeout=30)
            assert time.monotonic() - begun > 2.5
        finally:
            one.kill()
            other.kill()
    assert one.returncode == 1, errors
    assert line.startswith(f"process {lost} on {socket.gethostname()}: no heartbeat; it")
    assert "--resume" in line


def test_a_suspended_main_process_is_not_waited_for_beyond_the_time() -> None:
    """The kernel accepts the connection, and nobody answers."""
    with socket.socket() as suspended:
        suspended.bind(("127.0.0.1", 0))
        suspended.listen()
        url = f"tcp://127.0.0.1:{suspended.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", WAITING, "1", url, "1"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"process 1 of 2 did not meet the others at {url} within PROCESS_TIMEOU")
