"""Write files so that no reader ever sees an incomplete one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from cityscapes_maskrcnn.utils.errors import InputError


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to read bytes, but nothing that may have no end: no pipe, no device.

    Args:
        path: of a regular file, or of a link to one.

    Yields:
        The open file.

    Raises:
        InputError: the file is missing, not a regular file or unreadable; also for an ``OSError``
            of the block.
    """
    try:
        # Without O_NONBLOCK opening a pipe would wait for somebody to write into it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path}: not a file, but a pipe or device")
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if "null byte" not in str(error) and not isinstance(error, UnicodeEncodeError):
            raise
        raise InputError(
            f"{path}: not a valid file name: it holds a null byte or half of a character"
        ) from error


def read_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """Read a whole file of :func:`open_file`.

    Args:
        path: of a regular file, or of a link to one.
        max_bytes: refuse a larger file, without reading it; None: any size.

    Raises:
        InputError: the file is missing, not a regular file, too large or unreadable.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise InputError(f"{path}: {size} bytes; files of this kind have at most {max_bytes}")
        return file.read()


_MAX_JSON_BYTES: Final = 10_000_000

# The names that atomic_write() gives temporary files.
_TEMPORARY: Final = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def check_zip_entries(file: IO[bytes], source: str, most: int) -> None:
    """Verify that a zip archive has few enough entries; to list a million takes zipfile seconds.

    Raises:
        InputError: it has more than ``most``.
    """
    count, rest = 0, b""
    file.seek(0)
    # The number that the archive states may be wrong; each entry of its directory begins like this.
    while block := file.read(1 << 24):
        count += (rest + block).count(b"PK\1\2")
        rest = block[-3:]
    if count > most:
        raise InputError(f"{source}: an archive of {count} files; at most {most} are read")


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to disk and then renamed over
    ``path``. If the block raises, or the process dies, an existing ``path`` keeps its old content;
    on an exception the temporary file is removed.

    Args:
        path: the finished file; its folder is created when missing.
        mode: ``"wb"`` or ``"w"`` (text is written as UTF-8).

    Yields:
        The open temporary file.

    Raises:
        InputError: the file or its folder cannot be written. An ``OSError`` of the block about
            another file passes through.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a finished file gets the permissions any other would have.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        # A failed write, unlike a failed open, does not know the name of its file.
        own = (None, temporary, *map(str, (path, *path.parents)))
        if isinstance(error, OSError) and error.filename in own:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def remove_temporary_files(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove what killed processes left of files that they wrote by :func:`atomic_write`.

    Args:
        folder: nobody else may be writing to it.
        pattern: of paths within it.
    """
    for path in folder.glob(pattern):
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, as UTF-8.

    Raises:
        InputError: the file or its folder cannot be written.
    """
    with atomic_write(path, "w") as file:
        file.write(text)


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a table for programs, its lines ended by a line feed.

    Args:
        header: names of the columns.
        rows: text and numbers; NaN, which spreadsheets take for text, and None become empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell != cell else cell for cell in row] for row in rows)
    return text.getvalue()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file atomically; NaN, which JSON does not know, becomes null.

    Raises:
        InputError: the file or its folder cannot be written.
        ValueError: a number is infinite.
    """
    write_text(path, to_json(content, indent=1))


def read_json(
    path: str | os.PathLike[str], *, form: Mapping[str, Any] | None = None, advice: str
) -> dict[str, Any]:
    """Read a JSON object that this project wrote.

    Args:
        path: the file.
        form: of the content: a type (``float``: any finite number), None, a tuple of those that may
            be there, ``[form]`` for a list, ``{"*": form}`` for an object of any names, or
            ``{"name": form, "other?": form}``, of which the second may be missing.
        advice: what to do if it is damaged; the end of the message.

    Raises:
        InputError: the file is missing, damaged, or holds anything else.
    """
    try:
        content = json.loads(read_file(path, max_bytes=_MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}; {advice}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; {advice}")
    form = form or {}
    missing = [name for name in form if not name.endswith("?") and name not in content]
    if missing:
        raise InputError(f"{path}: has no {' and '.join(missing)}; {advice}")
    for name, part in form.items():
        key = name.removesuffix("?")
        if key in content and not _has_form(content[key], part):
            raise InputError(f"{path}: {key} is damaged; {advice}")
    return content


def _has_form(value: Any, form: Any) -> bool:
    """Whether a part of a JSON file has a form, see :func:`read_json`."""
    if isinstance(form, tuple):
        return any(_has_form(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_has_form(each, form[0]) for each in value)
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return False
        if "*" in form:
            return all(_has_form(each, form["*"]) for each in value.values())
        return all(
            name.endswith("?") if key not in value else _has_form(value[key], part)
            for name, part in form.items()
            for key in (name.removesuffix("?"),)
        )
    if form is None:
        return value is None
    if form in (int, float):
        # Larger ones cannot be written as a float.
        is_number = isinstance(value, (int, form)) and not isinstance(value, bool)
        return is_number and abs(value) < 2**63
    return isinstance(value, form)


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """Write results as JSON; NaN, which JSON does not know, becomes null.

    Args:
        value: nested mappings, lists, strings and numbers.
        indent: spaces a level; None: all in one line.

    Raises:
        ValueError: a number is infinite.
    """
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
