"""Check that a Cityscapes tree is complete and undamaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cityscapes_maskrcnn.data.annotations import read_instances, read_objects
from cityscapes_maskrcnn.data.cache import Record
from cityscapes_maskrcnn.data.drawn_instances import differing_instances
from cityscapes_maskrcnn.data.images import (
    PILLOW_ERRORS,
    check_image,
    read_image_size,
    read_instance_ids,
    read_label_image,
)
from cityscapes_maskrcnn.data.labels import LABELS, NUM_IDS
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, unread_images
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import map_in_parallel
from cityscapes_maskrcnn.utils.text import printable

OFFICIAL_SIZE: Final = (1024, 2048)  # height, width


class _Split(NamedTuple):
    """A split of the official release.

    Attributes:
        kind: ``"gtFine"`` or ``"gtCoarse"``.
        name: of the split's folder.
        images: their number.
        packages: the archives it comes in.
        required: whether every stage of the recipe but stage 0 needs it.
    """

    kind: str
    name: str
    images: int
    packages: str
    required: bool


_FINE: Final = "leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip"
_SPLITS: Final = (
    _Split("gtFine", "train", 2975, _FINE, True),
    _Split("gtFine", "val", 500, _FINE, True),
    _Split("gtFine", "test", 1525, _FINE, False),
    _Split("gtCoarse", "train", 2975, "gtCoarse.zip", False),
    _Split("gtCoarse", "val", 500, "gtCoarse.zip", False),
    _Split("gtCoarse", "train_extra", 19998, "leftImg8bit_trainextra.zip, gtCoarse.zip", False),
)


class SplitCheck(NamedTuple):
    """The findings in one split.

    Attributes:
        name: for instance ``gtFine/train``.
        images: number of images.
        annotations: number of complete annotations (polygons, label ids, instance ids).
        official: number of images in the official release.
        problems: one line each, naming the file.
        note: why a missing split is no problem, which images are not read, or empty.
        subset: there are problems that ``allow_subset`` would accept.
    """

    name: str
    images: int
    annotations: int
    official: int
    problems: tuple[str, ...]
    note: str = ""
    subset: bool = False


def check_tree(
    folder: Path,
    allow_subset: bool = False,
    num_workers: int | None = None,
    image_folder: str = "leftImg8bit",
    image_suffix: str = IMAGE_SUFFIX,
) -> list[SplitCheck]:
    """Read every file of a Cityscapes tree.

    Args:
        folder: holds ``leftImg8bit``, ``gtFine`` and perhaps ``gtCoarse``.
        allow_subset: accept fewer images than the official release has, and other sizes than
            1024x2048: parts of the data, and generated data.
        num_workers: processes; default one per core.
        image_folder: below ``folder``, for weather variants such as ``leftImg8bit_foggy``.
        image_suffix: the end of the images' names, see :func:`.tree.image_name`.

    Returns:
        One entry per split of the official release; of a weather variant, per split that it has.

    Raises:
        InputError: there are no images at all.
    """
    checks = [
        _check_split(
            split,
            image_dir=folder / image_folder / split.name,
            gt_dir=folder / split.kind / split.name,
            image_suffix=image_suffix,
            allow_subset=allow_subset,
            num_workers=num_workers,
        )
        for split in _SPLITS
        if image_folder == "leftImg8bit" or (folder / image_folder / split.name).is_dir()
    ]
    if not any(check.images for check in checks):
        raise InputError(f"{folder}: no images; expected {image_folder}/SPLIT/CITY/*{image_suffix}")
    return checks


def format_checks(checks: Sequence[SplitCheck], most: int = 10) -> str:
    """Format a table of splits, and below it the first ``most`` problems of each."""
    lines = [f"{'split':<21}{'images':>8}{'annotations':>13}{'official':>10}  result"]
    details = []
    for check in checks:
        count = len(check.problems)
        result = f"{count} problem{'s' * (count > 1)}" if count else printable(check.note) or "ok"
        counts = f"{check.images:>8}{check.annotations:>13}{check.official:>10}"
        lines.append(f"{check.name:<21}{counts}  {result}")
        if count:
            details += ["", f"{check.name}:"]
            details += [f"  {printable(text)}" for text in check.problems[:most]]
            details += [f"  ... and {count - most} more"] * (count > most)
    return "\n".join(lines + details)


def _check_split(
    split: _Split,
    *,
    image_dir: Path,
    gt_dir: Path,
    image_suffix: str,
    allow_subset: bool,
    num_workers: int | None,
) -> SplitCheck:
    """Count, pair and read the files of one split."""
    endings = ("polygons.json", "labelIds.png", "instanceIds.png")
    suffixes = [f"_{split.kind}_{ending}" for ending in endings]
    images = _stems(image_dir, image_suffix)
    annotations = {suffix: _stems(gt_dir, suffix) for suffix in suffixes}
    complete = set.intersection(*annotations.values())
    annotated = set.union(*annotations.values())
    result = SplitCheck(
        f"{split.kind}/{split.name}", len(images), len(complete), split.images, problems=()
    )

    # The fine and the coarse annotations of train and val belong to the same images, and the test
    # images have no public annotations.
    shares_images = split.kind == "gtCoarse" and split.name != "train_extra"
    if not annotated and (not images or shares_images):
        if split.required and not allow_subset:
            return result._replace(problems=(f"missing; unpack {split.packages}",), subset=True)
        return result._replace(note=f"missing (only needed for some jobs: {split.packages})")
    needed = suffixes if annotated or split.name != "test" else []

    problems = []
    if not allow_subset and len(images) != split.images:
        problems.append(f"{len(images)} images where the official release has {split.images}")
    cities: dict[str, list[str]] = defaultdict(list)
    for stem in sorted(images):
        city, name = stem.split("/")
        cities[name].append(city)
    problems += [
        f"{name}{image_suffix} is in several city folders ({', '.join(found)}); keep one of them"
        for name, found in cities.items()
        if len(found) > 1
    ]
    unread = unread_images(image_dir, image_suffix)
    if unread:
        note = f"ok; {len(unread)} other image files are not read, such as {unread[0]}"
        result = result._replace(note=note)
    for stem in sorted(images | annotated):
        missing = [suffix for suffix in needed if stem not in annotations[suffix]]
        if stem not in images:
            problems.append(f"{stem}: an annotation without image {image_dir}/{stem}{image_suffix}")
        elif missing:
            problems.append(f"{stem}: no annotation {', '.join(missing)} in {gt_dir}")
    read = partial(
        _check_files,
        image_suffix=image_suffix,
        gt_dir=gt_dir,
        suffixes=needed,
        check_image=not shares_images,
    )
    files = [f"{image_dir}/{stem}{image_suffix}" for stem in sorted(images)]
    found = map_in_parallel(read, files, f"Checking {result.name}", num_workers)
    others = [
        f"{file} ({_text(size)})"
        for file, (_, size) in zip(files, found, strict=True)
        if not allow_subset and size not in (None, OFFICIAL_SIZE)
    ]
    if others:
        # One cause, however many images: a line for each would hide the rest.
        problems.append(
            f"{len(others)} images are not {_text(OFFICIAL_SIZE)} pixels, the first: {others[0]}"
        )
    return result._replace(
        problems=(*problems, *(text for in_files, _ in found for text in in_files)),
        subset=not allow_subset and (bool(others) or len(images) != split.images),
    )


def _stems(folder: Path, suffix: str) -> set[str]:
    """``city/name`` without suffix of the files below a folder, which need not exist."""
    files = folder.glob(f"[!.]*/[!.]*{suffix}")
    return {f"{file.parent.name}/{file.name.removesuffix(suffix)}" for file in files}


def _check_files(
    image: str, *, image_suffix: str, gt_dir: Path, suffixes: Sequence[str], check_image: bool
) -> tuple[list[str], tuple[int, int] | None]:
    """Read one image and those of its annotation files that exist.

    Args:
        image: path of the image.
        image_suffix: the end of its name.
        gt_dir: the split's annotations.
        suffixes: of the annotation files.
        check_image: False: take the image's size from its header and do not read the rest.

    Returns:
        Problems, one line each, and height and width of the image, or None if it is damaged.
    """
    problems = []
    expected = None
    try:
        expected = _check_image(image) if check_image else read_image_size(image)
    except InputError as error:
        problems.append(str(error))
    city, name = Path(image).parts[-2:]
    whole: dict[str, Any] = {}  # content of annotation files in order
    for suffix in suffixes:
        path = f"{gt_dir}/{city}/{name.removesuffix(image_suffix)}{suffix}"
        if not Path(path).exists():
            continue
        content: Any
        try:
            content = _check_polygons(path) if path.endswith(".json") else _check_ids(path)
        except InputError as error:
            problems.append(str(error))
            continue
        found = tuple(content["size"].tolist()) if path.endswith(".json") else content.shape
        if expected is not None and found != expected:
            problems.append(f"{path}: {_text(found)} pixels, but its image is {_text(expected)}")
        else:
            whole[suffix.rpartition("_")[2]] = content
    if {"polygons.json", "instanceIds.png"} <= whole.keys() and "_gtCoarse_" not in suffixes[0]:
        record, ids = whole["polygons.json"], whole["instanceIds.png"]
        path = f"{gt_dir}/{city}/{name.removesuffix(image_suffix)}{suffixes[0]}"
        if ids.shape == tuple(record["size"].tolist()):
            problems += [f"{path}: {text}" for text in differing_instances(record, ids)]
    return problems, expected


def _check_polygons(path: str) -> Record:
    """The content of a valid annotation, with its ``size`` at least."""
    if "_gtCoarse_" not in path:
        return read_instances(path)
    # Of the coarse annotations only label images are used.
    height, width, _ = read_objects(path)
    return {"size": np.array([height, width])}


def _check_image(path: str) -> tuple[int, int]:
    """Height and width of an image of which every byte agrees with its checksums."""
    check_image(path)
    try:
        with Image.open(path) as image:
            mode = image.mode
    except PILLOW_ERRORS as error:
        raise InputError(f"{path}: not a whole image ({error}); unpack it again") from error
    if mode != "RGB":
        raise InputError(f"{path}: an 8 bit RGB image is expected, not mode {mode}")
    return read_image_size(path)


def _check_ids(path: str) -> npt.NDArray[Any]:
    """The pixels of a label or instance image, which are official ids."""
    if path.endswith("_labelIds.png"):
        return read_label_image(path)
    ids = read_instance_ids(path)
    # Instance k of label l is l * 1000 + k; regions without instances have the label's id.
    things = {label.id for label in LABELS if label.hasInstances}
    unknown = {
        value
        for value in np.unique(ids).tolist()
        if value >= NUM_IDS and value // 1000 not in things
    }
    if unknown:
        raise InputError(f"{path}: unknown ids {sorted(unknown)[:5]}")
    return ids


def _text(size: tuple[int, int]) -> str:
    """Width x height, the usual order in text."""
    return f"{size[1]}x{size[0]}"
