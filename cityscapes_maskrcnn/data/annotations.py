"""Convert the official annotation files of a split to Detectron2's dataset dicts.

Gives what ``detectron2.data.datasets.cityscapes`` gives, down to the last digit (the same GEOS
operations in the same order on the same numbers), without Detectron2 and through a cache, so that
a split is parsed once and not at every start of every process.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from cityscapes_maskrcnn.data.cache import Record, Source, cache_file, file_stamp, load_records
from cityscapes_maskrcnn.data.images import MAX_PIXELS, read_image_size
from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS, Label, resolve_label
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, find_images, require_folder
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_file

# The largest official file has less than a megabyte, and coordinates a little outside the image.
_MAX_BYTES: Final = 10_000_000
_MAX_COORDINATE: Final = 1_000_000
_MAX_OBJECTS: Final = 20_000
# See _work: two seconds of GEOS for a tangle, for 700 objects side by side or 13,000 in one place.
_MAX_WORK: Final = 4_000_000

XYXY_ABS: Final = 0  # detectron2.structures.BoxMode.XYXY_ABS, an IntEnum, is equal to it

#: The fields of a record of :func:`read_instances`, for n objects of p polygons of c numbers.
NO_INSTANCES: Final[Record] = {
    "size": np.zeros(0, np.int64),  # (2,): height and width of the image in pixels
    "categories": np.zeros(0, np.int64),  # (n,): contiguous class ids
    "crowds": np.zeros(0, bool),  # (n,): whether an object is a group
    "boxes": np.zeros((0, 4)),  # (n, 4): x0, y0, x1, y1 in absolute pixel coordinates
    "polygon_counts": np.zeros(0, np.int64),  # (n,): polygons of every object
    "polygon_sizes": np.zeros(0, np.int64),  # (p,): numbers (twice the points) of every polygon
    "coordinates": np.zeros(0),  # (c,): x0, y0, x1, y1, ... of one polygon after another
}

Selection = Callable[[Sequence[str]], Sequence[str]]
DatasetDict = dict[str, Any]


class AnnotatedObject(NamedTuple):
    """An object of an annotation file.

    Attributes:
        place: index in the file's list of objects.
        label: the official label.
        is_group: whether it stands for several objects of its label.
        points: shape (points, 2), dtype float32: the vertices, in pixel indices.
    """

    place: int
    label: Label
    is_group: bool
    points: npt.NDArray[np.float32]


def load_instances(
    image_dir: str,
    gt_dir: str,
    kind: str = "gtFine",
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    image_suffix: str = IMAGE_SUFFIX,
) -> list[DatasetDict]:
    """Load images with their instances, as polygons, from ``*_gtFine_polygons.json``.

    The values equal those of Detectron2's ``load_cityscapes_instances(image_dir, gt_dir,
    from_json=True, to_polygons=True)``, with images in sorted order, except that an object with
    ``"deleted": 0`` is not deleted, as in the official scripts. One habit of that function is
    worth knowing: objects that are visible through a hole of another are not cut out of it (only
    the outer boundary of a polygon is kept).

    Args:
        image_dir: for instance ``datasets/cityscapes/leftImg8bit/train``.
        gt_dir: for instance ``datasets/cityscapes/gtFine/train``.
        kind: ``"gtFine"``, or what else stands there in the names of the annotation files.
        cities: load these city folders only; default all.
        select: given the sorted images as ``city/image.png``, returns those to load, in the order
            to load them.
        image_suffix: the end of the images' names, in the place of which annotations have theirs.

    Returns:
        One dict per image: ``file_name``, ``image_id`` (the file's name without folder),
        ``height``, ``width`` in pixels and ``annotations``, see :func:`annotation_dicts`.

    Raises:
        InputError: a folder, an image's annotation or images at all are missing, or an annotation
            is damaged or has an unknown label.
    """
    images = _select_images(image_dir, cities, select, image_suffix)
    records = load_records(
        cache_file(gt_dir, "instances"),
        folder=gt_dir,
        sources=_find_partners(images, image_dir, gt_dir, image_suffix, f"_{kind}_polygons.json"),
        read=read_instances,
        template=NO_INSTANCES,
        # The polygons come out of GEOS, whose versions may differ in the last digits.
        signature=f"instances, GEOS {shapely.geos_version_string}",
        description=f"Reading annotations of {gt_dir}",
    )
    # Many new containers and no garbage: the collector would take most of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return [
            {**_image_dict(image_dir, image, record), "annotations": annotation_dicts(record)}
            for image, record in zip(images, records, strict=True)
        ]
    finally:
        if was_enabled:
            gc.enable()


def load_semantic(
    image_dir: str,
    gt_dir: str,
    kind: str = "gtFine",
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    image_suffix: str = IMAGE_SUFFIX,
) -> list[DatasetDict]:
    """Load images with the paths of their semantic label images.

    Args:
        image_dir: for instance ``datasets/cityscapes/leftImg8bit/train_extra``.
        gt_dir: for instance ``datasets/cityscapes/gtCoarse/train_extra``.
        kind: ``"gtFine"`` or ``"gtCoarse"``, as in the names of the annotation files.
        cities: as for :func:`load_instances`.
        select: as for :func:`load_instances`.
        image_suffix: as for :func:`load_instances`.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width`` (of the label image)
        and ``sem_seg_file_name``, a ``*_labelIds.png`` with official ids. Train ids are looked up
        when the file is read, see :func:`cityscapes_maskrcnn.data.labels.train_id_lookup`.

    Raises:
        InputError: a folder, an image's label image or images at all are missing.
    """
    images = _select_images(image_dir, cities, select, image_suffix)
    sources = _find_partners(images, image_dir, gt_dir, image_suffix, f"_{kind}_labelIds.png")
    sizes = _load_sizes(gt_dir, sources)
    return [
        {**_image_dict(image_dir, image, size), "sem_seg_file_name": f"{gt_dir}/{source.name}"}
        for image, size, source in zip(images, sizes, sources, strict=True)
    ]


def load_images(
    image_dir: str,
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    image_suffix: str = IMAGE_SUFFIX,
) -> list[DatasetDict]:
    """Load images without labels; arguments and errors as for :func:`load_semantic`.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width``.
    """
    images = _select_images(image_dir, cities, select, image_suffix)
    sources = _find_partners(images, image_dir, image_dir, image_suffix, image_suffix)
    sizes = _load_sizes(image_dir, sources)
    return [_image_dict(image_dir, image, size) for image, size in zip(images, sizes, strict=True)]


def read_instances(path: str) -> Record:
    """Parse one ``*_polygons.json`` file.

    Later objects of the file lie in front of earlier ones; every instance keeps the part of its
    polygon that no later object hides.

    Returns:
        A record with the fields of :data:`NO_INSTANCES`.

    Raises:
        InputError: the file is missing, incomplete, or not what the official files look like.
    """
    height, width, objects = read_objects(path)
    check_polygons(path, objects)
    found: dict[str, list[Any]] = {name: [] for name in NO_INSTANCES}
    found["size"] = [height, width]
    things = [item.label.id in ID_TO_CONTIGUOUS for item in objects]
    first_thing = things.index(True) if any(things) else len(things)
    in_front = shapely.Polygon()
    work = sum(300.0 + 8 * len(item.points) for item in objects[first_thing:])
    # What lies behind the last thing hides no thing.
    for index, label, is_group, points in reversed(objects[first_thing:]):
        work += _work(points, in_front)
        if work > _MAX_WORK:
            raise InputError(
                f"{path}: too many or too tangled polygons, from objects[{index}] ({label.name}) "
                "on; simplify them"
            )
        try:
            # Vertices are pixel indices, hence + 0.5; the official rasteriser draws every pixel
            # that the boundary touches, hence half a pixel more on every side.
            shape = shapely.buffer(shapely.Polygon(points + 0.5), 0.5, quad_segs=4)
        except (ValueError, shapely.GEOSException) as error:
            raise InputError(
                f"{path}: objects[{index}]: the polygon of {label.name!r} is not one: {error}"
            ) from error
        if label.id in ID_TO_CONTIGUOUS:
            visible = shape.difference(in_front)
            # Lines and points, which GEOS may leave beside the polygons, have no area.
            rings = [
                shapely.get_coordinates(part.exterior)
                for part in shapely.get_parts(shapely.get_parts(visible))
                if isinstance(part, shapely.Polygon) and not part.is_empty
            ]
            if not rings:
                continue
            found["categories"].append(ID_TO_CONTIGUOUS[label.id])
            found["crowds"].append(is_group)
            found["boxes"].append(visible.bounds)
            found["polygon_counts"].append(len(rings))
            found["polygon_sizes"].extend(ring.size for ring in rings)
            found["coordinates"].extend(ring.ravel() for ring in rings)
        in_front = in_front.union(shape)
    found["coordinates"] = np.concatenate([[], *found["coordinates"]])
    return {
        name: np.asarray(found[name], empty.dtype).reshape(-1, *empty.shape[1:])
        for name, empty in NO_INSTANCES.items()
    }


def annotation_dicts(record: Record) -> list[dict[str, Any]]:
    """Turn a record of :func:`read_instances` into Detectron2's annotations.

    Returns:
        One dict per object with ``iscrowd`` (True for a group), ``category_id`` (contiguous, 0 to
        7), ``bbox`` (x0, y0, x1, y1) and ``bbox_mode`` XYXY_ABS, ``segmentation`` (polygons as x0,
        y0, x1, y1, ...). Coordinates are absolute pixels, continuous: a pixel's centre is at +0.5.
    """
    numbers = record["coordinates"].tolist()
    ends = accumulate(record["polygon_sizes"].tolist(), initial=0)
    polygons = (numbers[start:stop] for start, stop in pairwise(ends))
    return [
        {
            "iscrowd": crowd,
            "category_id": category,
            "segmentation": list(islice(polygons, count)),
            "bbox": tuple(box),
            "bbox_mode": XYXY_ABS,
        }
        for category, crowd, box, count in zip(
            record["categories"].tolist(),
            record["crowds"].tolist(),
            record["boxes"].tolist(),
            record["polygon_counts"].tolist(),
            strict=True,
        )
    ]


def map_categories(image: DatasetDict, categories: Mapping[int, int]) -> DatasetDict:
    """Keep the annotated objects of some classes, under other contiguous class ids.

    Args:
        image: a dataset dict with ``annotations``; not changed.
        categories: old to new ids; objects of other classes are left out.
    """
    kept = [each for each in image["annotations"] if each["category_id"] in categories]
    annotations = [{**each, "category_id": categories[each["category_id"]]} for each in kept]
    return {**image, "annotations": annotations}


def read_objects(path: str) -> tuple[int, int, list[AnnotatedObject]]:
    """Read and check one annotation file.

    Returns:
        See :func:`parse_objects`.

    Raises:
        InputError: the file is missing, incomplete, or not what the official files look like.
    """
    try:
        content = json.loads(read_file(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a complete JSON file ({error}); unpack it again") from error
    try:
        return parse_objects(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_objects(content: Any) -> tuple[int, int, list[AnnotatedObject]]:
    """Check the content of an annotation file.

    Returns:
        Height, width, and the objects in drawing order; without deleted ones and those without an
        official id (licence plates), which belong to no image. Their vertices are numbers, but
        perhaps no polygon, see :func:`check_polygons`.

    Raises:
        InputError: it is not what the official files hold; the message names the object.
    """
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        raise InputError("not a Cityscapes annotation: it has no list of objects")
    if len(content["objects"]) > _MAX_OBJECTS:
        raise InputError(
            f"it has {len(content['objects'])} objects; at most {_MAX_OBJECTS} are read"
        )
    height, width = content.get("imgHeight"), content.get("imgWidth")
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise InputError("imgHeight and imgWidth must be positive whole numbers")
    if height * width > MAX_PIXELS:
        raise InputError(f"imgHeight and imgWidth say more than {MAX_PIXELS} pixels")
    objects = []
    for index, entry in enumerate(content["objects"]):
        try:
            if not isinstance(entry, dict):
                raise InputError("it must have a label and a polygon")
            # Tools write "deleted": 0 too; the official painter goes by Python's idea of true.
            if entry.get("deleted"):
                continue
            label, is_group = resolve_label(entry.get("label"))
            points = _points(entry.get("polygon"))
        except InputError as error:
            raise InputError(f"objects[{index}]: {error}") from error
        if label.id >= 0:
            objects.append(AnnotatedObject(index, label, is_group, points))
    return height, width, objects


def check_polygons(path: str, objects: Sequence[AnnotatedObject]) -> None:
    """Verify that the vertices of :func:`read_objects` enclose an area.

    Raises:
        InputError: vertices are fewer than three, not pairs, not finite or far outside any image.
    """
    for index, label, _, points in objects:
        where = f"{path}: objects[{index}]: the polygon of {label.name!r}"
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
            raise InputError(f"{where} is not a list of three or more (x, y) points")
        if not (np.abs(points) <= _MAX_COORDINATE).all():  # NaN is not
            raise InputError(f"{where} has a point that is not finite or far outside any image")


def _points(polygon: Any) -> npt.NDArray[np.float32]:
    """A polygon's numbers; whether they are pairs is not checked."""
    try:
        # One long text among numbers would make NumPy store all as texts of that length.
        values = np.asarray(polygon, object) if isinstance(polygon, list) else None
    except ValueError:  # lists of different lengths
        values = None
    if values is None or not set(map(type, values.ravel())) <= {int, float}:
        points = None
    else:
        points = np.asarray(polygon)
    # Whole numbers of more than 64 bits are none here.
    if points is None or points.dtype.kind not in "iuf":
        raise InputError("its polygon must be a list of (x, y) points, two numbers each")
    with np.errstate(over="ignore"):  # to infinity, which is no coordinate
        return points.astype(np.float32)


def _work(points: npt.NDArray[np.float32], in_front: shapely.Geometry) -> float:
    """Estimate what GEOS has to do for one more polygon, in vertices that it visits.

    It visits everything in front, and calculates where edges cross, which of a tangled polygon of
    2,000 vertices are half a million: 20 seconds and a gigabyte.
    """
    num_in_front = shapely.get_num_coordinates(in_front)
    work = 0.75 * num_in_front
    if len(points) > 64:
        work += 16 * _close_pairs(points, points)
    if len(points) * num_in_front > 2**20:
        work += 48 * _close_pairs(points, shapely.get_coordinates(in_front))
    return work


def _close_pairs(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Count pairs of edges, one of each outline, whose bounding boxes are less than a pixel apart.

    Of long outlines a sample of the edges is looked at.
    """
    (low_1, high_1), (low_2, high_2) = _sampled_edges(first), _sampled_edges(second)
    close = np.ones((low_1.shape[1], low_2.shape[1]), bool)
    for axis in range(2):
        close &= low_1[axis][:, None] <= high_2[axis]
        close &= low_2[axis] <= high_1[axis][:, None]
    return float(close.mean()) * len(first) * len(second)


def _sampled_edges(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lower and upper corners, shape (2, 2, edges), of boxes half a pixel around some edges."""
    start: npt.NDArray[Any] = np.arange(len(points))
    if len(points) > 512:
        # Not every n-th: an outline may go to and fro in that rhythm.
        start = np.random.default_rng(0).integers(len(points), size=512)
    ends = np.stack([points[start], points[start - 1]])
    return np.stack([ends.min(axis=0).T - 0.5, ends.max(axis=0).T + 0.5])


def _select_images(
    image_dir: str, cities: Sequence[str] | None, select: Selection | None, image_suffix: str
) -> Sequence[str]:
    """``city/image.png`` for every image to load, in order."""
    images = find_images(image_dir, cities, image_suffix)
    return select(images) if select else images


def _image_dict(image_dir: str, image: str, record: Record) -> DatasetDict:
    """The fields of a dataset dict that every task has."""
    height, width = record["size"].tolist()
    return {
        "file_name": f"{image_dir}/{image}",
        "image_id": image.partition("/")[2],
        "height": height,
        "width": width,
    }


def _find_partners(
    images: Sequence[str], image_dir: str, folder: str, image_suffix: str, suffix: str
) -> list[Source]:
    """The file that belongs to every image, in another folder and with another suffix."""
    require_folder(folder)
    sources = []
    for image in images:
        name = image.removesuffix(image_suffix) + suffix
        try:
            sources.append(Source(name, file_stamp(f"{folder}/{name}")))
        except OSError as error:
            raise InputError(
                f"{image_dir}/{image}: this image has no annotation {folder}/{name} "
                f"({error.strerror})"
            ) from error
    return sources


def _load_sizes(folder: str, sources: list[Source]) -> list[Record]:
    """Sizes of image files, through the cache."""
    return load_records(
        cache_file(folder, "sizes"),
        folder=folder,
        sources=sources,
        read=_read_size,
        template={"size": np.zeros(0, np.int64)},  # (2,): height and width in pixels
        signature="sizes",
        description=f"Reading image sizes of {folder}",
    )


def _read_size(path: str) -> Record:
    return {"size": np.array(read_image_size(path))}
