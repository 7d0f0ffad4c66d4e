from __future__ import annotations

import logging
import re
import sqlite3
from contextlib import closing
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
    ("text", "message"),
    [
        ("://", "--storage: not a database URL such as"),
        (" \n", "--storage: the name is empty; give an SQLite"),
    ],
)
def test_addresses_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        storage_url(text)


POSTGRES = "postgres://u:secret@127.0.0.1:1/d"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (POSTGRES, r"^postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d: cannot use the database: c"),
        ("oracle2://h/d", "^oracle2://h/d: cannot use the database: Can't load plugin"),
        ("sqlite:////no/such/folder/s.db", "cannot use the database: unable to open database file"),
    ],
)
def test_databases_that_cannot_be_searched_with(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_storage(storage_url(url), 60)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (POSTGRES, r"^postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d: cannot use the database: c"),
        ("sqlite://", "^--storage sqlite://: it names no file; write sqlite:///FILE$"),
        ("sqlite:///.", r"^\.: is a folder$"),
        ("none.db", r"^none\.db: no such file$"),
        ("text.db", "^text.db: cannot be read as an SQLite database"),
        ("empty.db", "^empty.db: holds no Optuna studies$"),
    ],
)
def test_databases_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("no database " * 100)
    sqlite3.connect(tmp_path / "empty.db").execute("create table t (x)").connection.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message), open_study(storage_url(url), "s"):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_study_of_an_older_optuna_is_read_and_left_as_it_is(
    old_database: Path, tmp_path: Path
) -> None:
    before = old_database.read_bytes()
    log = logging.getLogger("cityscapes_maskrcnn.of_a_test")
    with open_study(storage_url(str(old_database)), "maskrcnn-thresholds") as study:
        # As Optuna 2.10.1 wrote them.
        assert len(study.trials) == 12
        assert study.best_value == 0.19823
        assert study.best_trial.number == 2
        assert study.best_params["fpn_grad_flow"] is True
    assert old_database.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["old.db"]
    # Bringing tables up to date must not switch off the logs of this process.
    assert not log.disabled


def test_a_search_cannot_go_on_in_tables_of_an_older_optuna(old_database: Path) -> None:
    with pytest.raises(InputError, match="another version of Optuna; run once: optuna storage upg"):
        open_storage(storage_url(str(old_database)), 60)


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("update trials set state = 'COMPLETf'", "'COMPLETf' is not among the defined enum values"),
        ("update trials set datetime_start = '2026-11-27 13:4&'", "Invalid isoformat string"),
        ("update trial_values set value = 'many'", "trial 0 has the value 'many'"),
        ("update trial_values set value = null", "restore a copy"),
        ("delete from trial_values", "trial 0 is complete and has no value"),
        ("update study_user_attributes set value_json = '{\"a\" 1}'", "Expecting ':' delimiter"),
        ("update trial_params set distribution_json = '{}'", ""),
        ("update study_directions set direction = '\x1bMAX'", r"'\\x1bMAX' is not among"),
    ],
)
def test_damaged_rows(tmp_path: Path, row: str, message: str) -> None:
    url = storage_url(str(tmp_path / "s.db"))
    study = optuna.create_study(study_name="s", storage=url)
    study.set_user_attr("a", 1)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        database.execute(row)
        database.commit()
    with (
        pytest.raises(
            InputError, match=r"s\.db: the database is damaged; restore a copy of it"
        ) as e,
        open_study(url, "s"),
    ):
        pass
    assert re.search(message, str(e.value))
