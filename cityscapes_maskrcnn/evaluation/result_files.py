"""Official result files of instance segmentation, in and out.

A result folder holds, anywhere below it, one ``<city>_<sequence>_<frame>*.txt`` per image.
Each line is ``relative/path.png labelID confidence``: a mask of the image's size whose non-zero
pixels are the instance (the path is relative to the text file and stays inside the folder), a
regular label id and a number. An image in which nothing was found has an empty text file.

Source: the head of ``cityscapesscripts/evaluation/evalInstanceLevelSemanticLabeling.py``.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from PIL import Image

from cityscapes_maskrcnn.data.labels import (
    CONTIGUOUS_TO_ID,
    ID_TO_CONTIGUOUS,
    LABELS,
    THING_CLASSES,
)
from cityscapes_maskrcnn.evaluation.instance_ap import (
    GroundTruth,
    ImageMatches,
    Prediction,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.mask_files import read_instance_ids, read_mask
from cityscapes_maskrcnn.evaluation.masks import CroppedMask
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, to_json
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

INSTANCE_IDS_SUFFIX: Final = "_gtFine_instanceIds.png"
Result = TypeVar("Result")
_KNOWN_LABEL_IDS: Final = frozenset(label.id for label in LABELS)


@dataclass(frozen=True)
class ResultLine:
    """One line of a result file: mask file (absolute), official label id, confidence."""

    mask_file: Path
    label_id: int
    confidence: float


def image_name(file: str | os.PathLike[str]) -> str:
    """Name an image by what all its files have in common: ``<city>_<sequence>_<frame>``.

    Args:
        file: any file of the image, such as ``ulm_000003_000019_leftImg8bit.png``.

    Raises:
        InputError: the name has another form.
    """
    parts = Path(file).name.split("_")
    if len(parts) < 4:
        raise InputError(f"{file}: not named like a Cityscapes file, city_sequence_frame_kind.png")
    return "_".join(parts[:3])


def ground_truth_file(gt_dir: str | os.PathLike[str], image_file: str | os.PathLike[str]) -> Path:
    """Find the instance ids that belong to an image.

    Args:
        gt_dir: a split's folder of fine annotations, such as ``gtFine/val``, cities inside.
        image_file: the image, in its city's folder: ``.../ulm/ulm_000003_000019_leftImg8bit.png``.

    Returns:
        ``gt_dir/ulm/ulm_000003_000019_gtFine_instanceIds.png``; whether it exists is not checked.
    """
    city = Path(image_file).parent.name
    return Path(gt_dir) / city / f"{image_name(image_file)}{INSTANCE_IDS_SUFFIX}"


def find_ground_truth(gt_dir: str | os.PathLike[str]) -> list[Path]:
    """List the instance id files of a split's folder, sorted.

    Raises:
        InputError: the folder is missing or holds none.
    """
    folder = Path(gt_dir)
    if not folder.is_dir():
        raise InputError(f"ground truth folder {folder} does not exist")
    files = sorted(folder.glob(f"*/*{INSTANCE_IDS_SUFFIX}"))
    if not files:
        raise InputError(
            f"{folder} holds no <city>/*{INSTANCE_IDS_SUFFIX}: give a split's folder, such as"
            " gtFine/val"
        )
    return files


def find_result_files(results_dir: str | os.PathLike[str], names: Sequence[str]) -> list[Path]:
    """Find the result file of every image.

    Args:
        results_dir: searched with everything below it.
        names: of the images, as :func:`image_name` gives them.

    Returns:
        One text file per name, in the same order. Files of other images are not looked at.

    Raises:
        InputError: the folder is missing; an image has no result file, or more than one.
    """
    folder = Path(results_dir)
    if not folder.is_dir():
        raise InputError(f"results folder {folder} does not exist")
    texts = sorted(
        (name, root)
        for root, _, files in os.walk(folder)
        for name in files
        if name.endswith(".txt")
    )
    found = []
    for name in names:
        at = bisect_left(texts, (name, ""))
        matching = []
        while at < len(texts) and texts[at][0].startswith(name):
            matching.append(Path(texts[at][1]) / texts[at][0])
            at += 1
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
        found.append(matching[0])
    return found


def read_result_lines(
    text_file: str | os.PathLike[str], results_dir: str | os.PathLike[str]
) -> list[ResultLine]:
    """Read and check one image's text file.

    Args:
        text_file: the file.
        results_dir: the folder no mask may lie outside of.

    Returns:
        Its lines. Of a mask file named twice the last line counts, as in the official code.

    Raises:
        InputError: the file cannot be read or a line is wrong; the message has the line's number.
    """
    text_file = Path(text_file)
    # Not Path.resolve: a link inside the folder may well point to another disk.
    root = Path(os.path.abspath(results_dir))  # noqa: PTH100
    try:
        with text_file.open(encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {text_file}: {error}") from error
    result: dict[Path, ResultLine] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{text_file}, line {number}"
        parts = line.split(" ")
        if len(parts) != 3:
            raise InputError(
                f"{where}: expected 'relative/path.png labelID confidence', got {line!r}"
            )
        if Path(parts[0]).is_absolute():
            raise InputError(f"{where}: the mask's path {parts[0]} must be relative")
        mask_file = Path(os.path.abspath(text_file.parent / parts[0]))  # noqa: PTH100
        if not mask_file.is_relative_to(root):
            raise InputError(f"{where}: the mask {parts[0]} is outside of the folder {root}")
        try:
            label, confidence = float(parts[1]), float(parts[2])
        except ValueError:
            raise InputError(
                f"{where}: label id and confidence must be numbers: {line!r}"
            ) from None
        if label not in _KNOWN_LABEL_IDS:
            raise InputError(
                f"{where}: unknown label id {parts[1]}; use the regular ids of the official labels"
                " (24 is person), not train ids"
            )
        if not math.isfinite(confidence):
            raise InputError(f"{where}: the confidence {parts[2]} is not a finite number")
        result[mask_file] = ResultLine(mask_file, int(label), confidence)
    return list(result.values())


def read_predictions(
    text_file: str | os.PathLike[str],
    results_dir: str | os.PathLike[str],
    height: int,
    width: int,
) -> list[Prediction]:
    """Read one image's predictions with their masks.

    Args:
        text_file: the image's result file.
        results_dir: the folder no mask may lie outside of.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The predictions of the 8 classes; those of other labels are left out, their masks unread.

    Raises:
        InputError: as :func:`read_result_lines`; a mask is missing, unreadable or of another size.
    """
    return [
        Prediction(
            mask=_read_mask(line.mask_file, text_file, height, width),
            category=ID_TO_CONTIGUOUS[line.label_id],
            confidence=line.confidence,
        )
        for line in read_result_lines(text_file, results_dir)
        if line.label_id in ID_TO_CONTIGUOUS
    ]


def write_image_results(
    folder: str | os.PathLike[str],
    image_file: str | os.PathLike[str],
    predictions: Sequence[Prediction],
    height: int,
    width: int,
) -> Path:
    """Write one image's predictions in the official form.

    Args:
        folder: where the text file and the masks go, side by side; made when missing.
        image_file: the image; its name gives the names of what is written.
        predictions: of the image. A confidence is written so that it reads back as the same number.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The text file. It is written last: it never names a mask that is not there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in image_results(image_file, predictions, height, width):
        text_file = folder / name
        if text_file.suffix == ".txt":
            with atomic_write(text_file) as file:
                file.write(content)
        else:
            text_file.write_bytes(content)
    return text_file


def image_results(
    image_file: str | os.PathLike[str], predictions: Sequence[Prediction], height: int, width: int
) -> Iterator[tuple[str, bytes]]:
    """Make the files of :func:`write_image_results` one by one, the text file last.

    Yields:
        Name, without folder and spaces, and content of every mask and of the text file.
    """
    stem = Path(image_file).stem.replace(" ", "_")
    lines = []
    for index, prediction in enumerate(predictions):
        mask = prediction.mask
        box_height, box_width = mask.bitmap.shape
        frame = np.zeros((height, width), dtype=np.uint8)
        frame[mask.y0 : mask.y0 + box_height, mask.x0 : mask.x0 + box_width] = mask.bitmap * 255
        png = BytesIO()
        Image.fromarray(frame).save(png, format="PNG", compress_level=1)
        name = f"{stem}_{index}_{THING_CLASSES[prediction.category]}.png"
        label_id = CONTIGUOUS_TO_ID[prediction.category]
        lines.append(f"{name} {label_id} {float(prediction.confidence)!r}\n")
        yield name, png.getvalue()
    yield f"{stem}_pred.txt", "".join(lines).encode()


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
        What ``function`` returned for each image.

    Raises:
        InputError: see the functions above. That every image has a result file is checked first.
    """
    truth_files = find_ground_truth(gt_dir)
    text_files = find_result_files(results_dir, [image_name(file) for file in truth_files])
    return map_in_parallel(
        partial(_map_files, function, Path(results_dir)),
        list(zip(truth_files, text_files, strict=True)),
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


def averages_to_json(averages: Mapping[str, Any]) -> str:
    """Write the official ``averages`` as JSON.

    Args:
        averages: from :func:`.instance_ap.averages`.

    Returns:
        ``{"averages": {...}}`` in the official structure, as fractions. NaN, which JSON does not
        know, becomes null: a class without ground truth.
    """
    return to_json({"averages": averages}, indent=4)


def _map_files(
    function: Callable[[GroundTruth, list[Prediction]], Result],
    results_dir: Path,
    files: tuple[Path, Path],
) -> Result:
    truth_file, text_file = files
    ids = read_instance_ids(truth_file)
    predictions = read_predictions(text_file, results_dir, *ids.shape)
    try:
        return function(ground_truth(ids), predictions)
    except InputError as error:
        raise InputError(f"{truth_file}: {error}") from error


def _read_mask(
    file: Path, text_file: str | os.PathLike[str], height: int, width: int
) -> CroppedMask:
    if not file.is_file():
        raise InputError(f"{text_file} names the mask {file}, which does not exist")
    return read_mask(file, height, width)
