"""Which images to draw, what is known about them, and where the pictures go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.annotation_files import annotation_dicts, read_instances
from cityscapes_maskrcnn.data.annotations import IMAGE_SUFFIX
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
# Label images lie in the same trees as photographs, and earlier pictures may too.
_NOT_PHOTOGRAPHS = (
    "_labelIds.png",
    "_labelTrainIds.png",
    "_instanceIds.png",
    "_color.png",
    "_prediction.png",
    "_ground_truth.png",
)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Find the images that files, folders and glob patterns stand for.

    Args:
        inputs: files are taken as they are; folders are searched with everything below them;
            everything else is a pattern (``**`` crosses folders).

    Returns:
        The images, each once, in the order of ``inputs``, each folder and pattern sorted.

    Raises:
        InputError: something in ``inputs`` stands for no image.
    """
    images: dict[Path, None] = {}
    for given in inputs:
        if Path(given).is_file():
            found = [Path(given)]
        elif Path(given).is_dir():
            found = _photographs(Path(given).rglob("*"))
            if not found:
                raise InputError(f"--input {given}: no image in this folder or below it")
        else:
            matches = [Path(match) for match in glob.glob(given, recursive=True)]  # noqa: PTH207
            found = _photographs(matches)
            if not found:
                raise InputError(
                    f"--input {given}: no such file or folder, and no image matches it as a "
                    "pattern (KEY VALUE pairs must not follow --input directly)"
                )
        images.update(dict.fromkeys(found))
    return list(images)


def ground_truth_of(image_file: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the annotation of an image that lies in a Cityscapes tree.

    Args:
        image_file: such as ``.../leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png``.

    Returns:
        A record in Detectron2's format (``height``, ``width``, ``annotations``) read from the
        partner below ``gtFine``; None where the image lies elsewhere, has no partner, or is of the
        test split, whose official annotation files hold no objects.

    Raises:
        InputError: the annotation is damaged.
    """
    image = Path(image_file).absolute()
    if len(image.parents) < 4 or image.parents[2].name != "leftImg8bit":
        return None
    city, split, tree = image.parent.name, image.parents[1].name, image.parents[3]
    name = image.name.removesuffix(IMAGE_SUFFIX) + "_gtFine_polygons.json"
    annotation_file = tree / "gtFine" / split / city / name
    if split == "test" or not annotation_file.is_file():
        return None
    record = read_instances(str(annotation_file))
    height, width = record["size"].tolist()
    return {"height": height, "width": width, "annotations": annotation_dicts(record)}


def picture_files(images: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """Name the picture of every image.

    Args:
        images: any files; their folders do not matter.
        folder: where the pictures shall be.
        suffix: what tells them from photographs, for instance ``"_prediction"``.

    Returns:
        ``folder/NAME SUFFIX.png``, NAME being the image's without ``_leftImg8bit`` and extension;
        a name that was there before gets ``_2``, ``_3`` and so on.
    """
    taken: set[str] = set()
    files = []
    for image in images:
        name = candidate = image.stem.removesuffix("_leftImg8bit")
        count = 1
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        taken.add(candidate)
        files.append(folder / f"{candidate}{suffix}.png")
    return files


def make_folder(folder: str) -> Path:
    """Create a folder for pictures, or use the one that is there.

    Raises:
        InputError: it cannot be created or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made a folder: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"--output {folder}: no permission to write there")
    return path


def write_picture(path: Path, picture_rgb: npt.NDArray[np.uint8]) -> None:
    """Write a PNG file that appears under its name only when it is complete.

    Args:
        path: the file.
        picture_rgb: shape (H, W, 3), uint8.

    Raises:
        InputError: it cannot be written.
    """
    _, data = cv2.imencode(".png", cv2.cvtColor(picture_rgb, cv2.COLOR_RGB2BGR))
    try:
        with atomic_write(path) as file:
            file.write(data.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _photographs(candidates: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in candidates
        if path.suffix.lower() in _EXTENSIONS
        and not path.name.startswith(".")
        and not path.name.endswith(_NOT_PHOTOGRAPHS)
        and path.is_file()
    )
