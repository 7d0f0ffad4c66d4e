from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import TaskQueue, available_cores, map_in_parallel


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


def square_or_fail(number: int) -> int:
    if number == 13:
        raise InputError("13 is unlucky")
    return number**2


def process_id() -> int:
    return os.getpid()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_task_queue_keeps_the_last_result_of_each_name(num_workers: int) -> None:
    tasks = TaskQueue(num_workers)
    for number in [*range(12), 3]:
        tasks.put(str(number % 10), square_or_fail, number)
    expected = {str(number): number**2 for number in range(10)} | {"0": 100, "1": 121, "3": 9}
    assert tasks.results() == expected
    tasks.put("more", square_or_fail, 2)
    assert tasks.results() == {**expected, "more": 4}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_task_queue_raises_what_a_task_raised(num_workers: int) -> None:
    tasks = TaskQueue(num_workers)
    with pytest.raises(InputError, match="13 is unlucky"):
        for number in range(40):
            tasks.put(str(number), square_or_fail, number)
    tasks.close()


def test_task_queue_works_elsewhere_and_ends_its_processes() -> None:
    tasks = TaskQueue(1, partial(os.nice, 1))
    tasks.put("worker", process_id)
    tasks.put("niceness", os.nice, 0)
    results = tasks.results()
    assert results["worker"] != os.getpid()
    assert results["niceness"] == os.nice(0) + 1
    with pytest.raises(ProcessLookupError):
        os.kill(results["worker"], 0)


# As in training, where SIGTERM is caught in order to save a checkpoint first.
TERMINATED = """
import os, signal, time
from cityscapes_maskrcnn.utils.parallel import TaskQueue
signal.signal(signal.SIGTERM, lambda *_: print("caught", flush=True))
tasks = TaskQueue(2)
tasks.put("a", os.getpid)
tasks.put("b", time.sleep, 1.0)
while any(os.getpgid(worker) != worker for worker in tasks._pool._processes):
    time.sleep(0.01)
print("working", flush=True)
time.sleep(1.0)
print(tasks.results()["b"], flush=True)
for number in range(4):
    tasks.put(str(number), time.sleep, 0.5)
os.kill(next(iter(tasks._pool._processes)), signal.SIGKILL)
try:
    tasks.results()
except Exception as error:
    print(type(error).__name__)
"""


def test_workers_outlive_a_signal_to_the_group_and_end_when_one_was_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", TERMINATED],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert parent.stdout.readline() == "working\n"
        os.killpg(parent.pid, signal.SIGTERM)
        out, _ = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert out.splitlines() == ["caught", "None", "BrokenProcessPool"]
