from __future__ import annotations

import hashlib
import logging
import sqlite3
from pathlib import Path

import optuna
import pytest

from cityscapes_maskrcnn.search.storage import (
    open_storage,
    open_study,
    storage_url,
    without_password,
)
from cityscapes_maskrcnn.utils.errors import InputError

OLD_STUDY = Path(__file__).with_name("study_of_optuna_2.sql")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://u:p@h:5432/d", "postgresql+psycopg://u:p@h:5432/d"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        (" POSTGRES://h/d\n", "postgresql+psycopg://h/d"),
        ("sqlite:///a/postgres://b.db", "sqlite:///a/postgres://b.db"),
        ("output/search.db", "sqlite:///output/search.db"),
        ("mysql://h/d", "mysql://h/d"),
    ],
)
def test_spellings(text: str, url: str) -> None:
    assert storage_url(text) == url


def test_passwords_are_not_shown() -> None:
    url = "postgresql+psycopg://anna:secret@host/d"
    assert without_password(url) == "postgresql+psycopg://anna:***@host/d"


@pytest.mark.parametrize(
    ("url", "searching", "reading"),
    [
        (
            "postgres://u:secret@127.0.0.1:1/d",
            r"u:\*\*\*@127.0.0.1:1/d: cannot use the database: c",
            r"u:\*\*\*@127.0.0.1:1/d: cannot use the database: c",
        ),
        (
            "oracle2://h/d",
            "^oracle2://h/d: there is no such kind of database$",
            "^oracle2://h/d: there is no such kind of database$",
        ),
        (
            "sqlite:////no/such/folder/s.db",
            "cannot use the database: unable to open database file",
            "^/no/such/folder/s.db: no such file$",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_databases_that_cannot_be_used(url: str, searching: str, reading: str) -> None:
    with pytest.raises(InputError, match=searching) as caught:
        open_storage(storage_url(url), 60)
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match=reading) as caught, open_study(storage_url(url), "s"):
        pass
    assert "secret" not in str(caught.value)


def test_addresses_that_are_none() -> None:
    with pytest.raises(InputError, match="--storage: not a database URL such as"):
        storage_url("://")
    for text in ("", " \n"):
        with pytest.raises(InputError, match="--storage: the name is empty; give an SQLite"):
            storage_url(text)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "^--storage sqlite://: it names no file; write sqlite:///FILE$"),
        ("sqlite:///", "^--storage sqlite:///: it names no file; write sqlite:///FILE$"),
        ("sqlite:///.", r"^\.: is a folder$"),
    ],
)
def test_addresses_without_a_file(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message), open_study(storage_url(url), ""):
        pass


def test_reading_makes_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"none\.db: no such file"),
        open_study(storage_url(str(tmp_path / "none.db")), "s"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_studies(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    sqlite3.connect(tmp_path / "empty.db").execute("create table t (x)").connection.close()
    for name, message in (("text.db", "cannot be read as an SQLite"), ("empty.db", "holds no Opt")):
        before = (tmp_path / name).read_bytes()
        with (
            pytest.raises(InputError, match=message),
            open_study(storage_url(str(tmp_path / name)), "s"),
        ):
            pass
        assert (tmp_path / name).read_bytes() == before
        assert {path.name for path in tmp_path.iterdir()} == {"text.db", "empty.db"}


def old_database(folder: Path) -> Path:
    path = folder / "old.db"
    connection = sqlite3.connect(path)
    connection.executescript(OLD_STUDY.read_text())
    connection.close()
    return path


def test_a_study_of_an_older_optuna_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    path = old_database(tmp_path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    log = logging.getLogger("cityscapes_maskrcnn.of_a_test")
    with open_study(storage_url(str(path)), "maskrcnn-thresholds") as study:
        # As Optuna 2.10.1 wrote them.
        assert len(study.trials) == 12
        assert study.best_value == 0.19823
        assert study.best_trial.number == 2
        assert study.best_params["fpn_grad_flow"] is True
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [each.name for each in tmp_path.iterdir()] == ["old.db"]
    # Bringing tables up to date must not switch off the logs of this process.
    assert not log.disabled


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_cannot_go_on_in_tables_of_an_older_optuna(tmp_path: Path) -> None:
    path = old_database(tmp_path)
    with pytest.raises(InputError, match="another version of Optuna; run once: optuna storage upg"):
        open_storage(storage_url(str(path)), 60)


def test_a_missing_study_is_named_with_those_there_are(tmp_path: Path) -> None:
    url = storage_url(str(tmp_path / "s.db"))
    for name in ("b", "a"):
        optuna.create_study(study_name=name, storage=url)
    with pytest.raises(InputError, match="no study 'c'; it has: a, b"), open_study(url, "c"):
        pass
    with pytest.raises(InputError, match="name one --study; it has: a, b"), open_study(url, ""):
        pass
    optuna.delete_study(study_name="a", storage=url)
    with open_study(url, "") as study:
        assert study.study_name == "b"
