"""From the official annotation files to Detectron2's dataset dicts.

Gives what ``detectron2.data.datasets.cityscapes`` gives (number for number), without Detectron2 and
through a cache, so that a split is parsed once and not at every start of every process.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import shapely

from cityscapes_maskrcnn.data.annotation_cache import Source, Table, load_table
from cityscapes_maskrcnn.data.annotation_files import read_instances, read_size
from cityscapes_maskrcnn.data.array_cache import cache_file
from cityscapes_maskrcnn.utils.errors import InputError

XYXY_ABS: Final = 0  # detectron2.structures.BoxMode.XYXY_ABS, an IntEnum, is equal to it
IMAGE_SUFFIX: Final = "_leftImg8bit.png"

Selection = Callable[[Sequence[str]], Sequence[str]]
DatasetDict = dict[str, Any]


def dataset_root() -> str:
    """The folder that holds ``cityscapes/``: ``$DETECTRON2_DATASETS``, else ``./datasets``."""
    return str(Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser())


def load_instances(
    image_dir: str,
    gt_dir: str,
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    num_workers: int | None = None,
) -> list[DatasetDict]:
    """Load images with their instances, as polygons, from ``*_gtFine_polygons.json``.

    The values equal those of Detectron2's ``load_cityscapes_instances(image_dir, gt_dir,
    from_json=True, to_polygons=True)``, with images in sorted order. Two habits of that function
    are worth knowing: an object with a ``deleted`` field is skipped whatever the field says, and
    objects that are visible through a hole of another are not cut out of it (only the outer
    boundary of a polygon is kept).

    Args:
        image_dir: for instance ``datasets/cityscapes/leftImg8bit/train``.
        gt_dir: for instance ``datasets/cityscapes/gtFine/train``.
        cities: take these city folders only; default all.
        select: given the sorted image ids, returns those to load, in the order to load them.
        num_workers: processes for parsing what the cache does not have; default one per core.

    Returns:
        One dict per image: ``file_name``, ``image_id`` (the file's name without folder),
        ``height``, ``width`` in pixels and ``annotations``, a list of dicts with ``iscrowd`` (True
        for a group), ``category_id`` (contiguous, 0 to 7), ``bbox`` (x0, y0, x1, y1) and
        ``bbox_mode`` XYXY_ABS, ``segmentation`` (polygons as x0, y0, x1, y1, ...). Coordinates are
        absolute pixels, continuous: a pixel's centre is at +0.5.

    Raises:
        InputError: a folder, an image's annotation or images at all are missing, or an annotation
            is damaged or has an unknown label.
    """
    images = find_images(image_dir, cities)
    sources = _sources(images, gt_dir, image_dir, "_gtFine_polygons.json")
    table = load_table(
        cache_file(f"{_split_name(gt_dir)}-instances", [image_dir, gt_dir, *(cities or [])]),
        gt_dir,
        sources,
        read_instances,
        # The polygons come out of GEOS, whose versions may differ in the last digits.
        f"instances, GEOS {shapely.geos_version_string}",
        f"Reading annotations of {_split_name(gt_dir)}",
        num_workers,
    )
    with _no_garbage_collection():
        dicts = _image_dicts(image_dir, images, table, select)
        positions = {image_id(image): index for index, image in enumerate(images)}
        chosen = [positions[image["image_id"]] for image in dicts]
        for image, annotations in zip(dicts, _annotation_dicts(table, chosen), strict=True):
            image["annotations"] = annotations
    return dicts


def load_semantic(
    image_dir: str,
    gt_dir: str,
    kind: str = "gtFine",
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    num_workers: int | None = None,
) -> list[DatasetDict]:
    """Load images with the paths of their semantic label images.

    Args:
        image_dir: for instance ``datasets/cityscapes/leftImg8bit/train_extra``.
        gt_dir: for instance ``datasets/cityscapes/gtCoarse/train_extra``.
        kind: ``"gtFine"`` or ``"gtCoarse"``, as in the names of the annotation files.
        cities: take these city folders only; default all.
        select: given the sorted image ids, returns those to load.
        num_workers: processes for reading image sizes the cache does not have.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width`` (of the label image)
        and ``sem_seg_file_name``, a ``*_labelIds.png`` with official ids. Train ids are looked up
        when the file is read, see :func:`cityscapes_maskrcnn.data.labels.train_id_lookup`.

    Raises:
        InputError: a folder, an image's label image or images at all are missing.
    """
    images = find_images(image_dir, cities)
    sources = _sources(images, gt_dir, image_dir, f"_{kind}_labelIds.png")
    folders = [image_dir, gt_dir, *(cities or [])]
    table = _load_sizes(gt_dir, sources, f"{_split_name(gt_dir)}-sizes", folders, num_workers)
    labels = dict(zip(map(image_id, images), sources, strict=True))
    dicts = _image_dicts(image_dir, images, table, select)
    for image in dicts:
        image["sem_seg_file_name"] = _join(gt_dir, labels[image["image_id"]].name)
    return dicts


def load_images(
    image_dir: str,
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    num_workers: int | None = None,
) -> list[DatasetDict]:
    """Load images without labels; arguments and errors as for :func:`load_semantic`.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width``.
    """
    images = find_images(image_dir, cities)
    sources = _sources(images, image_dir, image_dir, IMAGE_SUFFIX)
    folders = [image_dir, *(cities or [])]
    table = _load_sizes(image_dir, sources, f"{_split_name(image_dir)}-sizes", folders, num_workers)
    return _image_dicts(image_dir, images, table, select)


def find_images(image_dir: str, cities: Sequence[str] | None = None) -> list[str]:
    """List the images of a split.

    Args:
        image_dir: folder that holds one folder per city.
        cities: look into these city folders only; default all.

    Returns:
        ``city/image.png`` for every image, sorted by city, then by name.

    Raises:
        InputError: a folder or images at all are missing.
    """
    if cities is None:
        require_folder(image_dir)
        with os.scandir(image_dir) as entries:
            cities = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    images = []
    for city in sorted(set(cities)):
        require_folder(Path(image_dir, city))
        with os.scandir(Path(image_dir, city)) as entries:
            # Archives packed on a Mac leave "._aachen_..." files beside the real ones.
            names = [e.name for e in entries if e.name.endswith(IMAGE_SUFFIX) and e.name[0] != "."]
        images += [f"{city}/{name}" for name in sorted(names)]
    ids = Counter(map(image_id, images))
    if len(ids) != len(images):
        twice = ids.most_common(1)[0][0]
        raise InputError(f"{image_dir}: {twice} is in several city folders; keep one of them")
    if not images:
        raise InputError(f"{image_dir}: no images; expected CITY/*{IMAGE_SUFFIX} in it {_HELP}")
    return images


_HELP: Final = (
    "(set DETECTRON2_DATASETS to the folder that holds cityscapes/; datasets/README.md shows the "
    "expected tree and where to get the data)"
)


def image_id(image: str) -> str:
    """What identifies an image: its file name without folders, as in Detectron2."""
    return image.rpartition("/")[2]


def _join(folder: str, name: str) -> str:
    """Path of a file as Detectron2 writes it: ``folder`` stays as it was given."""
    return os.path.join(folder, name)  # noqa: PTH118, pathlib would tidy the folder up


def require_folder(path: str | Path) -> None:
    """Raise an InputError that names the first folder missing on the way to ``path``."""
    if Path(path).is_dir():
        return
    missing = Path(path)
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    place = "" if missing == Path(path) else f", on the way to {path}"
    raise InputError(f"{missing}: no such folder{place} {_HELP}")


def _split_name(folder: str) -> str:
    """``gtFine-train`` for ``.../gtFine/train``."""
    return "-".join(Path(folder).absolute().parts[-2:])


def _sources(images: Sequence[str], folder: str, image_dir: str, suffix: str) -> list[Source]:
    """The file that belongs to every image, in another folder and with another suffix."""
    require_folder(folder)
    sources: list[Source] = []
    status: dict[str, os.stat_result] = {}
    for city in sorted({image.partition("/")[0] for image in images}):
        if Path(folder, city).is_dir():
            with os.scandir(Path(folder, city)) as entries:
                status.update(
                    {
                        f"{city}/{e.name}": e.stat()
                        for e in entries
                        if e.name.endswith(suffix) and e.is_file()
                    }
                )
    for image in images:
        name = image.removesuffix(IMAGE_SUFFIX) + suffix
        if name not in status:
            raise InputError(
                f"{_join(image_dir, image)}: this image has no annotation; expected "
                f"{_join(folder, name)}"
            )
        sources.append(Source(name, status[name].st_size, status[name].st_mtime_ns))
    return sources


def _load_sizes(
    folder: str, sources: list[Source], name: str, folders: list[str], num_workers: int | None
) -> Table:
    """Sizes of PNG files, through the cache."""
    return load_table(
        cache_file(name, folders),
        folder,
        sources,
        read_size,
        "sizes",
        f"Reading image sizes of {name.removesuffix('-sizes')}",
        num_workers,
    )


def _image_dicts(
    image_dir: str, images: Sequence[str], table: Table, select: Selection | None
) -> list[DatasetDict]:
    """The part of the dataset dicts that every task has, for the selected images."""
    dicts = {
        image_id(image): {
            "file_name": _join(image_dir, image),
            "image_id": image_id(image),
            "height": height,
            "width": width,
        }
        for image, height, width in zip(
            images, table.heights.tolist(), table.widths.tolist(), strict=True
        )
    }
    return list(dicts.values()) if select is None else [dicts[i] for i in select(list(dicts))]


def _annotation_dicts(table: Table, chosen: Sequence[int]) -> Iterator[list[DatasetDict]]:
    """The annotations of the images at some positions of the table."""
    object_ends, polygon_ends, number_ends = (ends.tolist() for ends in table.ends())
    categories, crowds = table.categories.tolist(), table.crowds.tolist()
    boxes, coordinates = table.boxes.tolist(), table.coordinates
    for image in chosen:
        yield [
            {
                "iscrowd": crowds[i],
                "category_id": categories[i],
                "segmentation": [
                    coordinates[number_ends[j] : number_ends[j + 1]].tolist()
                    for j in range(polygon_ends[i], polygon_ends[i + 1])
                ],
                "bbox": tuple(boxes[i]),
                "bbox_mode": XYXY_ABS,
            }
            for i in range(object_ends[image], object_ends[image + 1])
        ]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Many new containers and no garbage: the collector would only walk over them repeatedly."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
