"""Cache files for data that are slow to read: safe to delete, to share and to interrupt.

A cache file holds one record for each of many source files, a record being a few named arrays
whose lengths differ from file to file. It is a checksum and, behind it, a safetensors file, whose
reader executes no code and believes no length that the file does not have.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, read_file, remove_temporary_files
from cityscapes_maskrcnn.utils.locks import file_lock
from cityscapes_maskrcnn.utils.parallel import map_in_parallel
from cityscapes_maskrcnn.utils.text import printable

CACHE_VARIABLE: Final = "CITYSCAPES_MASKRCNN_CACHE"
_FORMAT: Final = 4
_DIGEST_SIZE: Final = 32

logger = logging.getLogger(__name__)

Record = Mapping[str, npt.NDArray[Any]]


class Source(NamedTuple):
    """One file that a record is read from.

    Attributes:
        name: path below the split's folder, for instance ``aachen/aachen_..._polygons.json``.
        stamp: changes with the file, for instance its size and time.
    """

    name: str
    stamp: str


def file_stamp(path: str | os.PathLike[str]) -> str:
    """Size and time of a file, for :attr:`Source.stamp`.

    Raises:
        OSError: it is missing or may not be looked at.
    """
    status = Path(path).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


# Stamp and record of every source that a cache file holds, by name.
_Entries = dict[str, tuple[str, Record]]


def cache_folder() -> Path:
    """Return the folder of all cache files, which need not exist.

    It is ``$CITYSCAPES_MASKRCNN_CACHE``, which several users may share, if set, else
    :func:`own_cache_folder`.
    """
    shared = os.environ.get(CACHE_VARIABLE)
    return Path(shared).expanduser() if shared else own_cache_folder()


def own_cache_folder() -> Path:
    """Return the folder of caches that hold code, which is nobody's to write but the user's own.

    It is ``cityscapes_maskrcnn`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, and need not exist.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "cityscapes_maskrcnn"


def cache_file(folder: str | os.PathLike[str], kind: str) -> Path:
    """Return the path of a cache file in :func:`cache_folder`; it need not exist.

    Args:
        folder: what is read, for instance ``gtFine/train``.
        kind: of records, for instance ``instances``.
    """
    folder = Path(folder).absolute()
    digest = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_folder() / f"{'-'.join(folder.parts[1:][-2:])}-{kind}-{digest}.cache"


def load_records(
    path: Path,
    *,
    folder: str | os.PathLike[str],
    sources: Sequence[Source],
    read: Callable[[str], Record],
    template: Record,
    signature: str,
    description: str,
    num_workers: int | None = None,
) -> list[Record]:
    """Read files through a cache file.

    Any number of processes may call this at once: the first one reads, the others wait for it. A
    cache file that cannot be read is built anew. If it cannot be written, a warning says so and
    every call reads again.

    Args:
        path: the cache file, see :func:`cache_file`.
        folder: what the names of the sources are relative to.
        sources: the files; those that did not change since the cache file was written are not read.
        read: reads the file at a path; a module-level function.
        template: a record of empty arrays; their names, types and shapes are those of all records.
        signature: names what else a record depends on; another signature empties the cache.
        description: shown before the progress bar.
        num_workers: processes for reading; default one per core.

    Returns:
        The records of ``sources``, in their order.
    """
    layout = {name: f"{empty.dtype}{empty.shape[1:]}" for name, empty in template.items()}
    signature = f"{_FORMAT} {signature} {layout}"
    known = _read(path, signature, template, warn=False)
    if _changed(sources, known):
        with ExitStack() as stack:
            with suppress(InputError):  # _write warns of a folder that cannot be written
                stack.enter_context(file_lock(path.with_suffix(".lock")))
                remove_temporary_files(path.parent, f".{glob.escape(path.name)}.*.tmp")
            known = _read(path, signature, template, warn=True)
            changed = _changed(sources, known)
            if changed:
                files = [str(Path(folder) / source.name) for source in changed]
                records = map_in_parallel(read, files, description, num_workers)
                # Records of other files stay: those of another part of the split are among them.
                for source, record in zip(changed, records, strict=True):
                    known[source.name] = source.stamp, record
                _write(path, signature, template, known)
    return [known[source.name][1] for source in sources]


def _changed(sources: Sequence[Source], known: _Entries) -> list[Source]:
    """The sources that the cache does not hold as they are now."""
    return [
        source
        for source in sources
        if source.name not in known or known[source.name][0] != source.stamp
    ]


def _read(path: Path, signature: str, template: Record, *, warn: bool) -> _Entries:
    """Entries of a cache file by name; none if it is missing, outdated or damaged."""
    if not path.is_file():
        return {}
    try:
        content = read_file(path)
        if _digest(content[_DIGEST_SIZE:]) != content[:_DIGEST_SIZE]:
            raise ValueError("its checksum is wrong")
        arrays = safetensors.numpy.load(content[_DIGEST_SIZE:])
        index = json.loads(arrays["index"].tobytes())
        if index["signature"] != signature:
            return {}
        columns = []
        for (name, empty), lengths in zip(template.items(), index["lengths"], strict=True):
            array, ends = arrays[name], [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
            is_whole = array.shape == (ends[-1], *empty.shape[1:]) and min(lengths, default=0) >= 0
            if array.dtype != empty.dtype or not is_whole:
                raise ValueError(f"{name} does not fit to its lengths")
            columns.append([array[start:stop] for start, stop in pairwise(ends)])
        records = [dict(zip(template, row, strict=True)) for row in zip(*columns, strict=True)]
        return dict(zip(index["names"], zip(index["stamps"], records, strict=True), strict=True))
    except Exception as error:  # damage can make the readers raise nearly anything
        if warn:
            problem = printable(f"{path}, which cannot be read: {error}")
            logger.warning("Ignoring the cache file %s", problem)
        return {}


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _write(path: Path, signature: str, template: Record, known: _Entries) -> None:
    """Write a cache file; a failure is only logged."""
    stamps, records = zip(*known.values(), strict=True)
    index = {
        "signature": signature,
        "names": list(known),
        "stamps": stamps,
        "lengths": [[len(record[name]) for record in records] for name in template],
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([empty, *(record[name] for record in records)])
        for name, empty in template.items()
    }
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    content = safetensors.numpy.save(arrays)
    try:
        with atomic_write(path) as file:
            file.write(_digest(content))
            file.write(content)
    except InputError as error:
        logger.warning(
            "Nothing can be cached (%s), so that every start reads all annotations again; set %s "
            "to a folder that can be written",
            printable(error),
            CACHE_VARIABLE,
        )
