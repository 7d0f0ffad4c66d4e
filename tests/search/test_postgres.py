"""A search in a PostgreSQL database, on a server that the test starts for itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from cityscapes_maskrcnn.search.storage import open_storage, open_study, storage_url
from cityscapes_maskrcnn.search.study import TRIAL_WORKER, finished_trials, original_number
from cityscapes_maskrcnn.utils.errors import InputError

# Debian keeps it out of the way.
DEBIANS = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
PG_CTL = shutil.which("pg_ctl", path=os.pathsep.join([os.environ["PATH"], *DEBIANS]))
pytestmark = pytest.mark.skipif(PG_CTL is None, reason="needs a PostgreSQL server (pg_ctl)")


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


def test_workers_of_several_machines_share_a_study(
    server: Server, new_search: Callable[..., Any], tmp_path: Path
) -> None:
    search = new_search(tmp_path, server.url)
    with server.running():
        with (
            pytest.raises(InputError, match=r"anna:\*\*\*@.*: holds no Optuna studies"),
            open_study(search.url, ""),
        ):
            pass
        # All start on an empty database and want to make its tables. The first trial waits for a
        # second one, which only the other worker can start.
        fake = {"FAKE": "none crash", "FAKE_UNTIL": str(tmp_path / "t" / "0001" / "runs.txt")}
        for url in (server.url, server.url.replace("postgres:", "postgresql:")):
            search.start(4, url=url, **fake)
        assert search.finish() == [0, 0]
        with open_study(search.url, "search") as study:
            done = finished_trials(study.trials)
        states = [trial.state for trial in done]
        assert states == [TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
        assert len({trial.user_attrs[TRIAL_WORKER] for trial in done}) == 2
        # A worker let this trial fail and was killed before it queued it again.
        study = search.study()
        lost = study.ask()
        study.tell(lost, state=TrialState.FAIL)
        search(5)
        assert [original_number(trial) for trial in finished_trials(study.trials)] == [
            *map(original_number, done),
            lost.number,
        ]


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
