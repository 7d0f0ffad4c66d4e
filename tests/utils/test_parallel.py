from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils import parallel
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import TaskQueue, map_in_parallel

# Python 3.12 and later warn of a fork while other threads run.
pytestmark = pytest.mark.filterwarnings("error:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers find this file, whose name under pytest is no module's they could import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(sys.modules, "test_parallel", sys.modules[__name__])
    for function in (square_and_process, refuse_seven, process_id, is_changed, terminate_self):
        monkeypatch.setattr(function, "__module__", "test_parallel")


def square_and_process(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refuse_seven(number: int) -> int:
    if number == 7:
        raise InputError("7 is unlucky")
    return number**2


def process_id() -> int:
    return os.getpid()


def terminate_self(number: int) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return number


CHANGED = False


def is_changed(_: int) -> bool:
    return CHANGED


@pytest.mark.parametrize("workers", [1, 2])
def test_results_keep_their_order(workers: int) -> None:
    results = map_in_parallel(square_and_process, range(100), "squares", workers)
    assert [square for square, _ in results] == [number * number for number in range(100)]
    assert (os.getpid() in {process for _, process in results}) == (workers == 1)
    with pytest.raises(InputError, match="7 is unlucky"):
        map_in_parallel(refuse_seven, range(100), "refusing", workers)


def test_few_items_start_no_process() -> None:
    results = map_in_parallel(square_and_process, range(31), "", 2)
    assert {process for _, process in results} == {os.getpid()}
    assert map_in_parallel(square_and_process, [], "", 2) == []


def test_workers_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process would share this one's memory, and its threads' locks."""
    monkeypatch.setattr(sys.modules[__name__], "CHANGED", True)
    # Another thread, as CUDA, NCCL and TensorBoard have them.
    end = threading.Event()
    threading.Thread(target=end.wait).start()
    try:
        assert not any(map_in_parallel(is_changed, range(100), "", 2))
    finally:
        end.set()


# No guard: a worker that imported the main module would start workers of its own.
SCRIPT = """
import sys
from cityscapes_maskrcnn.utils.parallel import map_in_parallel
from test_parallel import square_and_process
print(len(map_in_parallel(square_and_process, range(100), "squares", 2)), __name__)
"""


def test_scripts_need_no_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "100 __main__\n"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_task_queue_keeps_the_last_result_of_each_name(num_workers: int) -> None:
    tasks = TaskQueue(num_workers)
    for number in [*range(22), 3]:
        tasks.put(str(number % 20), pow, number, 2)
    expected = {str(number): number**2 for number in range(20)} | {"0": 400, "1": 441, "3": 9}
    assert tasks.results() == expected
    tasks.put("more", pow, 2, 2)
    assert tasks.results() == {**expected, "more": 4}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_task_queue_raises_what_a_task_raised(
    monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr(parallel, "_ITEMS_PER_WORKER", 0)
    tasks = TaskQueue(num_workers)
    with pytest.raises(InputError, match="7 is unlucky"):
        for number in range(40):
            tasks.put(str(number), refuse_seven, number)
    tasks.close()


def test_task_queue_starts_processes_for_many_tasks_and_ends_them() -> None:
    tasks = TaskQueue(1, partial(os.nice, 1))
    for number in range(17):
        tasks.put(str(number), process_id)
    tasks.put("niceness", os.nice, 0)
    results = tasks.results()
    assert results["15"] == os.getpid()
    assert results["16"] != os.getpid()
    assert results["niceness"] == os.nice(0) + 1
    with pytest.raises(ProcessLookupError):
        os.kill(results["16"], 0)


KILLED = """
import os, time
from cityscapes_maskrcnn.utils import parallel
parallel._ITEMS_PER_WORKER = 0
tasks = parallel.TaskQueue(2)
tasks.put("a", os.write, 1, b"working\\n")
tasks.put("b", time.sleep, 100)
tasks.results()
"""


def test_workers_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"working\n"
    parent.send_signal(signal.SIGKILL)
    # The workers hold the other end of the pipe too: it closes when the last of them is gone.
    parent.communicate(timeout=20)


# As in training, where SIGTERM is caught in order to save a checkpoint first.
TERMINATED = """
import os, signal, time
from cityscapes_maskrcnn.utils import parallel
signal.signal(signal.SIGTERM, lambda *_: print("caught", flush=True))
parallel._ITEMS_PER_WORKER = 0
tasks = parallel.TaskQueue(2)
tasks.put("a", time.sleep, 1.0)
os.killpg(0, signal.SIGTERM)  # while the worker starts
tasks.put("b", os.getpid)
print(sorted(tasks.results()), flush=True)
tasks.put("c", time.sleep, 9.0)
os.kill(next(iter(tasks._pool._processes)), signal.SIGKILL)
try:
    tasks.results()
except Exception as error:
    print(type(error).__name__)
"""


def test_workers_outlive_a_signal_to_the_group_and_end_when_one_was_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["caught", "['a', 'b']", "BrokenProcessPool"]


def test_workers_outlive_a_signal_to_every_process() -> None:
    """As a job scheduler sends it."""
    assert map_in_parallel(terminate_self, range(32), "", 2) == list(range(32))


def leave_with_work() -> None:
    tasks = TaskQueue(1)
    for number in range(40):
        tasks.put(str(number), time.sleep, 0.01)
    raise SystemExit(3)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_leaves_its_work_ends() -> None:
    """As one of several that train and are asked to stop during an evaluation."""
    process = multiprocessing.get_context("fork").Process(target=leave_with_work)
    process.start()
    process.join(15)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 3


PRELOADS = """
from multiprocessing import forkserver
from cityscapes_maskrcnn.utils.parallel import loader_context
loader_context("json")
print(open(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read())
"""


def test_the_process_that_workers_are_forked_from_is_not_interrupted_while_it_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELOADS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if line)
    both = 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1
    assert int(status["SigBlk"], 16) & both == both


def test_workers_are_silent_about_a_parent_that_ended(capfd: pytest.CaptureFixture[str]) -> None:
    parallel._ignore_lost_connections(
        ConnectionResetError, ConnectionResetError(104, "reset"), None
    )
    assert capfd.readouterr().err == ""
    parallel._ignore_lost_connections(KeyError, KeyError("cars"), None)
    assert "KeyError: 'cars'" in capfd.readouterr().err
