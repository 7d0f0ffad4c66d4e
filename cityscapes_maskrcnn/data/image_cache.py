"""Decoded images as files: safe to delete, to share and to interrupt.

A file holds the pixels of one image behind a header of :data:`_HEADER_BYTES`, uncompressed, so that
reading it is mapping it into memory. All processes that map a file share its memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import stat
import struct
import time
import weakref
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.cache import CACHE_VARIABLE, cache_folder, file_stamp
from cityscapes_maskrcnn.data.images import read_image, read_image_size
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.utils.text import printable

Pixels = npt.NDArray[np.uint8]

# Magic, height, width, CRC-32 of both and the pixels, SHA-256 of the image file's stamp.
_HEADER: Final = struct.Struct("<8sIII32s")
_HEADER_BYTES: Final = 64  # the pixels are aligned
_MAGIC: Final = b"pixels 2"
_SHARED_MEMORY: Final = Path("/dev/shm")
_ABANDONED_SECONDS: Final = 3600.0

logger = logging.getLogger(__name__)


class ImageCache:
    """Reads every image once; afterwards its pixels come from a file.

    May be sent to other processes. Any number of them, of any number of runs, may share the files:
    two that decode the same image at the same time write the same. A file of an image that has
    changed since is written anew; so is a damaged one, with a warning.

    Args:
        place: ``"disk"``: in the folder of :func:`.cache.cache_file`, where files stay. ``"ram"``:
            in shared memory, until the last process that has built such a cache ends. What a
            killed one leaves there the next one uses, and removes.
        image_format: ``"BGR"`` or ``"RGB"``, see :func:`.images.read_image`.

    Raises:
        InputError: there is no shared memory, or its folder is somebody else's.
    """

    def __init__(self, place: Literal["disk", "ram"], image_format: str) -> None:
        self._place = place
        self._image_format = image_format
        if place == "ram":
            home = _private_folder()
            self._folder = home / "images"
            weakref.finalize(self, _leave, self._folder, _shared_lock(home / "lock"))
        else:
            self._folder = cache_folder() / "images"
        # Files whose checksum was compared in this process.
        self._checked: set[str] = set()
        self._warned = False

    def check_space(self, images: Iterable[tuple[str, int | None, int | None]]) -> None:
        """Log how much room the cache takes, if something is still to be written.

        Args:
            images: path, height and width of every image; without a size its header is read.

        Raises:
            InputError: the cache does not fit.
        """
        self._remove_abandoned()
        total = missing = count = 0
        for path, height, width in images:
            if height is None or width is None:
                height, width = read_image_size(path)
            size = _HEADER_BYTES + 3 * height * width
            total += size
            count += 1
            with suppress(OSError):
                if self._file(path).stat().st_size == size:
                    continue
            missing += size
        existing = next(each for each in (self._folder, *self._folder.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        if self._place == "ram":
            free = min(free, _available_memory())
        if missing > free:
            raise InputError(
                f"INPUT.CACHE {self._place}: {count} decoded images take {total / 1e9:.1f} GB, of "
                f"which {missing / 1e9:.1f} GB are still to be written to {self._folder}, where "
                f"{free / 1e9:.1f} GB are free; {self._advice()}"
            )
        if missing:
            logger.info(
                "INPUT.CACHE %s: %d decoded images take %.1f GB in %s, of which %.1f GB will be "
                "written as they are first read; %.1f GB are free",
                self._place,
                count,
                total / 1e9,
                self._folder,
                missing / 1e9,
                free / 1e9,
            )

    def read(self, path: str) -> Pixels:
        """Read an image, from the cache if it is there.

        Returns:
            The same as :func:`.images.read_image`; writing into it does not change the cache.

        Raises:
            InputError: see :func:`.images.read_image`.
        """
        file = self._file(path)
        try:
            digest = hashlib.sha256(file_stamp(path).encode()).digest()
        except OSError:
            return read_image(path, self._image_format)  # which says what is wrong
        pixels = self._map(file, digest)
        if pixels is None:
            pixels = read_image(path, self._image_format)
            self._write(file, digest, pixels)
        return pixels

    def _file(self, path: str) -> Path:
        absolute = str(Path(path).absolute()).encode("utf-8", "surrogateescape")
        name = hashlib.sha256(absolute).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}-{self._image_format}.pixels"

    def _map(self, file: Path, digest: bytes) -> Pixels | None:
        """Map the pixels into memory; None if they are missing, outdated or damaged."""
        try:
            with file.open("rb") as opened:
                header = opened.read(_HEADER.size)
                if len(header) < _HEADER.size:
                    raise ValueError("its size is wrong")
                magic, height, width, checksum, known = _HEADER.unpack(header)
                if magic != _MAGIC or known != digest:
                    return None
                if os.fstat(opened.fileno()).st_size != _HEADER_BYTES + 3 * height * width:
                    raise ValueError("its size is wrong")
                # Mode c: torch takes no arrays that must not be written to.
                mapped = np.memmap(opened, np.uint8, "c", _HEADER_BYTES, (height, width, 3))
            pixels = mapped.view(np.ndarray)
            if str(file) not in self._checked:
                if _checksum(pixels) != checksum:
                    raise ValueError("its checksum is wrong")
                self._checked.add(str(file))
        except OSError:
            return None  # it is written anew, or the one warning of that says what is wrong
        except ValueError as error:
            # Where files cannot be written anew, each would be found damaged again and again.
            if not self._warned:
                problem = printable(f"{file}, which cannot be read: {error}")
                logger.warning("Decoding an image again instead of using the cache: %s", problem)
            return None
        return pixels

    def _write(self, file: Path, digest: bytes, pixels: Pixels) -> None:
        height, width = pixels.shape[:2]
        header = _HEADER.pack(_MAGIC, height, width, _checksum(pixels), digest)
        try:
            with atomic_write(file) as opened:
                opened.write(header.ljust(_HEADER_BYTES, b"\0"))
                opened.write(pixels.data)
        except InputError as error:
            if not self._warned:
                logger.warning(
                    "Decoded images cannot be cached (%s), so they are decoded again; %s",
                    printable(error),
                    self._advice(),
                )
            self._warned = True

    def _advice(self) -> str:
        if self._place == "ram":
            return "set INPUT.CACHE to disk or none"
        return f"make room, set {CACHE_VARIABLE} to another folder, or INPUT.CACHE to none"

    def _remove_abandoned(self) -> None:
        """Remove what killed processes left of files that they were writing."""
        for path in self._folder.glob("*/.*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()


def _checksum(pixels: Pixels) -> int:
    """Compute the checksum of an image's size and pixels."""
    return zlib.crc32(pixels.data, zlib.crc32(struct.pack("<II", *pixels.shape[:2])))


def _private_folder() -> Path:
    """Create this user's folder in shared memory."""
    folder = _SHARED_MEMORY / f"cityscapes_maskrcnn-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise InputError(f"INPUT.CACHE ram: {folder}: {error.strerror}; set it to disk") from error
    # Everybody may write to the folder above it.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise InputError(f"INPUT.CACHE ram: {folder} is not this user's; set it to disk")
    return folder


def _shared_lock(path: Path) -> int:
    """Wait until nobody removes the files, and keep everybody from it until the process ends."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _leave(folder: Path, descriptor: int) -> None:
    """Give up a lock of :func:`_shared_lock`; the last one removes the files."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _available_memory() -> int:
    """Bytes of memory that can be taken, of the machine and of this container."""
    meminfo = Path("/proc/meminfo").read_text().split()
    available = 1024 * int(meminfo[meminfo.index("MemAvailable:") + 1])
    with suppress(OSError, ValueError):  # no limit: "max"
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return available
