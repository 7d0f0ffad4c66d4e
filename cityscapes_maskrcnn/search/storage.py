"""Databases of studies: their URLs, opening them, and their errors in one line."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy
from optuna import Study, exceptions, load_study, logging
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from cityscapes_maskrcnn.search.study import confirmation_name
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable


def storage_url(text: str) -> str:
    """Bring the address of a database into SQLAlchemy's form.

    Args:
        text: a URL. ``postgres://``, ``postgresql://`` and ``postgresql+psycopg2://`` become
            ``postgresql+psycopg://``, the driver that this project uses. Without ``://``: the path
            of an SQLite file.

    Raises:
        InputError: it is empty, or no URL.
    """
    text = text.strip()
    if not text:
        raise InputError("--storage: the name is empty; give an SQLite file or postgresql://...")
    if "://" not in text:
        return f"sqlite:///{text}"
    text = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", text, flags=re.IGNORECASE)
    try:
        make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise InputError(
            "--storage: not a database URL such as sqlite:///search.db or "
            "postgresql://user:password@host/database"
        ) from error
    return text


def without_password(url: str) -> str:
    """Mask the password of a database URL, for logs and messages."""
    return make_url(url).render_as_string(hide_password=True)


def open_storage(url: str, heartbeat_seconds: int) -> RDBStorage:
    """Open a database to search with, creating its tables when missing.

    Args:
        url: from :func:`storage_url`.
        heartbeat_seconds: a worker leaves a sign of life this often. After three of these times
            without one, its trial fails, see :meth:`.Worker.run`.

    Raises:
        InputError: see :func:`database_errors`.
    """
    attempts = 5
    while True:
        try:
            with database_errors(url):
                return RDBStorage(
                    url,
                    engine_kwargs=_engine_options(url),
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=3 * heartbeat_seconds,
                )
        except InputError as error:
            # Several workers that start on an empty database all try to create the tables.
            if not re.search("already exists|duplicate key|UNIQUE constraint", str(error)):
                raise
            attempts -= 1
            if not attempts:
                raise
            time.sleep(1.0)


@contextmanager
def open_study(url: str, name: str) -> Iterator[Study]:
    """Open a study to read, without changing anything in its database.

    An SQLite file is copied first, and the copy is brought to the tables of the installed Optuna,
    so that studies of older versions can be read. Other databases are read where they are.

    Args:
        url: from :func:`storage_url`.
        name: of the study; empty: the only one there is, without its confirmation.

    Raises:
        InputError: there is no such study, or there are several to choose from, or it is
            damaged, or see :func:`database_errors`.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        database_errors(url),
        warnings.catch_warnings(),
    ):
        # Of Optuna about the names that its older versions used.
        warnings.simplefilter("ignore", FutureWarning)
        if url.startswith("sqlite"):
            copy = Path(folder) / "copy.db"
            _copy_sqlite(url, copy)
            storage = RDBStorage(f"sqlite:///{copy}", skip_compatibility_check=True)
            if storage.get_current_version() in storage.get_all_versions()[1:]:
                _upgrade(copy)
            storage = RDBStorage(f"sqlite:///{copy}")
        else:
            engine = sqlalchemy.create_engine(url, **_engine_options(url))
            # Optuna would create its tables.
            if not sqlalchemy.inspect(engine).has_table("studies"):
                raise InputError(f"{without_password(url)}: holds no Optuna studies")
            engine.dispose()
            storage = RDBStorage(url, engine_kwargs=_engine_options(url))
        with damage_errors(url):
            names = [study.study_name for study in storage.get_all_studies()]
        names = [name for name in names if name not in map(confirmation_name, names)]
        listed = ", ".join(sorted(names)) or "none"
        if not name and len(names) != 1:
            raise InputError(f"{without_password(url)}: name one --study; it has: {listed}")
        name = name or names[0]
        if name not in names:
            raise InputError(f"{without_password(url)}: no study {name!r}; it has: {listed}")
        try:
            yield read_study(storage, name, url)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def read_study(storage: RDBStorage, name: str, url: str) -> Study:
    """Load a study, its attributes and all its trials once, to see that they can be read.

    Raises:
        InputError: see :func:`damage_errors`.
    """
    with damage_errors(url):
        study = load_study(study_name=name, storage=storage)
        _ = study.user_attrs, study.directions
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.COMPLETE and not trial.values:
                raise ValueError(f"trial {trial.number} is complete and has no value")
            for value in (*(trial.values or ()), *trial.intermediate_values.values()):
                if not isinstance(value, (int, float)):
                    # SQLite keeps text in columns of numbers.
                    raise ValueError(f"trial {trial.number} has the value {value!r}")
    return study


@contextmanager
def damage_errors(url: str) -> Iterator[None]:
    """Turn what Optuna raises for rows that it did not write so into one clear line.

    Raises:
        InputError: an enumeration, a date, JSON or text in the database is none.
    """
    try:
        yield
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{without_password(url)}: the database is damaged; restore a copy of it "
            f"({printable(str(error))})"
        ) from error


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Turn what goes wrong with a database in a ``with`` block into one clear line.

    Raises:
        InputError: it cannot be reached or written, has no driver, is no database, was made by an
            older or newer Optuna.
    """
    where = without_password(url)
    verbosity = logging.get_verbosity()
    # Optuna logs the whole statement and traceback of what is reported here in one line.
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except ImportError as error:
        # Optuna's error does not name the module that it did not find.
        todo = "pip install -e '.[postgres]'" if where.startswith("postgresql") else str(error)
        raise InputError(f"{where}: the database's driver is missing: {todo}") from error
    except (sqlalchemy.exc.SQLAlchemyError, exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, exceptions.StorageInternalError) else error
        reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
        raise InputError(f"{where}: cannot use the database: {reason}") from error
    except RuntimeError as error:
        if "storage upgrade" in str(error):
            todo = f"run once: optuna storage upgrade --storage {where}"
        elif "updating optuna" in str(error):
            todo = "install a newer Optuna"
        else:
            raise
        raise InputError(f"{where}: its tables are of another version of Optuna; {todo}") from error
    finally:
        logging.set_verbosity(verbosity)


def _engine_options(url: str) -> dict[str, object]:
    if url.startswith("sqlite"):
        # Other processes may hold the file for a moment.
        return {"connect_args": {"timeout": 60}}
    timeout = {"connect_timeout": 10} if url.startswith("postgresql") else {}
    # Trials take long: notice a connection that was closed meanwhile, and open another.
    return {"connect_args": timeout, "pool_pre_ping": True}


def _copy_sqlite(url: str, copy: Path) -> None:
    """Copy a database file as it is at one moment, also while others write to it."""
    name = make_url(url).database
    if not name:
        raise InputError(f"--storage {url}: it names no file; write sqlite:///FILE")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with (
            closing(sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            tables = target.execute("select 1 from sqlite_master where name = 'studies'")
            if tables.fetchone() is None:
                raise InputError(f"{path}: holds no Optuna studies")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as an SQLite database: {error}") from error


def _upgrade(copy: Path) -> None:
    """Bring the tables of an SQLite file to the installed Optuna.

    In a process of its own: it sets up logging anew, for all of the process.
    """
    code = (
        "import sys; from optuna.storages import RDBStorage; "
        "RDBStorage(sys.argv[1], skip_compatibility_check=True).upgrade()"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{copy}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"its tables cannot be brought up to date: {reason}")
