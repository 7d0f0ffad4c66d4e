"""Convert a dataset dict to the model's input."""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import filter_empty_instances
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from PIL import Image
from torch.nn.functional import interpolate

from cityscapes_maskrcnn.data.augmentation import ColorTransform, training_augmentations
from cityscapes_maskrcnn.data.image_cache import ImageCache
from cityscapes_maskrcnn.data.images import check_size, read_image, read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.utils.errors import InputError

Array = npt.NDArray[Any]

# What moves every point by itself: many polygons can be moved at once.
_POINTWISE: Final = (
    T.ResizeTransform,
    T.HFlipTransform,
    T.VFlipTransform,
    T.NoOpTransform,
    ColorTransform,
)


class CityscapesMapper(DatasetMapper):
    """Detectron2's mapper for Cityscapes files, in less than half of its time.

    Geometry and annotations equal Detectron2's, bit for bit. It differs in these things: semantic
    ground truth is read from the official ``*_labelIds.png`` and looked up to train ids (nobody
    has to generate ``*_labelTrainIds.png``); a broken file, or one of another size than its
    annotation, ends with one line that names it; images can come from a cache; with
    ``fast_resize`` grey levels differ from Pillow's by at most 2; and ``gt_masks`` of polygons are
    of the type that the model's heads ask for.

    Built as Detectron2's: ``CityscapesMapper(cfg, is_train=True)``.

    Args:
        is_train: as for Detectron2's mapper.
        fast_resize: resize with torch, which does not widen 8 bit values.
        cache: gives the pixels of images; None: images are decoded.
        polygon_type: of ``gt_masks``, whose ``from_polygons`` takes what ``PolygonMasks`` does;
            None: ``PolygonMasks``. By default what the class that ``MODEL.ROI_HEADS.NAME`` names
            has under this name, so that it is built where the image is loaded.
        others: as for Detectron2's mapper.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        fast_resize: bool = False,
        cache: ImageCache | None = None,
        polygon_type: Any = None,
        **others: Any,
    ) -> None:
        super().__init__(is_train, **others)
        self.fast_resize = fast_resize
        self.cache = cache
        self.polygon_type = polygon_type
        # Keypoints, bitmasks and boxes of cropped outlines are left to Detectron2.
        bitmasks = self.use_instance_mask and self.instance_mask_format != "polygon"
        self._at_once = not (self.use_keypoint or self.recompute_boxes or bitmasks)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the constructor's arguments as Detectron2 does, and this project's keys.

        Raises:
            InputError: ``INPUT.RESIZE`` or ``INPUT.CACHE`` is none of its values, there is no
                shared memory for the cache, or see :func:`.training_augmentations`.
        """
        arguments = super().from_config(cfg, is_train)
        if is_train:
            arguments["augmentations"] = training_augmentations(cfg, arguments["augmentations"])
            # Boxes follow from what is left of the outlines, as with Detectron2's own crops.
            arguments["recompute_boxes"] |= cfg.INPUT.LSJ.ENABLED and cfg.MODEL.MASK_ON
        for key, values in (("RESIZE", ("fast", "exact")), ("CACHE", ("none", "ram", "disk"))):
            if cfg.INPUT[key] not in values:
                raise InputError(
                    f"INPUT.{key} {cfg.INPUT[key]!r}: it must be one of {', '.join(values)}"
                )
        arguments["fast_resize"] = is_train and cfg.INPUT.RESIZE == "fast"
        if cfg.INPUT.CACHE != "none":
            arguments["cache"] = ImageCache(cfg.INPUT.CACHE, cfg.INPUT.FORMAT)
        if cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS_REGISTRY:
            heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
            arguments["polygon_type"] = getattr(heads, "polygon_type", None)
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Returns:
            The dict with ``image``, uint8 of shape (3, height, width) in ``INPUT.FORMAT``; in
            training also ``instances`` and/or ``sem_seg``, int64 of shape (height, width) with
            train ids. Boxes and polygons are in pixels of the mapped image.

        Raises:
            InputError: a file is broken or of the wrong size.
        """
        # Nothing below it is changed.
        dataset_dict = dict(dataset_dict)
        file_name = dataset_dict["file_name"]
        if self.cache is None:
            image = read_image(file_name, self.image_format)
        else:
            image = self.cache.read(file_name)
        dataset_dict.setdefault("height", image.shape[0])
        dataset_dict.setdefault("width", image.shape[1])
        check_size(file_name, image, dataset_dict)

        label_file = dataset_dict.pop("sem_seg_file_name", None)
        sem_seg = None
        if label_file and self.is_train:
            label_ids = read_label_image(label_file)
            check_size(label_file, label_ids, dataset_dict)
            sem_seg = train_id_lookup()[label_ids]

        augmented = (_FastInput if self.fast_resize else T.AugInput)(image, sem_seg=sem_seg)
        transforms = self.augment(augmented, file_name)
        dataset_dict["image"] = _channels_first(augmented.image)
        if augmented.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            height, width = augmented.image.shape[:2]
            self._transform_annotations(dataset_dict, transforms, (height, width))
            masks = dataset_dict["instances"].get_fields().get("gt_masks")
            if self.polygon_type is not None and isinstance(masks, PolygonMasks):
                flat = self.polygon_type.from_polygons(masks.polygons)
                dataset_dict["instances"].gt_masks = flat
        return dataset_dict

    def augment(self, augmented: T.AugInput, name: str) -> T.TransformList:
        """Apply the augmentations in place; ``name`` is the image's in errors.

        Raises:
            InputError: nothing of the image would be left: it is thousands of times as long as
                wide.
        """
        height, width = augmented.image.shape[:2]
        try:
            return self.augmentations(augmented)
        except (ValueError, RuntimeError) as error:  # of Pillow and of torch
            size = f"{width}x{height} pixels"
            raise InputError(f"{name}: {size} cannot be resized: {error}") from error

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.TransformList,
        image_shape: tuple[int, int],
    ) -> None:
        annotations = [each for each in dataset_dict["annotations"] if each.get("iscrowd", 0) == 0]
        instances = None
        if not annotations:
            # Detectron2 fails here where boxes follow from the outlines that a crop leaves.
            instances = Instances(image_shape)
            instances.gt_boxes = Boxes(torch.zeros(0, 4))
            instances.gt_classes = torch.zeros(0, dtype=torch.int64)
        elif self._at_once:
            instances = _transformed_at_once(
                annotations,
                transforms,
                image_shape,
                with_polygons=self.use_instance_mask,
            )
        if instances is None:
            dataset_dict["annotations"] = copy.deepcopy(annotations)
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:
            del dataset_dict["annotations"]
            dataset_dict["instances"] = filter_empty_instances(instances)


class _FastInput(T.AugInput):
    """An input whose image is resized by torch where Detectron2 uses Pillow's bilinear filter.

    The image is then three planes in memory, and is padded as such.
    """

    image: Array
    sem_seg: Array | None

    def transform(self, tfm: T.Transform) -> None:
        """Transform image and labels in place."""
        if isinstance(tfm, T.TransformList):
            for each in tfm.transforms:
                self.transform(each)
            return
        if type(tfm) is T.PadTransform and self.image.strides[-1] != self.image.itemsize:
            height, width = self.image.shape[:2]
            padded = np.full(
                (3, height + tfm.y0 + tfm.y1, width + tfm.x0 + tfm.x1),
                tfm.pad_value,
                self.image.dtype,
            )
            inside = padded[:, tfm.y0 : tfm.y0 + height, tfm.x0 : tfm.x0 + width]
            inside[:] = self.image.transpose(2, 0, 1)
            self.image = padded.transpose(1, 2, 0)
            if self.sem_seg is not None:
                self.sem_seg = tfm.apply_segmentation(self.sem_seg)
            return
        if type(tfm) is not T.ResizeTransform or tfm.interp != Image.Resampling.BILINEAR:
            super().transform(tfm)
            return
        if self.image.dtype != np.uint8 or self.image.ndim != 3:
            super().transform(tfm)
            return
        size = (tfm.new_h, tfm.new_w)
        if self.image.shape[:2] != size:
            image = torch.from_numpy(np.ascontiguousarray(self.image)).permute(2, 0, 1)[None]
            resized = interpolate(image, size, mode="bilinear", antialias=True)
            self.image = resized[0].permute(1, 2, 0).numpy()
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


def _channels_first(image: Array) -> torch.Tensor:
    """Copy an image of shape (H, W, 3), perhaps a flipped view, to one of shape (3, H, W)."""
    mirrored = image.strides[1] < 0
    image = image[:, ::-1] if mirrored else image
    channels: Array = image.transpose(2, 0, 1)
    if image.dtype == np.uint8 and min(image.strides) > 0:
        # OpenCV takes a quarter of NumPy's time for both.
        if not channels.flags.c_contiguous:
            channels = np.empty_like(channels, order="C")
            cv2.split(image, list(channels))
        if mirrored:
            channels = cv2.flip(channels.reshape(-1, image.shape[1]), 1).reshape(channels.shape)
            mirrored = False
    return torch.as_tensor(np.ascontiguousarray(channels[..., ::-1] if mirrored else channels))


def _transformed_at_once(
    annotations: list[dict[str, Any]],
    transforms: T.TransformList,
    image_shape: tuple[int, int],
    *,
    with_polygons: bool,
) -> Instances | None:
    """Transform all annotations of an image together.

    Args:
        annotations: Detectron2's, at least one, none of a crowd; not changed.
        transforms: of the image.
        image_shape: height and width of the mapped image.
        with_polygons: the instances have ``gt_masks``.

    Returns:
        What Detectron2 makes of them one by one, bit for bit, before empty ones are removed; None:
        that is not sure.
    """
    if any(type(each) not in _POINTWISE for each in transforms.transforms):
        return None
    if any(each["bbox_mode"] != BoxMode.XYXY_ABS for each in annotations):
        return None
    boxes = [np.asarray(each["bbox"]) for each in annotations]
    # Detectron2 rounds where coordinates are integers; together with others they would be floats.
    if len({each.dtype for each in boxes}) > 1:
        return None
    height, width = image_shape
    moved = transforms.apply_box(np.array(boxes)).clip(min=0)
    instances = Instances(image_shape)
    instances.gt_boxes = Boxes(np.minimum(moved, [width, height, width, height]))
    instances.gt_classes = torch.tensor([int(each["category_id"]) for each in annotations])
    if with_polygons and "segmentation" in annotations[0]:
        polygons = _moved_polygons([each.get("segmentation") for each in annotations], transforms)
        if polygons is None:
            return None
        instances.gt_masks = PolygonMasks(polygons)
    return instances


def _moved_polygons(
    segmentations: list[Any], transforms: T.TransformList
) -> list[list[Array]] | None:
    """Transform the polygons of all objects together; None: some are no lists of coordinates."""
    if not all(isinstance(each, list) for each in segmentations):
        return None
    arrays = [np.asarray(polygon) for each in segmentations for polygon in each]
    if not arrays:
        return segmentations
    odd = any(each.ndim != 1 or len(each) < 6 or len(each) % 2 for each in arrays)
    if odd or len({each.dtype for each in arrays}) > 1:
        return None
    points = transforms.apply_coords(np.concatenate(arrays).reshape(-1, 2)).reshape(-1)
    ends = accumulate((len(each) for each in arrays), initial=0)
    moved = iter([points[start:end] for start, end in pairwise(ends)])
    return [[next(moved) for _ in each] for each in segmentations]
