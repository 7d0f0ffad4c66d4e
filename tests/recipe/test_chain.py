"""The driver, with steps that are real processes but count instead of training."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FAKE_CHAIN = Path(__file__).with_name("fake_chain.py")
STEPS = {"first": 8, "second": 5, "third": 8}


@contextmanager
def started(output: Path, *words: str, **fake: str) -> Iterator[subprocess.Popen[str]]:
    """A chain, which does not outlive its block; words: seconds a number, names of steps."""
    process = subprocess.Popen(
        [sys.executable, str(FAKE_CHAIN), str(output), *(words or ("0.02",))],
        env={**os.environ, **fake},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    with started(output, *words) as process:
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def results(output: Path) -> dict[str, str]:
    return {name: (output / name / "result").read_text() for name in STEPS}


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return False


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def step_processes(output: Path) -> set[int]:
    """The process of every step that has started, the last one of each."""
    return {int(file.read_text() or 0) for file in output.glob("*/pid")}


def assert_every_number_was_counted_once(output: Path) -> None:
    for name, count in STEPS.items():
        counted = (output / name / "counted").read_text().split()
        assert counted == [str(number) for number in range(count)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    done = run(output)
    assert done.returncode == 0, done.stderr
    (output / "stdout").write_text(done.stdout)
    return output


def test_steps_run_in_order_and_hand_on(whole: Path) -> None:
    printed = (whole / "stdout").read_text()
    places = [printed.index(f"{name}: complete") for name in STEPS]
    assert places == sorted(places)
    assert len(set(results(whole).values())) == 3
    assert_every_number_was_counted_once(whole)
    for name, count in STEPS.items():
        assert f"at {count - 1}" in (whole / name / "steps.log").read_text()


def test_what_is_complete_is_not_repeated(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    done = run(whole)
    assert done.returncode == 0
    assert "complete after" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_call_is_noted_once(tmp_path: Path) -> None:
    for names in (["first", "second"], ["first"], ["first", "second"]):
        assert run(tmp_path, "0", *names).returncode == 0
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    # The checkout may lie in a folder with a space.
    command = f"python {shlex.join([str(FAKE_CHAIN), str(tmp_path)])}"
    assert recipe == {
        "commands": [f"{command} 0 first second", f"{command} 0 first"],
        "selected": ["first", "second"],
        "datasets": os.environ.get("DETECTRON2_DATASETS", "datasets"),
    }


def test_killed_at_random_moments_it_ends_alike(whole: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments: nothing survives it, and the same command goes on."""
    moments = random.Random(4)

    def kill(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(alive, step_processes(tmp_path))))

    # Once for certain in the middle of a step's work.
    with started(tmp_path, "0", FAKE_HOLD="3") as process:
        saved = tmp_path / "first" / "saved"
        wait_until(lambda: saved.exists() and saved.read_text().startswith("3 "))
        kill(process)
    for number in range(8):
        before = step_processes(tmp_path)
        with started(tmp_path, "0.1") as process:
            while number % 2 and process.poll() is None and not step_processes(tmp_path) - before:
                # Not while Python starts, which is most of the time of so small a chain.
                time.sleep(0.01)
            try:
                process.wait(moments.uniform(0.1, 0.7))
                break
            except subprocess.TimeoutExpired:
                kill(process)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == results(whole)
    # It went on with what was saved, not from the start.
    assert (tmp_path / "first" / "starts").read_text().split()[:2] == ["0", "3"]


def test_sigterm_and_ctrl_c_let_the_step_save(whole: Path, tmp_path: Path) -> None:
    for number, name in ((signal.SIGTERM, "first"), (signal.SIGINT, "second")):
        with started(tmp_path, "0", FAKE_HOLD="1") as process:
            wait_until((tmp_path / name / "saved").exists)
            process.send_signal(number)
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 128 + number
        assert "to continue, run the same command again" in printed
        assert (tmp_path / name / "saved").read_text().startswith("1 ")
        assert not (tmp_path / name / "complete.json").exists()
    assert run(tmp_path).returncode == 0
    assert results(tmp_path) == results(whole)
    assert_every_number_was_counted_once(tmp_path)  # it saved when asked


def test_ctrl_c_on_a_terminal_is_acknowledged_at_once(
    tmp_path: Path, on_terminal: Callable[..., tuple[int, str]]
) -> None:
    saved, pressed = tmp_path / "first" / "saved", False

    def press(text: str) -> str:
        nonlocal pressed
        # The step is at work: it waits where it has saved the first number.
        if pressed or "starting up" not in text or not saved.exists():
            return ""
        pressed = True
        return "\x03"

    command = [sys.executable, str(FAKE_CHAIN), str(tmp_path), "0"]
    status, written = on_terminal(command, press, env={**os.environ, "FAKE_HOLD": "1"})
    assert status == 130, written
    assert "stopping when the step under way has saved; Ctrl-C again ends at once\r\n" in written
    lives = re.findall(r"\r\x1b\[K(first  [^\r\n]*)", written)
    assert lives[0] == "first  starting up  ETA -  all 0:00+"
    assert written.endswith("SIGINT: stopped; to continue, run the same command again\r\n")
    assert not (tmp_path / ".progress.json").exists()


def test_a_step_that_fails_gets_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "0", "first", "failing", "third")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: fake_step.py: exit status 1: no weights")
    assert f"(log: {tmp_path / 'failing' / 'steps.log'})" in done.stderr
    assert not (tmp_path / "third").exists()


def test_one_chain_works_on_a_folder_at_a_time(tmp_path: Path) -> None:
    with started(tmp_path, "0", FAKE_HOLD="1"):
        wait_until((tmp_path / "first" / "saved").exists)
        before = (tmp_path / "recipe.json").read_bytes()
        done = run(tmp_path, "0.5", "second")
    assert done.returncode == 1
    # What is refused is no part of the run.
    assert (tmp_path / "recipe.json").read_bytes() == before
    assert "another train_stages.py is running here" in done.stderr.splitlines()[-1]


def test_what_depends_on_a_remade_step_is_remade(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "0").returncode == 0
    before = results(tmp_path)

    # As the message about a changed file advises: delete the folder. The result is the same again.
    shutil.rmtree(tmp_path / "first")
    done = run(tmp_path, "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^(\w+) .*may be remade", done.stdout, re.MULTILINE) == [
        "second",
        "third",
    ]
    assert "first: complete" in done.stdout
    assert "second: complete" not in done.stdout

    # Another result: what was made from the first one is set aside and made anew.
    shutil.rmtree(tmp_path / "first")
    with started(tmp_path, "0", FAKE_HOLD="3") as process:
        wait_until((tmp_path / "first" / "saved").exists)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    (tmp_path / "first" / "saved").write_text("7 other")
    done = run(tmp_path, "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"moved to {tmp_path / 'replaced' / 'third-1'}" in done.stdout
    after = results(tmp_path)
    assert all(after[name] != before[name] for name in STEPS)
    assert (tmp_path / "replaced" / "second-1" / "result").read_text() == before["second"]
    assert "complete after" not in run(tmp_path, "0").stdout
    assert results(whole) == before
