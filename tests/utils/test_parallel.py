from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import available_cores, map_in_parallel


def square_and_process(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refuse_seven(number: int) -> int:
    if number >= 7:
        raise InputError(f"not {number}")
    return number


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_keep_their_order(workers):
    results = map_in_parallel(square_and_process, range(100), "squares", workers)
    assert [square for square, _ in results] == [i * i for i in range(100)]
    assert map_in_parallel(square_and_process, [], "squares", workers) == []


def test_work_is_done_by_other_processes_if_there_is_enough():
    many = {process for _, process in map_in_parallel(square_and_process, range(100), "", 2)}
    few = {process for _, process in map_in_parallel(square_and_process, range(10), "", 2)}
    assert os.getpid() not in many
    assert few == {os.getpid()}
    assert available_cores() >= 1


@pytest.mark.parametrize("workers", [1, 2])
def test_first_error_arrives(workers):
    with pytest.raises(InputError, match=r"^not 7$"):
        map_in_parallel(refuse_seven, range(100), "refusing", workers)


KILLED = """
import os, time
from cityscapes_maskrcnn.utils.parallel import map_in_parallel
def work(item):
    print("working\\n", end="", flush=True)
    time.sleep(0.2)
map_in_parallel(work, range(1000), "sleeping", 2)
"""


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout.readline() == b"working\n"
    parent.send_signal(signal.SIGKILL)
    # The workers hold the other end of the pipe too: it closes when the last of them is gone.
    parent.communicate(timeout=20)
