"""Taking an output folder for this process alone, before anything is written into it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from cityscapes_maskrcnn.utils.errors import InputError

_LOCK_FILE = ".train_net.lock"
# What a log and a config need at least: on a full disk the run ends before it has begun.
_PROBE_BYTES = 1 << 16


def take_output_folder(folder: str | os.PathLike[str], patience: float = 10.0) -> None:
    """Make a folder and lock it for as long as this process lives.

    Two trainings in one folder would write each other's checkpoints. The main process of a run
    calls this. Where the file system knows no locks, nothing is locked.

    Args:
        folder: ``OUTPUT_DIR``.
        patience: seconds to wait for another process, which may be about to end.

    Raises:
        InputError: another process trains there, or the folder cannot be written.
    """
    if not os.fspath(folder):
        raise InputError("OUTPUT_DIR is empty: name a folder")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"OUTPUT_DIR {folder}: a file where a folder is needed")
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o666)
        # The descriptor stays open: closing it would end the lock.
        _lock(descriptor, folder, patience)
        os.pwrite(descriptor, bytes(_PROBE_BYTES), 0)
        os.fsync(descriptor)
        os.ftruncate(descriptor, 0)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {folder}: cannot be written: {error.strerror}") from error


def _lock(descriptor: int, folder: str | os.PathLike[str], patience: float) -> None:
    last = time.monotonic() + patience
    while True:
        try:
            # Not flock, which loading workers would inherit and hold on to after a kill.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
            if time.monotonic() > last:
                raise InputError(
                    f"OUTPUT_DIR {folder}: another training is at work there; wait for its end, or "
                    "take another folder"
                ) from error
            time.sleep(0.2)
