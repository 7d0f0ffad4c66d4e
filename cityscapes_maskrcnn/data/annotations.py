"""From the official annotation files of a split to Detectron2's dataset dicts.

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

import numpy as np
import shapely

from cityscapes_maskrcnn.data.annotation_files import (
    NO_INSTANCES,
    annotation_dicts,
    read_instances,
)
from cityscapes_maskrcnn.data.cache import Record, Source, cache_file, load_records
from cityscapes_maskrcnn.data.images import read_png_size
from cityscapes_maskrcnn.utils.errors import InputError

IMAGE_SUFFIX: Final = "_leftImg8bit.png"

_NO_SIZE: Final[Record] = {"size": np.zeros(0, np.int64)}  # (2,): height and width in pixels
_HELP: Final = (
    "(set DETECTRON2_DATASETS to the folder that holds cityscapes/; datasets/README.md shows the "
    "expected tree and where to get the data)"
)

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
        cities: load these city folders only; default all.
        select: given the sorted image ids, returns those to load, in the order to load them.
        num_workers: processes for parsing what the cache does not have; default one per core.

    Returns:
        One dict per image: ``file_name``, ``image_id`` (the file's name without folder),
        ``height``, ``width`` in pixels and ``annotations``, see
        :func:`~cityscapes_maskrcnn.data.annotation_files.annotation_dicts`.

    Raises:
        InputError: a folder, an image's annotation or images at all are missing, or an annotation
            is damaged or has an unknown label.
    """
    images = _select_images(image_dir, cities, select)
    records = load_records(
        cache_file(gt_dir, "instances"),
        folder=gt_dir,
        sources=_find_partners(images, image_dir, gt_dir, "_gtFine_polygons.json"),
        read=read_instances,
        template=NO_INSTANCES,
        # The polygons come out of GEOS, whose versions may differ in the last digits.
        signature=f"instances, GEOS {shapely.geos_version_string}",
        description=f"Reading annotations of {gt_dir}",
        num_workers=num_workers,
    )
    with _no_garbage_collection():
        return [
            {**_image_dict(image_dir, image, record), "annotations": annotation_dicts(record)}
            for image, record in zip(images, records, strict=True)
        ]


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
        cities: load these city folders only; default all.
        select: given the sorted image ids, returns those to load, in the order to load them.
        num_workers: processes for reading image sizes the cache does not have.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width`` (of the label image)
        and ``sem_seg_file_name``, a ``*_labelIds.png`` with official ids. Train ids are looked up
        when the file is read, see :func:`cityscapes_maskrcnn.data.labels.train_id_lookup`.

    Raises:
        InputError: a folder, an image's label image or images at all are missing.
    """
    images = _select_images(image_dir, cities, select)
    sources = _find_partners(images, image_dir, gt_dir, f"_{kind}_labelIds.png")
    sizes = _load_sizes(gt_dir, sources, num_workers)
    return [
        {**_image_dict(image_dir, image, size), "sem_seg_file_name": _join(gt_dir, source.name)}
        for image, size, source in zip(images, sizes, sources, strict=True)
    ]


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
    images = _select_images(image_dir, cities, select)
    sources = _find_partners(images, image_dir, image_dir, IMAGE_SUFFIX)
    sizes = _load_sizes(image_dir, sources, num_workers)
    return [_image_dict(image_dir, image, size) for image, size in zip(images, sizes, strict=True)]


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
    if not images:
        raise InputError(f"{image_dir}: no images; expected CITY/*{IMAGE_SUFFIX} in it {_HELP}")
    name, count = Counter(map(_image_id, images)).most_common(1)[0]
    if count > 1:
        raise InputError(f"{image_dir}: {name} is in several city folders; keep one of them")
    return images


def require_folder(path: str | Path) -> None:
    """Raise an InputError that names the first folder missing on the way to ``path``."""
    if Path(path).is_dir():
        return
    missing = Path(path)
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    place = "" if missing == Path(path) else f", on the way to {path}"
    raise InputError(f"{missing}: no such folder{place} {_HELP}")


def _image_id(image: str) -> str:
    """The id of an image: its file name without folders, as in Detectron2."""
    return image.rpartition("/")[2]


def _join(folder: str, name: str) -> str:
    """Path of a file as Detectron2 writes it: ``folder`` stays as it was given."""
    return os.path.join(folder, name)  # noqa: PTH118, pathlib would tidy the folder up


def _select_images(
    image_dir: str, cities: Sequence[str] | None, select: Selection | None
) -> list[str]:
    """``city/image.png`` for every image to load, in order."""
    images = find_images(image_dir, cities)
    if select is None:
        return images
    by_id = {_image_id(image): image for image in images}
    return [by_id[image_id] for image_id in select(list(by_id))]


def _image_dict(image_dir: str, image: str, record: Record) -> DatasetDict:
    """The fields of a dataset dict that every task has."""
    height, width = record["size"].tolist()
    return {
        "file_name": _join(image_dir, image),
        "image_id": _image_id(image),
        "height": height,
        "width": width,
    }


def _find_partners(images: Sequence[str], image_dir: str, folder: str, suffix: str) -> list[Source]:
    """The file that belongs to every image, in another folder and with another suffix."""
    require_folder(folder)
    status: dict[str, os.stat_result] = {}
    for city in {image.partition("/")[0] for image in images}:
        if Path(folder, city).is_dir():
            with os.scandir(Path(folder, city)) as entries:
                files = [e for e in entries if e.name.endswith(suffix) and e.is_file()]
                status.update({f"{city}/{e.name}": e.stat() for e in files})
    sources = []
    for image in images:
        name = image.removesuffix(IMAGE_SUFFIX) + suffix
        if name not in status:
            raise InputError(
                f"{_join(image_dir, image)}: this image has no annotation; expected "
                f"{_join(folder, name)}"
            )
        sources.append(Source(name, f"{status[name].st_size} {status[name].st_mtime_ns}"))
    return sources


def _load_sizes(folder: str, sources: list[Source], num_workers: int | None) -> list[Record]:
    """Sizes of PNG files, through the cache."""
    return load_records(
        cache_file(folder, "sizes"),
        folder=folder,
        sources=sources,
        read=_read_size,
        template=_NO_SIZE,
        signature="sizes",
        description=f"Reading image sizes of {folder}",
        num_workers=num_workers,
    )


def _read_size(path: str) -> Record:
    return {"size": np.array(read_png_size(path))}


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
