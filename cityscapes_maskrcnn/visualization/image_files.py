"""Find the image files to draw, and name the pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.images import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.utils.text import counted

# Label images lie in the same trees as photographs, and earlier pictures may too.
_NOT_PHOTOGRAPHS = (
    "_labelIds.png",
    "_labelTrainIds.png",
    "_instanceIds.png",
    "_color.png",
    "_prediction.png",
    "_overlay.png",
    "_ground_truth.png",
    "_augmented.png",
)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Find the images that files, folders and glob patterns name.

    Args:
        inputs: files are taken as they are; folders are searched recursively; everything else is a
            pattern (``**`` crosses folders).

    Returns:
        The images, each once, in the order of ``inputs``, each folder and pattern sorted.

    Raises:
        InputError: one of ``inputs`` names no image, or a file of a type that is not read.
    """
    images: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_file():
            if path.suffix.lower() in UNREAD_EXTENSIONS:
                raise InputError(
                    f"--input {given}: images of this type are not read; convert it to PNG, JPEG "
                    "or WebP"
                )
            images[path] = None
            continue
        found = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(given, recursive=True))  # noqa: PTH207
        photographs = sorted(filter(_is_photograph, found))
        if not photographs:
            raise InputError(
                f"--input {given}: no such file, and no image (PNG, JPEG or WebP) in or below a "
                "folder of this name or matching it as a pattern"
            )
        images.update(dict.fromkeys(photographs))
    return list(images)


def picture_files(images: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """Name the picture of every image.

    Args:
        images: any files; their folders do not matter.
        folder: of the pictures.
        suffix: what distinguishes them from photographs, for instance ``"_prediction"``.

    Returns:
        ``folder/NAME SUFFIX.png``, NAME being the image's without ``_leftImg8bit`` and extension;
        a name that is taken gets ``_2``, ``_3`` and so on.
    """
    name_of = PictureNames(suffix)
    return [folder / name_of(image) for image in images]


class PictureNames:
    """Names pictures, one after the other; see :func:`picture_files`.

    It remembers every name, to give none twice: not for the frames of a stream without end.

    Args:
        suffix: what distinguishes them from photographs.
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def __call__(self, image: Path) -> str:
        """Name the picture of the next image."""
        stem = name = image.stem.removesuffix("_leftImg8bit")
        number = self._numbers.get(stem, 1)
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        self._numbers[stem] = number
        return f"{name}{self._suffix}.png"


def place_of_pictures(number: int, folder: str | os.PathLike[str]) -> str:
    """``1 picture is in folder``, ``2 pictures are in folder``."""
    return f"{counted(number, 'picture')} {'is' if number == 1 else 'are'} in {folder}"


def make_folder(path: Path) -> Path:
    """Create a folder for pictures unless it exists.

    Args:
        path: from :func:`.tool.folder`, which refuses an empty name.

    Raises:
        InputError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {path}: cannot be created: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"--output {path}: no permission to write there")
    return path


def write_picture(path: Path, picture_rgb: npt.NDArray[np.uint8]) -> None:
    """Write a PNG file that appears under its name only when it is complete.

    Args:
        path: the file.
        picture_rgb: shape (H, W, 3), uint8; or (H, W, 4) with opacity, not premultiplied.

    Raises:
        InputError: it cannot be written.
    """
    order = cv2.COLOR_RGB2BGR if picture_rgb.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    write_bgr_picture(path, cv2.cvtColor(picture_rgb, order))


def write_bgr_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Do what :func:`write_picture` does, with a picture in OpenCV's order BGR or BGRA."""
    _, data = cv2.imencode(".png", picture)
    with atomic_write(path) as file:
        file.write(data.tobytes())


def _is_photograph(path: Path) -> bool:
    return (
        path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and not path.name.endswith(_NOT_PHOTOGRAPHS)
        and path.is_file()
    )
