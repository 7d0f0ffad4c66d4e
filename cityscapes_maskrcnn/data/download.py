"""Fetch the official archives with the official downloader, and unpack them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from cityscapes_maskrcnn.utils.errors import InputError

FINE_PACKAGES: Final = ("gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip")
COARSE_PACKAGES: Final = ("gtCoarse.zip", "leftImg8bit_trainextra.zip")


def download(folder: Path, packages: Sequence[str]) -> None:
    """Call the downloader of cityscapesscripts, which asks for name and password.

    Args:
        folder: where the archives go. Complete ones are kept, partial ones are continued.
        packages: names of archives.

    Raises:
        InputError: the downloader failed; it printed the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in packages if not zipfile.is_zipfile(folder / name)]
    if not missing:
        return
    # Not `python -m`: the downloader names the file with its stored password after its module.
    # Without a traceback: the last line says what the matter is.
    program = (
        "import sys; sys.tracebacklimit = 0; "
        "from cityscapesscripts.download.downloader import main; main()"
    )
    options = ["--destination_path", str(folder), "--resume", *missing]
    if subprocess.run([sys.executable, "-c", program, *options], check=False).returncode:
        raise InputError(
            f"could not download {', '.join(missing)} (reason above); an account from "
            "https://www.cityscapes-dataset.com/register/ is needed"
        )


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a zip file; files that exist with the right size are left alone.

    Args:
        archive: the zip file.
        folder: where its content goes; names that lead out of it are brought back into it.

    Returns:
        Number of files written.

    Raises:
        InputError: the archive is damaged, or the folder cannot be written.
    """
    written = 0
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            for member in tqdm(members, f"Unpacking {archive.name}", delay=1.0):
                target = folder / member.filename
                if not target.exists() or target.stat().st_size != member.file_size:
                    content.extract(member, folder)
                    written += 1
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive}: damaged ({error}); delete it and download again") from error
    except OSError as error:
        place = error.filename or folder
        raise InputError(f"{place}: cannot be unpacked: {error.strerror}") from error
    return written
