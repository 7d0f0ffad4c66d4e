"""Result files in a folder or a zip archive, which is read without unpacking it.

Nothing is unpacked, no path leads outside, and no file is read that is larger than it may be.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Final

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import check_zip_entries, open_file, read_file

LARGEST_TEXT: Final = 2**20  # bytes; a line has about 60, so 17,000 predictions
# The test split's 1,525 images with 130 masks each.
_MAX_FILES: Final = 200_000
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ResultSource:
    """The files below a folder or in a zip archive, by relative path with ``/``; close it.

    Args:
        path: the folder or the zip archive.

    Raises:
        InputError: there is neither, or the archive is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip = None
        if self.path.is_dir():
            return
        if not self.path.is_file():
            problem = "neither a folder nor a file" if self.path.exists() else "does not exist"
            raise InputError(f"results {self.path}: {problem}; give a folder or a zip archive")
        with open_file(self.path) as file:
            check_zip_entries(file, str(self.path), _MAX_FILES)
        try:
            self._zip = zipfile.ZipFile(self.path)
        # For a damaged directory of the archive zipfile has half a dozen kinds of errors.
        except Exception as error:
            raise InputError(f"{self.path}: no zip archive, or a damaged one: {error}") from error

    def __reduce__(self) -> tuple[type[ResultSource], tuple[Path]]:
        """Other processes open the archive themselves."""
        return ResultSource, (self.path,)

    def close(self) -> None:
        """Close the archive, if it is one."""
        if self._zip is not None:
            self._zip.close()

    @cached_property
    def names(self) -> list[str]:
        """Paths of all files, each once; links to folders are not followed."""
        if self._zip is not None:
            return list(dict.fromkeys(entry.filename for entry in self._entries))
        return sorted(
            Path(root, name).relative_to(self.path).as_posix()
            for root, _, files in os.walk(self.path)
            for name in files
        )

    @cached_property
    def _entries(self) -> list[zipfile.ZipInfo]:
        """All but folders. ``ZipInfo.is_dir`` fails for an entry without a name."""
        entries = [] if self._zip is None else self._zip.infolist()
        return [entry for entry in entries if not entry.filename.endswith("/")]

    def problems(self) -> list[tuple[str, str, str]]:
        """List what is wrong with the archive itself; nothing for a folder.

        Returns:
            Kind (of :data:`.submission_check.KINDS`), path and detail.
        """
        if self._zip is None:
            return []
        found = []
        if sum(entry.compress_size for entry in self._entries) > self.path.stat().st_size:
            found.append(("damaged archive", str(self.path), "its entries overlap"))
        counts = Counter(entry.filename for entry in self._entries)
        found += [
            ("doubled entry", n, f"{count} times") for n, count in counts.items() if count > 1
        ]
        for entry in self._entries:
            name = entry.filename
            parts = name.split("/")
            if not name:
                found.append(("unsafe path in the archive", "''", "an entry without a name"))
            elif "\\" in name or ":" in name or not {"", ".", ".."}.isdisjoint(parts):
                found.append(("unsafe path in the archive", name, ""))
            elif stat.S_ISLNK(entry.external_attr >> 16):
                found.append(("unsafe path in the archive", name, "a link"))
        return found

    def read(self, name: str, largest: int) -> bytes:
        """Read a file.

        Args:
            name: its path.
            largest: bytes that it may have.

        Raises:
            InputError: it is missing, no regular file (a pipe would wait for ever), larger,
                encrypted or damaged. The message begins with ``path/name: ``.
        """
        file = self.path / name
        if self._zip is None:
            return read_file(file, largest)
        try:
            entry = self._zip.getinfo(name)
            if entry.file_size > largest:
                raise InputError(
                    f"{file}: {entry.file_size} bytes; files of this kind have at most {largest}"
                )
            if entry.compress_type not in _METHODS:
                raise InputError(f"{file}: compressed in another way than deflate")
            return self._zip.read(entry)
        except KeyError:
            raise InputError(f"{file}: no such file") from None
        # Encrypted, another checksum, cut off.
        except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise InputError(f"{file}: cannot be read: {error}") from error


def largest_mask(height: int, width: int) -> int:
    """Bytes that a mask's file may have: RGBA without compression, and some more."""
    return 4 * height * width + 2**16
