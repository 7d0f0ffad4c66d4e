"""Find all problems of a submission to the benchmark server, of any model.

Works on a zip file or a folder, without a model and without unpacking: nothing is written and no
path of the archive is followed outside of it.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from cityscapes_maskrcnn.data.images import PILLOW_ERRORS, read_image_size
from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS, INSTANCE_LABELS, LABELS
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, check_distinct, image_name
from cityscapes_maskrcnn.evaluation.result_files import assign_text_files
from cityscapes_maskrcnn.evaluation.result_source import LARGEST_TEXT, ResultSource, largest_mask
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_file
from cityscapes_maskrcnn.utils.parallel import map_in_parallel
from cityscapes_maskrcnn.utils.text import printable

# Kind of violation -> what would be right. The report follows this order.
KINDS: Final[dict[str, str]] = {
    "damaged archive": "pack the zip again",
    "unsafe path in the archive": "paths are relative, with /, and stay inside",
    "doubled entry": "a path occurs once in the archive",
    "space in a path": "the text files separate their fields by spaces",
    "missing text file": "every image has one, which is empty if nothing was found",
    "doubled text file": "an image has one text file",
    "text file of no image": "only the images of the list are scored",
    "text file in a folder": "text files are at the top level, masks beside or below them",
    "unreadable text file": "plain text in UTF-8",
    "malformed line": "relative/path.png labelID confidence, separated by one space",
    "unknown label": "a regular label id: "
    + ", ".join(f"{label.id} {label.name}" for label in INSTANCE_LABELS),
    "confidence that is no number": "any finite number",
    "mask path outside": "relative to its text file, inside the archive or folder",
    "missing mask": "the file that the line names",
    "mask used twice": "each line has its own mask",
    "unreadable mask": "a PNG file of one 8 bit or 1 bit channel",
    "mask of the wrong size": "that of its image",
    "mask that is not binary": "0 and one other value",
    "unused file": "nothing but text files and the masks they name",
}
_LABEL_NAMES: Final = {label.id: label.name for label in LABELS}
_TRAIN_ID_LABELS: Final = {label.trainId: label for label in INSTANCE_LABELS}
_FILE_TYPES: Final = {".png", ".jpg", ".jpeg", ".json", ".txt"}
_LARGEST_LIST: Final = 32 * 2**20  # bytes; 100,000 images with a path of 300
_IMAGES_A_CHUNK: Final = 32
_VIOLATIONS_A_TEXT: Final = 1000


@dataclass(frozen=True)
class ExpectedImage:
    """An image that needs a text file: name (:func:`.tree.image_name`) and size in pixels."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Violation:
    """Something wrong: a key of :data:`KINDS`, the file and line, and what was found there."""

    kind: str
    where: str
    detail: str = ""


def check_submission(
    submission: str | os.PathLike[str],
    images: Sequence[ExpectedImage],
    num_workers: int | None = None,
) -> list[Violation]:
    """Read a whole submission, every line and every mask, and list what is wrong.

    Shows a progress bar on stderr.

    Args:
        submission: a zip file or a folder.
        images: those that need results.
        num_workers: processes; default one per core.

    Returns:
        The violations, in the order of :data:`KINDS`, then of files; empty if all is well.

    Raises:
        InputError: there is no such file or folder, or two images have the same result files.
    """
    path = Path(submission)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    try:
        with closing(ResultSource(path)) as source:
            names = source.names
            violations = [Violation(*problem) for problem in source.problems()]
    except InputError as error:
        return [Violation("damaged archive", str(path), str(error))]
    violations += [Violation("space in a path", name) for name in names if " " in name]
    texts, more = _assign_texts(names, images)
    violations += more

    chunks = [texts[i : i + _IMAGES_A_CHUNK] for i in range(0, len(texts), _IMAGES_A_CHUNK)]
    used: dict[str, list[str]] = defaultdict(list)
    for found, masks in map_in_parallel(
        partial(_check_texts, path), chunks, f"Checking {printable(path.name)}", num_workers
    ):
        violations += found
        for mask, where in masks:
            used[mask].append(where)
    violations += [
        Violation("mask used twice", mask, f"by {_first_of(lines, '; ')}")
        for mask, lines in used.items()
        if len(lines) > 1
    ]
    unused = [name for name in names if name not in used and not name.endswith(".txt")]
    violations += [Violation("unused file", name) for name in unused]
    order = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(violations, key=lambda each: (order[each.kind], each.where))


def read_image_list(
    file: str | os.PathLike[str], image_suffix: str = IMAGE_SUFFIX
) -> list[ExpectedImage]:
    """Read the list of the images that need results.

    Args:
        file: a line an image, its name or its file: ``.../ulm_000003_000019_leftImg8bit.png``.
            Where that exists the image has its size, else 1024 x 2048, as all of Cityscapes.
        image_suffix: the end of the files' names, see :func:`.tree.image_name`.

    Raises:
        InputError: the file cannot be read or is empty, a line names a file that ends otherwise, or
            two lines name one image.
    """
    try:
        lines = read_file(file, _LARGEST_LIST).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text: {error}") from error
    images = []
    for line in filter(None, map(str.strip, lines)):
        name = posixpath.basename(line)
        if line.endswith(image_suffix):
            name = image_name(line, image_suffix)
        elif Path(line).suffix.lower() in _FILE_TYPES:
            raise InputError(
                f"{file}: {line} is not the name of an image and does not end in {image_suffix}; "
                "list names or images, with --image-suffix if they end differently"
            )
        height, width = 1024, 2048
        if Path(line).is_file():
            height, width = read_image_size(line)
        images.append(ExpectedImage(name, height, width))
    if not images:
        raise InputError(f"{file}: names no image")
    check_distinct((image.name for image in images), str(file))
    return images


def format_violations(violations: Sequence[Violation], limit: int | None = 10) -> str:
    """Lay out violations for reading: kind by kind, with counts.

    Args:
        violations: from :func:`check_submission`.
        limit: lines listed of each kind; None: all.
    """
    by_kind: dict[str, list[Violation]] = defaultdict(list)
    for violation in violations:
        by_kind[violation.kind].append(violation)
    lines = [f"{len(violations):,} violations" if violations else "valid: no violations"]
    lines += [f"{len(those):>8,}  {kind}" for kind, those in by_kind.items()]
    for kind, those in by_kind.items():
        lines += ["", f"{kind} ({len(those):,}); expected: {KINDS[kind]}"]
        for each in those[:limit]:
            detail = f": {printable(each.detail, 200)}" if each.detail else ""
            lines.append(f"  {printable(each.where, 200)}{detail}")
        if limit is not None and len(those) > limit:
            lines.append(f"  ... and {len(those) - limit:,} more")
    return "\n".join(lines)


def _assign_texts(
    names: Sequence[str], images: Sequence[ExpectedImage]
) -> tuple[list[tuple[str, ExpectedImage]], list[Violation]]:
    """Find every image's text files, and what is wrong with their names."""
    expected = {image.name: image for image in images}
    files = [name for name in names if name.endswith(".txt")]
    texts, others = assign_text_files(files, [image.name for image in images])
    violations = [Violation("text file of no image", text) for text in others]
    violations += [Violation("text file in a folder", text) for text in files if "/" in text]
    violations += [Violation("missing text file", name) for name, own in texts.items() if not own]
    violations += [
        Violation("doubled text file", name, _first_of(own, ", "))
        for name, own in texts.items()
        if len(own) > 1
    ]
    # Of a thousand text files of an image a few show what is wrong.
    return [(text, expected[name]) for name, own in texts.items() for text in own[:3]], violations


def _first_of(items: Sequence[str], separator: str) -> str:
    """Join the first few of many."""
    more = f"{separator}and {len(items) - 3:,} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more


def _check_texts(
    path: Path, texts: Sequence[tuple[str, ExpectedImage]]
) -> tuple[list[Violation], list[tuple[str, str]]]:
    """Check some text files and their masks: violations, and (mask, line that names it) pairs."""
    violations: list[Violation] = []
    masks: list[tuple[str, str]] = []
    # A mask is decoded once for each image, however many lines name it.
    checked = set()
    with closing(ResultSource(path)) as source:
        names = set(source.names)
        for text, image in texts:
            try:
                content = source.read(text, LARGEST_TEXT).decode("utf-8")
            except (InputError, UnicodeDecodeError) as error:
                detail = str(error).removeprefix(f"{path / text}: ")
                violations.append(Violation("unreadable text file", text, detail))
                continue
            limit = len(violations) + _VIOLATIONS_A_TEXT
            lines = content.removesuffix("\n").split("\n") if content else []
            for number, line in enumerate(lines, start=1):
                where = f"{text}, line {number}"
                if len(violations) >= limit:
                    detail = f"{_VIOLATIONS_A_TEXT:,} violations before line {number}: not read on"
                    violations.append(Violation("unreadable text file", text, detail))
                    break
                violations += _check_fields(where, line)
                named = line.split(" ")[0]
                if not named:
                    continue
                mask = posixpath.normpath(posixpath.join(posixpath.dirname(text), named))
                if named.startswith("/") or mask.split("/")[0] == ".." or re.match(r"\w:", named):
                    violations.append(Violation("mask path outside", where, named))
                elif mask not in names:
                    violations.append(Violation("missing mask", where, named))
                else:
                    masks.append((mask, where))
                    if (mask, image) not in checked:
                        checked.add((mask, image))
                        violations += _check_mask(source, mask, image)
    return violations, masks


def _check_fields(where: str, line: str) -> list[Violation]:
    fields = line.split(" ")
    if len(fields) != 3 or not all(fields):
        return [Violation("malformed line", where, repr(line[:200]))]
    _, label, confidence = fields
    violations = []
    number = _number(label)
    if number not in ID_TO_CONTIGUOUS:
        detail = label
        if number in _TRAIN_ID_LABELS:
            right = _TRAIN_ID_LABELS[int(number)]
            detail = (
                f"{label} is {_LABEL_NAMES.get(int(number))}; if it is meant as a train id, "
                f"{right.name}, write {right.id}"
            )
        elif number in _LABEL_NAMES:
            detail = f"{label} is {_LABEL_NAMES[int(number)]}, which is not scored"
        violations.append(Violation("unknown label", where, detail))
    if not math.isfinite(_number(confidence)):
        violations.append(Violation("confidence that is no number", where, confidence))
    return violations


def _number(text: str) -> float:
    """NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_mask(source: ResultSource, name: str, expected: ExpectedImage) -> list[Violation]:
    try:
        data = source.read(name, largest_mask(expected.height, expected.width))
        # A forged size may ask for more memory than there is: compare it before decoding.
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            if image.size != (expected.width, expected.height):
                detail = (
                    f"{image.width} x {image.height}, the image is "
                    f"{expected.width} x {expected.height} (width x height)"
                )
                return [Violation("mask of the wrong size", name, detail)]
            if image.mode not in ("1", "L"):
                return [Violation("unreadable mask", name, f"its pixels are {image.mode}")]
            pixels = np.asarray(image)
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            # Decoding does not look at the check sums of the pixels.
            image.verify()
    except InputError as error:
        detail = str(error).removeprefix(f"{source.path / name}: ")
        return [Violation("unreadable mask", name, detail)]
    except UnidentifiedImageError:
        return [Violation("unreadable mask", name, "no PNG file")]
    except (*PILLOW_ERRORS, EOFError) as error:
        return [Violation("unreadable mask", name, str(error))]
    if ((pixels == 0) | (pixels == pixels.max())).all():
        return []
    values = np.unique(pixels).tolist()
    first = ", ".join(map(str, values[:6])) + ", ..." * (len(values) > 6)
    return [Violation("mask that is not binary", name, f"it has {len(values)} values: {first}")]
