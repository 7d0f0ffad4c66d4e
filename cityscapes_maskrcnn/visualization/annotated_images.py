"""Annotated images: from a registered dataset, unchanged or augmented, or found by their path."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as coco_mask
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, BoxMode

from cityscapes_maskrcnn.data.annotations import annotation_dicts, read_instances
from cityscapes_maskrcnn.data.images import check_size, read_image, read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.data.loaders import build_training_stream
from cityscapes_maskrcnn.data.registration import check_dataset_names, image_suffix_of
from cityscapes_maskrcnn.data.training_stream import TrainingStream
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, is_generated
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.drawing import (
    caption_of,
    draw_ground_truth,
    draw_semantic_labels,
    side_by_side,
)
from cityscapes_maskrcnn.visualization.style import GENERATED_SCENE


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


def ground_truth_of(
    image_file: str | os.PathLike[str], datasets: Iterable[str] = ()
) -> dict[str, Any] | None:
    """Read the annotation of an image that lies in a Cityscapes tree, or is of a named dataset.

    Args:
        image_file: such as ``.../leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png``.
        datasets: names of :func:`.register_dataset`.

    Returns:
        A record in Detectron2's format (``height``, ``width``, ``annotations``) read from the
        partner below ``gtFine``, or the dataset's ``gt_dir``; None where the image lies elsewhere,
        has no partner, or is of the test split, whose official annotation files hold no objects.

    Raises:
        InputError: the annotation is damaged.
    """
    annotation_file = _annotation_of(Path(image_file).absolute(), datasets)
    if annotation_file is None or not annotation_file.is_file():
        return None
    record = read_instances(str(annotation_file))
    height, width = record["size"].tolist()
    return {"height": height, "width": width, "annotations": annotation_dicts(record)}


def _annotation_of(image: Path, datasets: Iterable[str]) -> Path | None:
    """Name the polygons' file of an image, whether or not it is there."""
    for dataset in datasets:
        metadata, suffix = MetadataCatalog.get(dataset), image_suffix_of(dataset)
        if (
            metadata.get("gt_dir")
            and image.parent.parent == Path(metadata.image_dir).absolute()
            and image.name.endswith(suffix)
        ):
            name = f"{image.name.removesuffix(suffix)}_{metadata.gt_kind}_polygons.json"
            return Path(metadata.gt_dir, image.parent.name, name)
    parts = image.parts
    if parts[-4:-3] != ("leftImg8bit",) or parts[-3] == "test":
        return None
    *tree, _, split, city, name = parts
    name = name.removesuffix(IMAGE_SUFFIX) + "_gtFine_polygons.json"
    return Path(*tree, "gtFine", split, city, name)


def scene_mark(image_file: str | os.PathLike[str]) -> str:
    """What a picture of an image of a generated set has to say; empty for other images."""
    return GENERATED_SCENE * is_generated(Path(image_file).absolute().parent.parent)


def draw_record(record: dict[str, Any], metadata: Any) -> npt.NDArray[np.uint8]:
    """Draw the instances of a record, or the semantic labels of one that has those instead.

    Args:
        record: in Detectron2's format; a ``sem_seg_file_name`` is an official ``*_labelIds.png``.
        metadata: of the dataset.

    Returns:
        The picture below a caption, shape (H, W, 3), uint8, RGB.

    Raises:
        InputError: a file is missing, damaged, or of another size than the record's.
    """
    image = read_image(record["file_name"], "RGB")
    check_size(record["file_name"], image, record)
    if "annotations" in record:
        captioned = draw_captioned("ground truth", image, record, metadata)
        return side_by_side([captioned], scene_mark(record["file_name"]))
    label_ids = read_label_image(record["sem_seg_file_name"])
    check_size(record["sem_seg_file_name"], label_ids, record)
    picture = draw_semantic_labels(image, train_id_lookup()[label_ids], metadata)
    return side_by_side([("semantic labels", picture)], scene_mark(record["file_name"]))


def draw_captioned(
    what: str, image_rgb: npt.NDArray[np.uint8], record: dict[str, Any], metadata: Any
) -> tuple[str, npt.NDArray[np.uint8]]:
    """Draw annotated instances; returns a caption with their number, and the picture.

    Args:
        what: the caption's first words.
        image_rgb: see :func:`.drawing.draw_ground_truth`.
        record: the same.
        metadata: the same.
    """
    annotations = record["annotations"]
    num_groups = sum(bool(each.get("iscrowd", 0)) for each in annotations)
    caption = caption_of(what, len(annotations) - num_groups, num_groups)
    return caption, draw_ground_truth(image_rgb, record, metadata)


def training_examples(
    cfg: CfgNode, name: str, size: int | None, seed: int
) -> tuple[TrainingStream, int]:
    """Take the first examples of a training on a dataset, as a config augments them.

    Args:
        cfg: as for training; not changed.
        name: of the dataset.
        size: number of examples; None: as many as there are images.
        seed: ``SEED`` of the training.

    Returns:
        The stream that begins with them, whose masks are as :func:`draw_example` takes them, and
        their number.

    Raises:
        InputError: ``size`` is less than 1, or see :func:`.loaders.build_training_stream`.
    """
    check_dataset_names([name])
    if size is not None and size < 1:
        raise InputError(f"--num-images {size}: it must be at least 1")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.SEED = (name,), seed
    cfg.SOLVER.IMS_PER_BATCH = 1
    # Its masks are Detectron2's.
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    stream = build_training_stream(cfg)
    return stream, stream.num_images if size is None else size


def draw_example(
    example: dict[str, Any], image_format: str, metadata: Any
) -> npt.NDArray[np.uint8]:
    """Draw a training example.

    Args:
        example: what a mapper returns; masks are ``PolygonMasks`` or ``BitMasks``.
        image_format: ``"RGB"`` or ``"BGR"``: the order of its channels.
        metadata: of the dataset.

    Returns:
        The picture below a caption, shape (H, W, 3), uint8, RGB.
    """
    image = example["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image[..., ::-1] if image_format == "BGR" else image)
    mark = scene_mark(example["file_name"])
    if "instances" not in example:
        labels = example["sem_seg"].numpy().astype(np.uint8)
        picture = draw_semantic_labels(image, labels, metadata)
        return side_by_side([("training example: semantic labels", picture)], mark)
    instances = example["instances"]
    classes, boxes = instances.gt_classes.tolist(), instances.gt_boxes.tensor.tolist()
    annotations: list[dict[str, Any]] = [
        {"category_id": category, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
        for category, box in zip(classes, boxes, strict=True)
    ]
    masks = instances.gt_masks if instances.has("gt_masks") else None
    if isinstance(masks, BitMasks):
        for annotation, mask in zip(annotations, masks.tensor.numpy(), strict=True):
            annotation["segmentation"] = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    elif masks is not None:
        for annotation, polygons in zip(annotations, masks.polygons, strict=True):
            # Filled as for training: a seam to a hole in an outline is not seen.
            parts = coco_mask.frPyObjects(polygons, *image.shape[:2])
            annotation["segmentation"] = coco_mask.merge(parts)
    record = {"annotations": annotations}
    return side_by_side([draw_captioned("training example", image, record, metadata)], mark)
