"""Official result files of instance segmentation, in and out.

A result folder holds, anywhere below it, one ``NAME*.txt`` per image, NAME being that of its file
without ``_leftImg8bit.png``.
Each line is ``relative/path.png labelID confidence``: a mask of the image's size whose non-zero
pixels are the instance (the path is relative to the text file and stays inside the folder), a
regular label id and a number. An image in which nothing was found has an empty text file.

Source: the head of ``cityscapesscripts/evaluation/evalInstanceLevelSemanticLabeling.py``.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from kornia_rs import io as kornia_io
from PIL import Image, UnidentifiedImageError

from cityscapes_maskrcnn.data.labels import (
    CONTIGUOUS_TO_ID,
    ID_TO_CONTIGUOUS,
    LABELS,
    THING_CLASSES,
)
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, check_distinct, image_name
from cityscapes_maskrcnn.evaluation.instance_ap import (
    GroundTruth,
    ImageMatches,
    Prediction,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

INSTANCE_IDS_SUFFIX: Final = "_gtFine_instanceIds.png"
Result = TypeVar("Result")
_KNOWN_LABEL_IDS: Final = frozenset(label.id for label in LABELS)
# Two bytes in the header of a PNG file: bits a channel, and the kind of pixels (0: grey).
_DEPTH_AND_COLOUR: Final = slice(24, 26)
_GREY_8: Final = b"\x08\x00"
_GREY_16: Final = b"\x10\x00"


def read_instance_ids(file: str | os.PathLike[str]) -> npt.NDArray[np.uint16]:
    """Read a ``*_gtFine_instanceIds.png``.

    Returns:
        Shape (height, width), dtype uint16.

    Raises:
        InputError: the file is missing, unreadable or no image of instance ids.
    """
    with _open_image(Path(file)) as (data, image):
        decode = {
            _GREY_8: kornia_io.decode_image_png_u8,
            _GREY_16: kornia_io.decode_image_png_u16,
        }.get(data[_DEPTH_AND_COLOUR])
        if image.format != "PNG" or decode is None:
            raise InputError(f"{file}: not an image of 16 bit instance ids (mode {image.mode})")
        ids = decode(data, (image.height, image.width), "mono")[..., 0]
    return ids.astype(np.uint16, copy=False)


def read_mask(file: Path, height: int, width: int) -> RunMask:
    """Read a mask: the pixels that are not black.

    Args:
        file: an image of any kind.
        height: expected, in pixels.
        width: expected, in pixels.

    Raises:
        InputError: the file is unreadable or of another size.
    """
    with _open_image(file) as (data, image):
        if image.size != (width, height):
            raise InputError(
                f"{file}: the mask is {image.height} x {image.width} (height x width), its image"
                f" {height} x {width}"
            )
        if image.format == "PNG" and data[_DEPTH_AND_COLOUR] == _GREY_8:
            pixels = kornia_io.decode_image_png_u8(data, (height, width), "mono")[..., 0]
        else:
            # As the official code does: an index into a palette is no brightness.
            pixels = np.asarray(image.convert("L"))
    return mask_from_bitmap(pixels)


@contextmanager
def _open_image(file: Path) -> Iterator[tuple[bytes, Image.Image]]:
    """Read a file, and its header as an image; decoding errors of the block become InputErrors.

    Pillow refuses absurd sizes. kornia_rs decodes a grey PNG in a fifth of its time.
    """
    try:
        data = file.read_bytes()
        with Image.open(BytesIO(data)) as image:
            yield data, image
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"cannot read {file} as an image: it is none; expected a PNG") from error
    # A broken PNG is a SyntaxError for Pillow and a plain Exception for kornia_rs.
    except Exception as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error


def ground_truth_file(
    gt_dir: str | os.PathLike[str],
    image_file: str | os.PathLike[str],
    image_suffix: str = IMAGE_SUFFIX,
    kind: str = "gtFine",
) -> Path:
    """Find the instance ids that belong to an image.

    Args:
        gt_dir: a split's folder of fine annotations, such as ``gtFine/val``, cities inside.
        image_file: the image, in its city's folder: ``.../ulm/ulm_000003_000019_leftImg8bit.png``.
        image_suffix: the end of its name, see :func:`.tree.image_name`.
        kind: stands before ``_instanceIds.png``.

    Returns:
        ``gt_dir/ulm/ulm_000003_000019_gtFine_instanceIds.png``; whether it exists is not checked.

    Raises:
        InputError: the image's name ends otherwise.
    """
    city = Path(image_file).parent.name
    return Path(gt_dir) / city / f"{image_name(image_file, image_suffix)}_{kind}_instanceIds.png"


def find_ground_truth(gt_dir: str | os.PathLike[str]) -> list[Path]:
    """List the instance id files of a split's folder, sorted.

    Raises:
        InputError: the folder is missing or holds none.
    """
    folder = Path(gt_dir)
    if not folder.is_dir():
        raise InputError(f"ground truth folder {folder} does not exist")
    files = sorted(folder.glob(f"[!.]*/[!.]*{INSTANCE_IDS_SUFFIX}"))
    if not files:
        raise InputError(
            f"{folder} holds no <city>/*{INSTANCE_IDS_SUFFIX}: give a split's folder, such as"
            " gtFine/val"
        )
    return files


def assign_text_files(
    texts: Iterable[str], names: Iterable[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Assign text files to images.

    A text file belongs to the image with the longest name that its own begins with, followed by no
    further letter or digit: ``a_night_pred.txt`` is of ``a_night``, and of ``a`` only where there
    is no image ``a_night``. A space in an image's name may be ``_`` in the text file's.

    Args:
        texts: paths with ``/`` of text files.
        names: of the images, see :func:`.tree.image_name`.

    Returns:
        The text files of each image, by name, and those of none, in the order of ``texts``.

    Raises:
        InputError: two images cannot be told apart by the names of text files.
    """
    by_prefix: dict[str, str] = {}
    for name in names:
        for prefix in {name, result_stem(name)}:
            if prefix in by_prefix:
                raise InputError(
                    f"the images {by_prefix[prefix]} and {name} have the same result files, "
                    f"{prefix}*.txt; rename one"
                )
            by_prefix[prefix] = name
    own: dict[str, list[str]] = {name: [] for name in by_prefix.values()}
    others: list[str] = []
    for text in texts:
        stem = posixpath.basename(text).removesuffix(".txt")
        prefixes = (
            stem[:end]
            for end in range(len(stem), 0, -1)
            if not stem[end : end + 1].isalnum() and stem[:end] in by_prefix
        )
        longest = next(prefixes, None)
        (others if longest is None else own[by_prefix[longest]]).append(text)
    return own, others


def find_result_files(results_dir: str | os.PathLike[str], names: Sequence[str]) -> list[Path]:
    """Find the result file of every image.

    Args:
        results_dir: searched with everything below it.
        names: of the images, see :func:`.tree.image_name`.

    Returns:
        One text file per name, in the same order. Files of other images are not looked at.

    Raises:
        InputError: the folder is missing; an image has no result file, or more than one.
    """
    folder = Path(results_dir)
    if not folder.is_dir():
        raise InputError(f"results folder {folder} does not exist")
    texts = sorted(
        f"{root}/{name}"
        for root, _, files in os.walk(folder)
        for name in files
        if name.endswith(".txt")
    )
    own, _ = assign_text_files(texts, names)
    for name, matching in own.items():
        if not matching:
            raise InputError(
                f"{folder} holds no result file {name}*.txt: every image needs one, an empty one"
                " where nothing was found"
            )
        if len(matching) > 1:
            raise InputError(
                f"image {name} has more than one result file: {matching[0]} and {matching[1]};"
                " remove one"
            )
    return [Path(own[name][0]) for name in names]


def read_predictions(
    text_file: str | os.PathLike[str],
    results_dir: str | os.PathLike[str],
    height: int,
    width: int,
) -> list[Prediction]:
    """Read and check one image's text file and its masks.

    Args:
        text_file: the image's result file.
        results_dir: the folder no mask may lie outside of.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The predictions of the 8 classes; those of other labels are left out, their masks unread.
        Of a mask file named twice the last line counts, as in the official code.

    Raises:
        InputError: the file cannot be read, a line is wrong (the message has its number), or a
            mask is missing, unreadable or of another size.
    """
    text_file = Path(text_file)
    # Not Path.resolve: a link inside the folder may well point to another disk.
    root = Path(os.path.abspath(results_dir))  # noqa: PTH100
    try:
        with text_file.open(encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {text_file}: {error}") from error
    by_mask = {}
    for number, line in enumerate(lines, start=1):
        try:
            mask_file, label_id, confidence = _parse_line(line, text_file.parent, root)
        except InputError as error:
            raise InputError(f"{text_file}, line {number}: {error}") from error
        by_mask[mask_file] = label_id, confidence
    predictions = []
    for mask_file, (label_id, confidence) in by_mask.items():
        if label_id in ID_TO_CONTIGUOUS:
            if not mask_file.is_file():
                raise InputError(f"{text_file} names the mask {mask_file}, which does not exist")
            mask = read_mask(mask_file, height, width)
            predictions.append(Prediction(mask, ID_TO_CONTIGUOUS[label_id], confidence))
    return predictions


def _parse_line(line: str, folder: Path, root: Path) -> tuple[Path, int, float]:
    """Get mask file (absolute), official label id and confidence."""
    parts = line.split(" ")
    if len(parts) != 3:
        raise InputError(f"expected 'relative/path.png labelID confidence', got {line!r}")
    if Path(parts[0]).is_absolute():
        raise InputError(f"the mask's path {parts[0]} must be relative")
    mask_file = Path(os.path.abspath(folder / parts[0]))  # noqa: PTH100
    if not mask_file.is_relative_to(root):
        raise InputError(f"the mask {parts[0]} is outside of the folder {root}")
    try:
        label, confidence = float(parts[1]), float(parts[2])
    except ValueError:
        raise InputError(f"label id and confidence must be numbers: {line!r}") from None
    if label not in _KNOWN_LABEL_IDS:
        raise InputError(
            f"unknown label id {parts[1]}; use the regular ids of the official labels"
            " (24 is person), not train ids"
        )
    if not math.isfinite(confidence):
        raise InputError(f"the confidence {parts[2]} is not a finite number")
    return mask_file, int(label), confidence


def write_image_results(
    folder: str | os.PathLike[str], name: str, predictions: Sequence[Prediction]
) -> Path:
    """Write one image's predictions in the official form.

    Args:
        folder: where the text file and the masks go, side by side; created when missing.
        name: of the image, see :func:`.tree.image_name`; what is written begins with it.
        predictions: of the image. A confidence is written so that it reads back as the same number.

    Returns:
        The text file. It is written last: it never names a mask that is not there.
    """
    for file_name, content in image_results(name, predictions):
        path = Path(folder) / file_name
        with atomic_write(path) as file:
            file.write(content)
    return path


def image_results(name: str, predictions: Sequence[Prediction]) -> Iterator[tuple[str, bytes]]:
    """Make the files of :func:`write_image_results` one by one, the text file last.

    Yields:
        Name, without folder and spaces, and content of every mask and of the text file.
    """
    stem = result_stem(name)
    lines = []
    for index, prediction in enumerate(predictions):
        png = BytesIO()
        Image.fromarray(prediction.mask.frame() * 255).save(png, format="PNG", compress_level=1)
        mask_name = f"{stem}_{index}_{THING_CLASSES[prediction.category]}.png"
        label_id = CONTIGUOUS_TO_ID[prediction.category]
        lines.append(f"{mask_name} {label_id} {float(prediction.confidence)!r}\n")
        yield mask_name, png.getvalue()
    yield f"{stem}_pred.txt", "".join(lines).encode()


def result_stem(name: str) -> str:
    """Return what the result files of an image begin with: its name without spaces."""
    return name.replace(" ", "_")


def map_result_files(
    function: Callable[[GroundTruth, list[Prediction]], Result],
    results_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    num_workers: int | None = None,
) -> list[Result]:
    """Compare a folder of result files with every image of a split's ground truth.

    Shows a progress bar on stderr.

    Args:
        function: what to do with an image's ground truth and predictions; a module-level function.
        results_dir: the official result files.
        gt_dir: a split's folder, such as ``gtFine/val``.
        num_workers: processes that read and compare; default one per available core.

    Returns:
        The results of ``function``, one per image.

    Raises:
        InputError: see the functions above. That every image has a result file is checked first.
    """
    gt_files = find_ground_truth(gt_dir)
    names = [image_name(file, INSTANCE_IDS_SUFFIX) for file in gt_files]
    check_distinct(names, str(gt_dir))
    text_files = find_result_files(results_dir, names)
    return map_in_parallel(
        partial(_map_files, function, Path(results_dir)),
        list(zip(gt_files, text_files, strict=True)),
        "Matching images",
        num_workers,
    )


def match_result_files(
    results_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    num_workers: int | None = None,
) -> list[ImageMatches]:
    """Match result files with ground truth, for :func:`.instance_ap.average_precision`.

    Arguments and errors are those of :func:`map_result_files`.
    """
    return map_result_files(match_image, results_dir, gt_dir, num_workers)


def _map_files(
    function: Callable[[GroundTruth, list[Prediction]], Result],
    results_dir: Path,
    files: tuple[Path, Path],
) -> Result:
    gt_file, text_file = files
    ids = read_instance_ids(gt_file)
    predictions = read_predictions(text_file, results_dir, *ids.shape)
    try:
        return function(ground_truth(ids), predictions)
    except InputError as error:
        raise InputError(f"{gt_file}: {error}") from error
