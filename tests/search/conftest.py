"""Searches with the fake training program, in this process and in others."""

from __future__ import annotations

import os
import runpy
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FrozenTrial

from cityscapes_maskrcnn.search.storage import storage_url

WORKER_PROGRAM = Path(__file__).with_name("search_worker.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore Optuna's warnings about heartbeats, which are experimental, in this folder."""
    for item in items:
        if item.path.parent == WORKER_PROGRAM.parent:
            for ignored in ("::optuna.exceptions.ExperimentalWarning", ":Heartbeat of storage"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore{ignored}"))


class Search:
    """A search in ``folder``: its database ``s.db`` and its trials ``t``."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.url = storage_url(url or str(folder / "s.db"))
        self.module = SimpleNamespace(**runpy.run_path(str(WORKER_PROGRAM)))
        self.processes: list[subprocess.Popen[str]] = []

    def __call__(self, budget: int, **options: object) -> optuna.Study:
        """Run a worker in this process."""
        return self.module.search(self.url, self.folder / "t", budget, **options)

    def start(self, *numbers: int, url: str = "", **environment: str) -> subprocess.Popen[str]:
        """Start a worker in a process of its own; ``numbers``: budget and confirmed trials."""
        words = [url or self.url, str(self.folder / "t"), *map(str, numbers)]
        process = subprocess.Popen(
            [sys.executable, str(WORKER_PROGRAM), *words],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def finish(self) -> list[int]:
        """Wait until all processes have ended; their exit statuses."""
        for process in self.processes:
            print(process.communicate(timeout=200)[0])
        return [process.returncode for process in self.processes]

    def study(self, name: str = "search") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.url)

    def trials(self) -> list[FrozenTrial]:
        return self.study().trials

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials()]

    def starts(self, number: int, folder: str = "t") -> list[int]:
        """The iterations at which the processes of a trial started."""
        text = (self.folder / folder / f"{number:04d}" / "runs.txt").read_text()
        return [int(line.split()[1]) for line in text.splitlines()]


@pytest.fixture
def new_search() -> Iterator[Callable[..., Search]]:
    """Make a search; its processes do not outlive the test."""
    searches: list[Search] = []

    def make(*arguments: object) -> Search:
        searches.append(Search(*arguments))
        return searches[-1]

    yield make
    for search in searches:
        for process in search.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def search(new_search: Callable[..., Search], tmp_path: Path) -> Search:
    return new_search(tmp_path)


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for what happens, not for a time: the machine may be busy."""

    def wait(happened: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)

    return wait


@pytest.fixture
def old_database(tmp_path: Path) -> Path:
    """A database as Optuna 2.10.1 wrote it."""
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("study_of_optuna_2.sql").read_text())
    connection.close()
    return path
