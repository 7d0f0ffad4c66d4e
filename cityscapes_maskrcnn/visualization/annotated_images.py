"""Annotated images: sampled from a registered dataset, or found by the path of an image."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog

from cityscapes_maskrcnn.data.annotations import annotation_dicts, read_instances
from cityscapes_maskrcnn.data.images import read_image, read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.data.registration import check_dataset_names
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.drawing import draw_ground_truth, draw_semantic_labels


def sample_dataset(name: str, size: int | None, seed: int) -> tuple[list[dict[str, Any]], Any]:
    """Take a random sample of the records of a registered dataset.

    Args:
        name: of the dataset.
        size: number of records; None: all.
        seed: of the sample.

    Returns:
        The records, in the order of the dataset, and the dataset's metadata.

    Raises:
        InputError: no such dataset, it has no labels, ``size`` is less than 1, or its files are
            missing or damaged.
    """
    check_dataset_names([name])
    if size is not None and size < 1:
        raise InputError(f"--num-images {size}: it must be at least 1")
    records = DatasetCatalog.get(name)
    if not any("annotations" in record or "sem_seg_file_name" in record for record in records):
        raise InputError(f"{name} has images but no labels, so there is nothing to draw")
    if size is not None and size < len(records):
        chosen = random.Random(seed).sample(range(len(records)), size)
        records = [records[index] for index in sorted(chosen)]
    return records, MetadataCatalog.get(name)


def ground_truth_of(image_file: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the annotation of an image that lies in a Cityscapes tree.

    Args:
        image_file: such as ``.../leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png``.

    Returns:
        A record in Detectron2's format (``height``, ``width``, ``annotations``) read from the
        partner below ``gtFine``; None where the image lies elsewhere, has no partner, or is of the
        test split, whose official annotation files hold no objects.

    Raises:
        InputError: the annotation is damaged.
    """
    parts = Path(image_file).absolute().parts
    if parts[-4:-3] != ("leftImg8bit",):
        return None
    *tree, _, split, city, name = parts
    name = name.removesuffix(IMAGE_SUFFIX) + "_gtFine_polygons.json"
    annotation_file = Path(*tree, "gtFine", split, city, name)
    if split == "test" or not annotation_file.is_file():
        return None
    record = read_instances(str(annotation_file))
    height, width = record["size"].tolist()
    return {"height": height, "width": width, "annotations": annotation_dicts(record)}


def draw_record(record: dict[str, Any], metadata: Any) -> npt.NDArray[np.uint8]:
    """Draw the instances of a record, or the semantic labels of one that has those instead.

    Args:
        record: in Detectron2's format; a ``sem_seg_file_name`` is an official ``*_labelIds.png``.
        metadata: of the dataset.

    Returns:
        The picture, shape (H, W, 3), uint8, RGB.

    Raises:
        InputError: a file is missing, damaged, or of another size than the record's.
    """
    image = read_image(record["file_name"], "RGB")
    check_size(record["file_name"], image, record)
    if "annotations" in record:
        return draw_ground_truth(image, record, metadata)
    label_ids = read_label_image(record["sem_seg_file_name"])
    check_size(record["sem_seg_file_name"], label_ids, record)
    return draw_semantic_labels(image, train_id_lookup()[label_ids], metadata)


def check_size(file_name: str, pixels: npt.NDArray[np.uint8], record: dict[str, Any]) -> None:
    """Raise an InputError unless an image is as large as its record says."""
    height, width = pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise InputError(
            f"{file_name} is {width}x{height} pixels, but its annotation is for "
            f"{record['width']}x{record['height']}; both must come from the same release"
        )
