"""Reading training images: this project's mapper against Detectron2's, on one core, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image as read_with_detectron2
from PIL import Image

from cityscapes_maskrcnn.benchmarks.clock import median_times
from cityscapes_maskrcnn.benchmarks.evaluation import cache_in
from cityscapes_maskrcnn.benchmarks.loading import draw_polygon
from cityscapes_maskrcnn.benchmarks.rows import Row, device_name
from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.images import read_image
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.utils.errors import InputError

_HEIGHT, _WIDTH = 1024, 2048
_OBJECTS = 30


def benchmark_mapper(*, config_file: str, small: bool) -> list[Row]:
    """Map the same images with both, with the same random numbers, and compare what they give.

    Args:
        config_file: of stage 1, whose augmentations both use.
        small: fewer images and repeats; their size is that of Cityscapes' anyway.

    Returns:
        The rows, in images a second on one core.

    Raises:
        InputError: the mappers differ.
    """
    images, repeats = (2, 3) if small else (8, 9)
    with (
        tempfile.TemporaryDirectory(prefix="benchmark_mapper_") as name,
        cache_in(Path(name) / "cache"),
        _one_thread(),
    ):
        records = [_write_image(Path(name), number) for number in range(images)]
        megabytes = [Path(each["file_name"]).stat().st_size / 1e6 for each in records]
        stock = DatasetMapper(_config(config_file), True)
        ours = {
            "fast resize": CityscapesMapper(_config(config_file, RESIZE="fast"), True),
            "exact": CityscapesMapper(_config(config_file, RESIZE="exact"), True),
            "fast resize, decoded images cached": CityscapesMapper(
                _config(config_file, RESIZE="fast", CACHE="disk"), True
            ),
        }
        for record in records:
            expected = _seeded(stock, record)
            for title, mapper in ours.items():
                _compare(title, _seeded(mapper, record), expected)
        works: dict[Hashable, Callable[[], object]] = {
            "stock": partial(_map_all, stock, records),
            "stock decoding": partial(_decode_all, read_with_detectron2, records),
            "decoding": partial(_decode_all, read_image, records),
        }
        for title, mapper in ours.items():
            works[title] = partial(_map_all, mapper, records)
        ms = median_times(works, blocks=repeats, calls=1)
        device = device_name(torch.device("cpu"))
    speed = {title: 1000 * images / each for title, each in ms.items()}
    note = f"PNGs of {min(megabytes):.1f} to {max(megabytes):.1f} MB, {_OBJECTS} objects"
    rows = [("decoding", speed["decoding"], speed["stock decoding"])]
    rows += [(f"mapper, {title}", speed[title], speed["stock"]) for title in ours]
    return [
        Row(name=title, device=device, ours=one, stock=other, unit="images/s", note=note)
        for title, one, other in rows
    ]


def _config(config_file: str, **keys: str) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.merge_from_file(config_file)
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return cfg


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch and OpenCV compute in one thread, as in a worker process of a loader."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _write_image(folder: Path, number: int) -> dict[str, Any]:
    """Write a PNG as large as those of Cityscapes: areas, edges, and the noise of a camera."""
    random = np.random.default_rng(number)
    coarse = random.integers(20, 200, size=(32, 64, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC).astype(float)
    polygons = [draw_polygon(random) for _ in range(_OBJECTS)]
    for polygon in polygons:
        colour = [int(value) for value in random.integers(200, size=3)]
        cv2.fillPoly(picture, [np.array(polygon)], colour)
    noise = random.normal(0, 4 + 5 * (number % 4), size=picture.shape)
    picture += cv2.GaussianBlur(noise, (0, 0), 0.7)
    path = folder / f"ulm_{number:06d}_000019_leftImg8bit.png"
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return {
        "file_name": str(path),
        "height": _HEIGHT,
        "width": _WIDTH,
        "image_id": number,
        "annotations": [
            {
                "iscrowd": 0,
                "category_id": index % 8,
                "bbox": (*np.min(polygon, axis=0).tolist(), *np.max(polygon, axis=0).tolist()),
                "bbox_mode": 0,
                "segmentation": [[float(value) for point in polygon for value in point]],
            }
            for index, polygon in enumerate(polygons)
        ],
    }


def _seeded(mapper: DatasetMapper, record: dict[str, Any]) -> dict[str, Any]:
    # Detectron2's augmentations draw from it.
    np.random.seed(record["image_id"])  # noqa: NPY002
    mapped: dict[str, Any] = mapper(record)
    return mapped


def _map_all(mapper: DatasetMapper, records: list[dict[str, Any]]) -> None:
    for record in records:
        _seeded(mapper, record)


def _decode_all(read: Callable[[str, str], Any], records: list[dict[str, Any]]) -> None:
    for record in records:
        np.ascontiguousarray(read(record["file_name"], "RGB"))


def _compare(title: str, ours: dict[str, Any], stock: dict[str, Any]) -> None:
    levels = 0 if title == "exact" else 2
    image, expected = ours["image"].int(), stock["image"].int()
    boxes, expected_boxes = (each["instances"].gt_boxes.tensor for each in (ours, stock))
    same = image.shape == expected.shape and torch.equal(boxes, expected_boxes)
    if not same or (image - expected).abs().max() > levels:
        raise InputError(f"{title}: the mappers differ, so that the times say nothing")
