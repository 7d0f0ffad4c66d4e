"""Read and write official result files of instance segmentation.

A result folder holds, anywhere below it, one ``NAME*.txt`` per image, NAME being that of its file
without ``_leftImg8bit.png``.
Each line is ``relative/path.png labelID confidence``: a mask of the image's size whose non-zero
pixels are the instance (the path is relative to the text file and stays inside the folder), a
regular label id and a number. An image in which nothing was found has an empty text file.

Source: the head of ``cityscapesscripts/evaluation/evalInstanceLevelSemanticLabeling.py``.
"""

from __future__ import annotations

import logging
import math
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from kornia_rs import io as kornia_io
from PIL import Image, UnidentifiedImageError

from cityscapes_maskrcnn.data.images import (
    check_scans,
    plain_png_surplus,
    read_instance_ids,
)
from cityscapes_maskrcnn.data.labels import (
    CONTIGUOUS_TO_ID,
    ID_TO_CONTIGUOUS,
    INSTANCE_LABELS,
    LABELS,
    THING_CLASSES,
)
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, image_name
from cityscapes_maskrcnn.evaluation.instance_ap import (
    ALL_CATEGORIES,
    MIN_REGION_PIXELS,
    GroundTruth,
    Prediction,
    ground_truth,
)
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.evaluation.result_source import (
    LARGEST_TEXT,
    ResultSource,
    largest_mask,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

INSTANCE_IDS_SUFFIX: Final = "_gtFine_instanceIds.png"
Result = TypeVar("Result")
logger = logging.getLogger(__name__)
_KNOWN_LABEL_IDS: Final = frozenset(label.id for label in LABELS)
# Not all that Pillow reads: for an EPS file it would start Ghostscript, which runs what is in it,
# for the comments of a GIF it takes minutes, and for the tags of a TIFF gigabytes.
_FORMATS: Final = ("PNG", "JPEG", "WEBP")


def decode_mask(file: Path, data: bytes, height: int, width: int) -> RunMask:
    """Decode a mask: the pixels that are not black.

    Args:
        file: its name, for messages.
        data: its content: a PNG file, or one of :data:`_FORMATS`.
        height: expected, in pixels.
        width: expected, in pixels.

    Raises:
        InputError: the file is unreadable or of another size.
    """
    try:
        # Pillow refuses absurd sizes. kornia_rs decodes a grey PNG in a tenth of its time.
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            if image.size != (width, height):
                raise InputError(
                    f"{file}: the mask is {image.height} x {image.width} (height x width), its"
                    f" image {height} x {width}"
                )
            if image.format == "JPEG":
                check_scans(file, data, height * width)
            surplus = plain_png_surplus(data, 1)
            if surplus is not None:
                # Also of damaged data: it refuses some that Pillow takes.
                pixels = kornia_io.decode_image_png_u8(data, (height, width), "mono")[..., 0]
            if surplus != 0:
                # As the official code does: an index into a palette is no brightness. Only Pillow
                # looks at the checksum of the pixels.
                pixels = np.asarray(image.convert("L"))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        problem = "unknown format; expected a PNG"
        raise InputError(f"cannot read {file} as an image: {problem}") from error
    # A broken PNG is a SyntaxError for Pillow and a plain Exception for kornia_rs.
    except Exception as error:
        raise InputError(f"cannot read {file} as an image: {error}") from error
    return mask_from_bitmap(pixels)


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


def find_ground_truth(gt_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the instance id files of a split's folder.

    Returns:
        Image name -> file, sorted by file.

    Raises:
        InputError: the folder is missing or holds none; two of them have one name.
    """
    folder = Path(gt_dir)
    if not folder.is_dir():
        raise InputError(f"ground truth folder {folder} does not exist")
    found: dict[str, Path] = {}
    for file in sorted(folder.glob(f"[!.]*/[!.]*{INSTANCE_IDS_SUFFIX}")):
        name = file.name.removesuffix(INSTANCE_IDS_SUFFIX)
        if name in found:
            raise InputError(f"{found[name]} and {file} have the same name; rename one of them")
        found[name] = file
    if not found:
        raise InputError(
            f"{folder} holds no <city>/*{INSTANCE_IDS_SUFFIX}: give a split's folder, such as"
            " gtFine/val"
        )
    return found


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
    longest_name = max(map(len, by_prefix), default=0)
    own: dict[str, list[str]] = {name: [] for name in by_prefix.values()}
    others: list[str] = []
    for text in texts:
        stem = posixpath.basename(text).removesuffix(".txt")
        prefixes = (
            stem[:end]
            for end in range(min(len(stem), longest_name), 0, -1)
            if not stem[end : end + 1].isalnum() and stem[:end] in by_prefix
        )
        longest = next(prefixes, None)
        (others if longest is None else own[by_prefix[longest]]).append(text)
    return own, others


def choose_images(gt_files: Mapping[str, Path], names: Iterable[str]) -> dict[str, Path]:
    """Choose some images.

    Args:
        gt_files: as :func:`find_ground_truth` gives them.
        names: of the images to keep.

    Raises:
        InputError: an image has no ground truth.
    """
    chosen = list(names)
    unknown = [name for name in chosen if name not in gt_files]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(chosen)} images of the list have no ground truth among the"
            f" {len(gt_files)} to choose from, such as {unknown[0]}"
        )
    return {name: gt_files[name] for name in chosen}


def find_result_files(
    source: ResultSource, names: Sequence[str], others: Iterable[str] = ()
) -> list[str]:
    """Find the result file of every image.

    Args:
        source: the results; text files may lie in any of their folders.
        names: of the images, see :func:`.tree.image_name`.
        others: names of images that may have results there too.

    Returns:
        One path per name, in the same order. Files of other images are not looked at.

    Raises:
        InputError: an image has no result file, or more than one.
    """
    texts_there = [name for name in source.names if name.endswith(".txt")]
    own, _ = assign_text_files(texts_there, [*names, *others])
    for name in names:
        texts = own[name]
        if not texts:
            raise InputError(
                f"{source.path} holds no result file {name}*.txt: every image needs one, an empty"
                " one where nothing was found"
            )
        if len(texts) > 1:
            raise InputError(
                f"image {name} has more than one result file: {texts[0]} and {texts[1]} in"
                f" {source.path}; remove one"
            )
    return [own[name][0] for name in names]


def read_result_lines(source: ResultSource, text_file: str) -> dict[str, tuple[int, float]]:
    """Read and check one image's text file, without its masks.

    Args:
        source: the results; no mask may lie outside of them.
        text_file: path of the image's result file in them.

    Returns:
        Path of a mask in ``source`` -> regular label id and confidence. Of a mask file named twice
        the last line counts, as in the official code.

    Raises:
        InputError: the file cannot be read, or a line is wrong; the message has its number.
    """
    where = source.path / text_file
    try:
        text = StringIO(source.read(text_file, LARGEST_TEXT).decode("utf-8"), newline=None)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text: {error}") from error
    folder = posixpath.dirname(text_file)
    by_mask = {}
    for number, line in enumerate(text, start=1):
        try:
            mask_file, label_id, confidence = _parse_line(line.rstrip("\n"), folder)
        except InputError as error:
            raise InputError(f"{where}, line {number}: {error}") from error
        by_mask[mask_file] = label_id, confidence
    return by_mask


def read_masks(
    source: ResultSource,
    text_file: str,
    lines: Mapping[str, tuple[int, float]],
    *,
    height: int,
    width: int,
) -> list[Prediction]:
    """Read and check the masks of one image.

    Args:
        source: the results.
        text_file: path of the image's result file in them, for messages.
        lines: its content, see :func:`read_result_lines`.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The predictions of the 8 classes; those of other labels are left out, their masks unread.

    Raises:
        InputError: a mask is missing, unreadable or of another size.
    """
    predictions = []
    for mask_file, (label_id, confidence) in lines.items():
        if label_id in ID_TO_CONTIGUOUS:
            try:
                data = source.read(mask_file, largest_mask(height, width))
            except InputError as error:
                raise InputError(f"{source.path / text_file} names the mask {error}") from error
            mask = decode_mask(source.path / mask_file, data, height, width)
            predictions.append(Prediction(mask, ID_TO_CONTIGUOUS[label_id], confidence))
    return predictions


def _parse_line(line: str, folder: str) -> tuple[str, int, float]:
    """Get a mask's path in the results, official label id and confidence."""
    parts = line.split(" ")
    if len(parts) != 3:
        raise InputError(f"expected 'relative/path.png labelID confidence', got {line[:200]!r}")
    if parts[0].startswith("/"):
        raise InputError(f"the mask's path {parts[0]} must be relative")
    mask_file = posixpath.normpath(posixpath.join(folder, parts[0]))
    if mask_file.split("/")[0] == "..":
        raise InputError(f"the mask {parts[0]} is outside of the results")
    try:
        label, confidence = float(parts[1]), float(parts[2])
    except ValueError:
        raise InputError(f"label id and confidence must be numbers: {line[:200]!r}") from None
    if label not in _KNOWN_LABEL_IDS:
        raise InputError(
            f"unknown label id {parts[1]}; use the regular ids of the official labels"
            " (24 is person), not train ids"
        )
    if not math.isfinite(confidence):
        raise InputError(f"the confidence {parts[2]} is not a finite number")
    return mask_file, int(label), confidence


def image_results(name: str, predictions: Sequence[Prediction]) -> Iterator[tuple[str, bytes]]:
    """Make the files of one image's predictions, one by one.

    The text file comes last: where files are written in this order, it never names a mask that is
    not there.

    Args:
        name: of the image, see :func:`.tree.image_name`; all names begin with it.
        predictions: of the image. A confidence is written so that it reads back as the same number.

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
    results: str | os.PathLike[str],
    gt_files: Mapping[str, Path],
    num_workers: int | None = None,
    categories: Sequence[int] = ALL_CATEGORIES,
) -> list[Result]:
    """Compare result files with the ground truth of some images.

    Shows a progress bar on stderr. Warns of predictions whose labels are not scored.

    Args:
        function: what to do with an image's ground truth and predictions; a module-level function.
        results: the official result files: a folder, or a zip archive as the benchmark takes it.
        gt_files: image name -> instance ids, as :func:`find_ground_truth` gives them.
        num_workers: processes that read and compare; default one per available core.
        categories: the classes that are going to be scored: contiguous class ids, 0 to 7.

    Returns:
        The results of ``function``, one per image.

    Raises:
        InputError: see the functions above (that every image has a result file is checked first);
            or nothing can be scored: the ground truth has no object for it, or there are
            predictions but none has a label that is scored.
    """
    source = ResultSource(results)
    for kind, where, detail in source.problems():
        raise InputError(f"{source.path}: {kind} {where}: {detail}")
    text_files = find_result_files(source, list(gt_files), _neighbours(gt_files))
    compared = map_in_parallel(
        partial(_map_files, function, source),
        list(zip(gt_files.values(), text_files, strict=True)),
        "Matching images",
        num_workers,
    )
    if not any(objects.intersection(categories) for _, _, objects in compared):
        raise InputError(
            f"nothing can be scored: the ground truth of {len(gt_files)} images has no object of"
            f" {', '.join(THING_CLASSES[each] for each in categories)} with {MIN_REGION_PIXELS}"
            f" pixels or more; the first is {next(iter(gt_files.values()))}"
        )
    _warn_of_labels(sum((labels for _, labels, _ in compared), Counter()), categories)
    return [result for result, _, _ in compared]


def _neighbours(gt_files: Mapping[str, Path]) -> set[str]:
    """Names of the images whose ground truth lies beside that of others: of the rest of a split."""
    places = {(file.parent, file.name.removeprefix(name)) for name, file in gt_files.items()}
    files = {
        file.name.removesuffix(suffix)
        for folder, suffix in places
        for file in folder.iterdir()
        if file.name.endswith(suffix) and not file.name.startswith(".")
    }
    return files - gt_files.keys()


def _warn_of_labels(labels: Counter[int], categories: Sequence[int]) -> None:
    """Report predictions that are not scored; ``labels``: regular label id -> predictions."""
    scored = {CONTIGUOUS_TO_ID[category] for category in categories}
    not_scored = [label for label, _ in labels.most_common() if label not in scored]
    if not not_scored:
        return
    number, total = sum(labels[label] for label in not_scored), labels.total()
    # The most frequent label says what is meant, if it is a class's train id.
    meant = {label.trainId: label for label in INSTANCE_LABELS}
    example = meant.get(not_scored[0], meant[13])
    message = (
        f"{number} of {total} predictions have labels that are not scored: "
        f"{', '.join(map(str, not_scored))}; regular label ids are expected, {example.name} is "
        f"{example.id}"
    )
    if number == total:
        raise InputError(message)
    logger.warning("%s", message)


def _map_files(
    function: Callable[[GroundTruth, list[Prediction]], Result],
    source: ResultSource,
    files: tuple[Path, str],
) -> tuple[Result, Counter[int], set[int]]:
    """Compare one image.

    Returns:
        The result, label id -> predictions, and the classes of the ground truth's objects.
    """
    gt_file, text_file = files
    ids = read_instance_ids(gt_file)
    lines = read_result_lines(source, text_file)
    height, width = ids.shape
    predictions = read_masks(source, text_file, lines, height=height, width=width)
    try:
        gt = ground_truth(ids)
        result = function(gt, predictions)
    except InputError as error:
        raise InputError(f"{gt_file}: {error}") from error
    labels = Counter(label for label, _ in lines.values())
    return result, labels, set(gt.categories[gt.is_object].tolist())
