"""Locks between processes, held on files."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cityscapes_maskrcnn.utils.errors import InputError


class LockTimeoutError(Exception):
    """Another process held the lock for the whole time."""


def acquire_lock(path: Path, *, timeout: float | None = None, inheritable: bool = False) -> int:
    """Lock a file; the lock lasts until the returned descriptor is closed or the process ends.

    Where the file system knows no locks, nothing is locked.

    Args:
        path: the lock file, created with its folder when missing. It stays when the lock ends.
        timeout: seconds to wait for another process; None: as long as it takes.
        inheritable: child processes that are given the descriptor hold the lock too, so that it
            outlives this process as long as they run. Otherwise forked workers do not hold it: one
            that outlives a killed parent would keep everybody else waiting.

    Returns:
        The open file descriptor.

    Raises:
        InputError: the lock file cannot be opened.
        LockTimeoutError: another process held the lock until the timeout.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    # flock belongs to the open file, which children inherit; lockf to the process alone.
    lock = fcntl.flock if inheritable else fcntl.lockf
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return descriptor
            if deadline is not None and time.monotonic() > deadline:
                os.close(descriptor)
                raise LockTimeoutError(str(path)) from error
            time.sleep(0.2)


@contextmanager
def file_lock(
    path: Path, *, timeout: float | None = None, inheritable: bool = False
) -> Iterator[int]:
    """Hold :func:`acquire_lock` for the time of a ``with`` block; yields the descriptor."""
    descriptor = acquire_lock(path, timeout=timeout, inheritable=inheritable)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
