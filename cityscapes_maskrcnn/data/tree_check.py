"""Check that a Cityscapes tree is complete and undamaged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from cityscapes_maskrcnn.data.annotation_files import check_polygons, read_objects
from cityscapes_maskrcnn.data.annotations import IMAGE_SUFFIX, require_folder
from cityscapes_maskrcnn.data.images import read_png_size
from cityscapes_maskrcnn.data.labels import LABELS
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

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
        note: why a split that is not there is no problem, or empty.
        subset: there are problems that ``allow_subset`` would accept.
    """

    name: str
    images: int
    annotations: int
    official: int
    problems: tuple[str, ...]
    note: str = ""
    subset: bool = False


def tree_folder(root: str | os.PathLike[str]) -> Path:
    """The folder with ``leftImg8bit``: ``root/cityscapes``, or ``root`` if it is that itself.

    Raises:
        InputError: neither is there.
    """
    root = Path(root)
    folder = root if (root / "leftImg8bit").is_dir() else root / "cityscapes"
    require_folder(folder)
    return folder


def check_tree(
    folder: Path, allow_subset: bool = False, num_workers: int | None = None
) -> list[SplitCheck]:
    """Read every file of a Cityscapes tree.

    Args:
        folder: holds ``leftImg8bit``, ``gtFine`` and perhaps ``gtCoarse``.
        allow_subset: accept fewer images than the official release has, and other sizes than
            1024x2048: parts of the data, and generated data.
        num_workers: processes; default one per core.

    Returns:
        One entry per split of the official release.

    Raises:
        InputError: there are no images at all.
    """
    checks = [_check_split(folder, split, allow_subset, num_workers) for split in _SPLITS]
    if not any(check.images for check in checks):
        raise InputError(f"{folder}: no images; expected leftImg8bit/SPLIT/CITY/*{IMAGE_SUFFIX}")
    return checks


def format_checks(checks: Sequence[SplitCheck], most: int = 10) -> str:
    """Write a table of splits, and below it the first ``most`` problems of each."""
    lines = [f"{'split':<21}{'images':>8}{'annotations':>13}{'official':>10}  result"]
    details = []
    for check in checks:
        count = len(check.problems)
        result = f"{count} problem{'s' * (count > 1)}" if count else check.note or "ok"
        counts = f"{check.images:>8}{check.annotations:>13}{check.official:>10}"
        lines.append(f"{check.name:<21}{counts}  {result}")
        if count:
            details += ["", f"{check.name}:", *(f"  {text}" for text in check.problems[:most])]
            details += [f"  ... and {count - most} more"] * (count > most)
    return "\n".join(lines + details)


def _check_split(
    folder: Path, split: _Split, allow_subset: bool, num_workers: int | None
) -> SplitCheck:
    """Count, pair and read the files of one split."""
    image_dir, gt_dir = folder / "leftImg8bit" / split.name, folder / split.kind / split.name
    suffixes = [f"_{split.kind}_{end}" for end in ("polygons.json", "labelIds.png")]
    suffixes.append(f"_{split.kind}_instanceIds.png")
    images = _stems(image_dir, IMAGE_SUFFIX)
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
            return result._replace(problems=(f"not there; unpack {split.packages}",), subset=True)
        return result._replace(note=f"not there (only needed for some jobs: {split.packages})")
    needed = suffixes if annotated or split.name != "test" else []

    problems = []
    if not allow_subset and len(images) != split.images:
        problems.append(f"{len(images)} images where the official release has {split.images}")
    for stem in sorted(images | annotated):
        missing = [suffix for suffix in needed if stem not in annotations[suffix]]
        if stem not in images:
            problems.append(f"{stem}: an annotation without image {image_dir}/{stem}{IMAGE_SUFFIX}")
        elif missing:
            problems.append(f"{stem}: no annotation {', '.join(missing)} in {gt_dir}")
    read = partial(
        _check_files,
        image_dir=image_dir,
        gt_dir=gt_dir,
        suffixes=needed,
        check_image=not shares_images,
        size=None if allow_subset else OFFICIAL_SIZE,
    )
    found = map_in_parallel(read, sorted(images), f"Checking {result.name}", num_workers)
    others = [other_size for _, other_size in found if other_size]
    if others:
        # One cause, however many images: a line for each would hide the rest.
        first = f", the first: {others[0]}" if len(others) > 1 else f": {others[0]}"
        problems.append(f"{len(others)} images are not {_text(OFFICIAL_SIZE)} pixels{first}")
    return result._replace(
        problems=(*problems, *(text for in_files, _ in found for text in in_files)),
        subset=not allow_subset and (bool(others) or len(images) != split.images),
    )


def _stems(folder: Path, suffix: str) -> set[str]:
    """``city/name`` without suffix of the files below a folder, which need not exist."""
    files = folder.glob(f"[!.]*/[!.]*{suffix}")
    return {f"{file.parent.name}/{file.name.removesuffix(suffix)}" for file in files}


def _check_files(
    stem: str,
    *,
    image_dir: Path,
    gt_dir: Path,
    suffixes: Sequence[str],
    check_image: bool,
    size: tuple[int, int] | None,
) -> tuple[list[str], str]:
    """Read one image and those of its annotation files that exist.

    Args:
        stem: city and name of the image.
        image_dir: the split's images.
        gt_dir: the split's annotations.
        suffixes: of the annotation files.
        check_image: False: take the image's size from its header and do not read the rest.
        size: height and width the image must have; None: any.

    Returns:
        Problems, one line each, and the name and size of an undamaged image that is not of the
        official size, or an empty string.
    """
    image = f"{image_dir}/{stem}{IMAGE_SUFFIX}"
    problems = []
    expected, other_size = None, ""
    try:
        expected = _check_image(image) if check_image else read_png_size(image)
        if size is not None and expected != size:
            other_size = f"{image} ({_text(expected)})"
    except InputError as error:
        problems.append(str(error))
    for path in [f"{gt_dir}/{stem}{suffix}" for suffix in suffixes]:
        if not Path(path).exists():
            continue
        try:
            found = _check_polygons(path) if path.endswith(".json") else _check_ids(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if expected is not None and found != expected:
            problems.append(f"{path}: {_text(found)} pixels, but its image is {_text(expected)}")
    return problems, other_size


def _check_polygons(path: str) -> tuple[int, int]:
    """Height and width of a valid annotation."""
    height, width, objects = read_objects(path)
    if "_gtFine_" in path:  # of the coarse annotations only label images are read
        check_polygons(path, objects)
    return height, width


def _check_image(path: str) -> tuple[int, int]:
    """Height and width of an image of which every byte agrees with its checksums."""
    with _open_png(path) as image:
        (width, height), mode = image.size, image.mode
        image.verify()
    if mode != "RGB":
        raise InputError(f"{path}: an 8 bit RGB image is expected, not mode {mode}")
    return height, width


def _check_ids(path: str) -> tuple[int, int]:
    """Height and width of a label or instance image that holds official ids only."""
    with _open_png(path) as image:
        ids = np.asarray(image)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"{path}: one channel of whole numbers is expected")
    known = {label.id for label in LABELS if label.id >= 0}
    if path.endswith("_instanceIds.png"):
        # Instance k of label l is l * 1000 + k; regions without instances have the label's id.
        things = {label.id for label in LABELS if label.hasInstances}
        values = np.unique(ids).tolist()
        unknown = [v for v in values if v not in known and (v < 1000 or v // 1000 not in things)]
    else:
        unknown = sorted(set(np.unique(ids).tolist()) - known)
    if unknown:
        raise InputError(f"{path}: unknown ids {unknown[:5]}")
    return ids.shape[0], ids.shape[1]


@contextmanager
def _open_png(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    # What Pillow raises for files that are no images, or claim to have any number of pixels.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a whole PNG file ({error}); unpack it again") from error


def _text(size: tuple[int, int]) -> str:
    """Width x height, the usual order in text."""
    return f"{size[1]}x{size[0]}"
