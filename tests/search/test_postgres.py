"""A search in a PostgreSQL database, on a server that the test starts for itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cityscapes_maskrcnn.search.storage import open_storage, open_study, storage_url
from cityscapes_maskrcnn.search.study import TRIAL_WORKER, finished_trials
from cityscapes_maskrcnn.utils.errors import InputError

WORKER_PROGRAM = Path(__file__).with_name("search_worker.py")
# Debian keeps it out of the way.
DEBIANS = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
PG_CTL = shutil.which("pg_ctl", path=os.pathsep.join([os.environ["PATH"], *DEBIANS]))
pytestmark = [
    pytest.mark.skipif(PG_CTL is None, reason="needs a PostgreSQL server (pg_ctl)"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


class Server:
    """A PostgreSQL server of one folder, on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgres://anna:secret@127.0.0.1:{self.port}/postgres"
        # The server refuses to run as root.
        self._user = "nobody" if os.getuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        password = folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        self._run("initdb", "--username=anna", "--auth=scram-sha-256", f"--pwfile={password}")

    def _run(self, *words: str) -> None:
        command = [PG_CTL, words[0], "-D", str(self._folder / "data")]
        command += ["-o", " ".join(words[1:])] if words[1:] else []
        # Its output goes to a file: the server would keep a pipe open.
        with (self._folder / "log").open("ab") as log:
            done = subprocess.run(
                command, stdout=log, stderr=log, cwd=self._folder, user=self._user, timeout=60
            )
        assert done.returncode == 0, (self._folder / "log").read_text()

    def start(self) -> None:
        self._run("start", f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder}")

    def stop(self) -> None:
        self._run("stop")

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Outside of pytest's folder, which the server's user may not enter.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        yield Server(Path(folder))


def test_workers_of_several_machines_share_a_study(server: Server, tmp_path: Path) -> None:
    with server.running():
        with (
            pytest.raises(InputError, match=r"anna:\*\*\*@.*: holds no Optuna studies"),
            open_study(storage_url(server.url), ""),
        ):
            pass
        # All start on an empty database and want to make its tables. The first trial waits for a
        # second one, which only the other worker can start.
        second = tmp_path / "t" / "0001" / "runs.txt"
        processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER_PROGRAM), url, str(tmp_path / "t"), "6"],
                env={**os.environ, "FAKE": "none crash", "FAKE_UNTIL": str(second)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for url in (server.url, server.url.replace("postgres:", "postgresql:"))
        ]
        try:
            outputs = [process.communicate(timeout=200)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], outputs
        with open_study(storage_url(server.url), "search") as study:
            done = finished_trials(study.trials)
        states = [trial.state for trial in done]
        assert states == [TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 4]
        assert len({trial.user_attrs[TRIAL_WORKER] for trial in done}) == 2
        assert len({trial.params["fg_iou_thresh"] for trial in done}) == 6


def test_a_restart_of_the_server_between_two_trials_is_not_noticed(server: Server) -> None:
    with server.running():
        study = optuna.create_study(
            study_name="long", storage=open_storage(storage_url(server.url), 60)
        )
        study.ask().suggest_float("x", 0.0, 1.0)
    with server.running():
        # The connection of before is closed; another is opened in its place.
        study.ask().suggest_float("x", 0.0, 1.0)
        assert [set(trial.params) for trial in study.trials] == [{"x"}, {"x"}]
        study._storage._backend.engine.dispose()
