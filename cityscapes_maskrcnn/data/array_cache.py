"""Cache files of flat arrays: safe to delete, to share and to interrupt.

A cache file is only a copy of what can be computed again. It is a NumPy ``.npz`` file without
pickled objects, so that reading it never executes code.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

try:
    import fcntl
except ImportError:  # not a POSIX system: simultaneous first builds then repeat each other's work
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "CITYSCAPES_MASKRCNN_CACHE"

Content = TypeVar("Content")


def cache_folder() -> Path:
    """Folder of the cache files.

    Returns:
        ``$CITYSCAPES_MASKRCNN_CACHE`` if set, else ``cityscapes_maskrcnn`` in ``$XDG_CACHE_HOME``
        or ``~/.cache``. It need not exist.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "cityscapes_maskrcnn"


def cache_file(name: str, folders: Sequence[str | os.PathLike[str]]) -> Path:
    """Path of the cache file of one split.

    Args:
        name: readable first part of the file name, for instance ``gtFine-train-instances``.
        folders: what the split is read from; their absolute paths go into a digest.
    """
    text = "\n".join(str(Path(folder).absolute()) for folder in folders)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_folder() / f"{name}-{digest}.npz"


@contextmanager
def build_lock(path: Path) -> Iterator[None]:
    """Let one process at a time build a cache file; without effect where locking is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("a")
    except OSError:
        yield  # write_arrays will say that the folder is of no use
        return
    with file:
        if fcntl is not None:
            try:
                # Not flock: forked children would inherit it, and one that outlives a killed parent
                # would keep everybody else waiting for ever.
                fcntl.lockf(file, fcntl.LOCK_EX)
            except OSError as error:
                logger.debug("%s cannot be locked: %s", file.name, error)
        yield


def read_arrays(
    path: Path,
    signature: str,
    convert: Callable[[Mapping[str, npt.NDArray[Any]]], Content],
    warn: bool,
) -> Content | None:
    """Read a cache file.

    Args:
        path: the file.
        signature: what it must have been written with.
        convert: makes something of its arrays; it raises ValueError where they do not fit together.
        warn: say so when the file is damaged.

    Returns:
        The converted content; None if the file is missing, outdated or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["signature"]) != signature:
                return None
            return convert(arrays)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        if warn:
            logger.warning("Ignoring the cache file %s, which cannot be read: %s", path, e)
        return None


def write_arrays(path: Path, signature: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a cache file whole or not at all; a failure is only logged."""
    contents: dict[str, Any] = {"signature": np.array(signature), **arrays}
    try:
        with atomic_write(path) as file:
            np.savez(file, **contents)
    except InputError as error:
        logger.warning(
            "Nothing can be cached in %s (%s), so that every start reads all annotations again; "
            "set %s to a folder that can be written",
            path.parent,
            error,
            CACHE_VARIABLE,
        )


def pack_names(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Put file names into one array; the inverse of :func:`unpack_names`."""
    text = "".join(f"{name}\0" for name in names)
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def unpack_names(packed: npt.NDArray[Any]) -> list[str]:
    """Get the file names back that :func:`pack_names` joined."""
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
