"""How training images are resized, cropped, coloured and mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances, PolygonMasks

from cityscapes_maskrcnn.data.copy_paste import paste_objects
from cityscapes_maskrcnn.utils.errors import InputError

Array = npt.NDArray[Any]

# Of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in Detectron2 and Pillow.
_LUMA = (0.299, 0.587, 0.114)
# Images may be several times as long as wide, and cannot be resized to nothing.
_SMALLEST_SIDE = 4


def training_augmentations(
    cfg: CfgNode, augmentations: list[T.Augmentation]
) -> list[T.Augmentation]:
    """Change Detectron2's augmentations of training as ``INPUT`` asks for.

    Args:
        cfg: ``INPUT.CROP``, ``INPUT.LSJ``, ``INPUT.COLOR_JITTER`` and ``INPUT.FORMAT``.
        augmentations: what Detectron2 builds of ``INPUT``: a crop, a resize and a flip, of which
            the first and the last may be missing.

    Raises:
        InputError: a key is out of its range, or two exclude each other.
    """
    *crop, resize = [each for each in augmentations if not isinstance(each, T.RandomFlip)]
    flip = [each for each in augmentations if isinstance(each, T.RandomFlip)]
    jitter = _color_jitter(cfg)
    if cfg.INPUT.LSJ.ENABLED:
        resize, fixed_crop = _large_scale_jitter(cfg)
        # Colours before the crop, whose padding keeps its grey.
        return [resize, *jitter, fixed_crop, *flip]
    if cfg.INPUT.CROP.AFTER_RESIZE:
        return [resize, *jitter, *flip, *crop]
    return [*crop, resize, *jitter, *flip]


def _large_scale_jitter(cfg: CfgNode) -> tuple[T.Augmentation, T.Augmentation]:
    """Build a resize by a random scale and a crop that pads."""
    scales, size = (cfg.INPUT.LSJ.MIN_SCALE, cfg.INPUT.LSJ.MAX_SCALE), tuple(cfg.INPUT.LSJ.SIZE)
    if cfg.INPUT.CROP.ENABLED:
        raise InputError("INPUT.LSJ.ENABLED crops by itself: set INPUT.CROP.ENABLED to False")
    if not 0.0 < scales[0] <= scales[1] <= 10.0:
        raise InputError(
            f"INPUT.LSJ.MIN_SCALE {scales[0]} and MAX_SCALE {scales[1]}: they must be above 0 and "
            "at most 10, the smaller one first"
        )
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise InputError(
            f"INPUT.LSJ.SIZE {size}: it must be height and width, whole numbers of pixels"
        )
    if scales[0] * min(size) < _SMALLEST_SIDE:
        raise InputError(
            f"INPUT.LSJ.MIN_SCALE {scales[0]} of SIZE {size}: nothing is seen on less than "
            f"{_SMALLEST_SIDE} pixels"
        )
    return T.ResizeScale(*scales, *size), CropAndPad(size)


def _color_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Build what changes colours, if something does."""
    amounts = {key: cfg.INPUT.COLOR_JITTER[key] for key in ("BRIGHTNESS", "CONTRAST", "SATURATION")}
    for key, amount in amounts.items():
        if not 0.0 <= amount <= 1.0:
            raise InputError(f"INPUT.COLOR_JITTER.{key} {amount}: it must be 0 to 1")
    if not any(amounts.values()):
        return []
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise InputError(f"INPUT.COLOR_JITTER: not for images of INPUT.FORMAT {cfg.INPUT.FORMAT}")
    brightness, contrast, saturation = amounts.values()
    return [
        ColorJitter(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            bgr=cfg.INPUT.FORMAT == "BGR",
        )
    ]


class CropAndPad(T.FixedSizeCrop):
    """Detectron2's ``FixedSizeCrop``, but outlines end where the image does, not in the padding."""

    def _get_crop(self, image: Array) -> T.CropTransform:
        crop = super()._get_crop(image)
        height, width = image.shape[:2]
        return T.CropTransform(
            crop.x0,
            crop.y0,
            min(crop.w, width),
            min(crop.h, height),
            width,
            height,
        )


class ColorJitter(T.Augmentation):
    """Random brightness, contrast and saturation, in this order, in one pass over the pixels.

    Each alone is, to within one grey level, Detectron2's ``RandomBrightness``, ``RandomContrast``
    or ``RandomSaturation``, which take 20 to 100 ms for an image of 1024 x 2048. Together nothing
    is clipped in between.

    Args:
        brightness: of how much pixels are mixed with black: the factor of their own values is
            drawn evenly from 1 - brightness to 1 + brightness. 0: not at all.
        contrast: the same, with the mean of all values.
        saturation: the same, with the grey of the pixel's brightness.
        bgr: the image's channels are blue, green and red, not the other way round.
    """

    def __init__(
        self, *, brightness: float, contrast: float, saturation: float, bgr: bool = False
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: Array) -> ColorTransform:
        """Draw the factors."""
        factors = [
            np.random.uniform(1 - amount, 1 + amount) if amount else 1.0  # noqa: NPY002
            for amount in (self.brightness, self.contrast, self.saturation)
        ]
        brightness, contrast, saturation = factors
        luma = _LUMA[::-1] if self.bgr else _LUMA
        offset = (1 - contrast) * brightness * image.mean()
        # Grey stays what it is when it is mixed with its brightness.
        mixed = saturation * np.eye(3) + (1 - saturation) * np.tile(luma, (3, 1))
        matrix = np.column_stack([contrast * brightness * mixed, np.full(3, offset)])
        return ColorTransform(matrix)


class ColorTransform(T.Transform):
    """Linear change of the colours of 8-bit pixels; nothing moves.

    Args:
        matrix: shape (3, 4): of each new channel the share of each channel, and a constant.
    """

    def __init__(self, matrix: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self.matrix = matrix

    def apply_image(self, img: Array) -> Array:
        """Change an image of shape (H, W, 3), uint8, to within a grey level."""
        if img.strides[2] != img.itemsize:
            # OpenCV takes ten times as long to copy what torch's resize has left: three planes.
            img = cv2.merge(list(img.transpose(2, 0, 1)))
        return np.asarray(cv2.transform(img, self.matrix))

    def apply_coords(self, coords: Array) -> Array:
        """Leave coordinates as they are."""
        return coords

    def apply_segmentation(self, segmentation: Array) -> Array:
        """Leave labels as they are."""
        return segmentation


class CopyPaste:
    """A mapper that pastes objects of other training images into what another mapper returns.

    All random choices are NumPy's global ones, as those of Detectron2's augmentations: with a
    :class:`.TrainingStream` they follow from the position. They come after those of the image,
    which is augmented as it would be without.

    Args:
        mapper: returns ``image``, and ``instances`` whose ``gt_masks``, if there are any, are
            ``PolygonMasks``.
        dicts: the training images.
        image_weights: shape (number of images,): chance of each to be the one that objects are
            taken from, in any unit.
        class_weights: chance of an object of each class to be taken, in any unit.
        polygon_type: of ``gt_masks``, as for :class:`.CityscapesMapper`.
        prob: of an image to get objects pasted.
        max_objects: most that are pasted into an image; their number is drawn from 1 on.
        min_area: see :func:`.paste_objects`.
        blend: see :func:`.paste_objects`.
    """

    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        dicts: Sequence[dict[str, Any]],
        *,
        image_weights: npt.NDArray[np.float64],
        class_weights: dict[int, float],
        polygon_type: Any,
        prob: float,
        max_objects: int,
        min_area: int,
        blend: float,
    ) -> None:
        self._mapper = mapper
        self._dicts = dicts
        self._image_weights = np.cumsum(image_weights) / np.sum(image_weights)
        self._class_weights = class_weights
        self._polygon_type = polygon_type
        self._prob = prob
        self._max_objects = max_objects
        self._min_area = min_area
        self._blend = blend

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, as the other mapper does."""
        mapped = self._mapper(dataset_dict)
        if np.random.random() < self._prob:  # noqa: NPY002
            drawn = np.random.random()  # noqa: NPY002
            index = int(np.searchsorted(self._image_weights, drawn, side="right"))
            other = self._dicts[index]
            if other["file_name"] != dataset_dict["file_name"]:
                self._paste(mapped, self._mapper(other))
        masks = mapped["instances"].get_fields().get("gt_masks")
        if self._polygon_type is not None and masks is not None:
            mapped["instances"].gt_masks = self._polygon_type.from_polygons(masks.polygons)
        return mapped

    def _paste(self, mapped: dict[str, Any], other: dict[str, Any]) -> None:
        """Paste some objects of a mapped image into another one, in place."""
        objects, others = mapped["instances"], other["instances"]
        if not len(others):
            return
        weights = np.array([self._class_weights[each] for each in others.gt_classes.tolist()])
        number = min(np.random.randint(1, self._max_objects + 1), len(others))  # noqa: NPY002
        chosen = np.random.choice(  # noqa: NPY002
            len(others), number, replace=False, p=weights / weights.sum()
        )
        # In the order that they have in their image.
        others = others[np.sort(chosen).tolist()]
        image, polygons, pasted = paste_objects(
            mapped["image"].numpy(),
            objects.gt_masks.polygons if objects.has("gt_masks") else [],
            other["image"].numpy(),
            others.gt_masks.polygons,
            min_area=self._min_area,
            blend=self._blend,
        )
        if not pasted:
            return
        mapped["image"] = torch.from_numpy(image)
        kept = [(index, each) for index, each in enumerate(polygons) if each is not None]
        indices = [index for index, _ in kept]
        boxes = objects.gt_boxes.tensor[indices]
        for row, (index, each) in enumerate(kept):
            if each is not objects.gt_masks.polygons[index]:
                points = np.concatenate(each).reshape(-1, 2)
                box = np.concatenate([points.min(axis=0), points.max(axis=0)])
                boxes[row] = torch.from_numpy(box)
        others = others[pasted]
        # It may be the larger one of the two.
        others.gt_boxes.clip(objects.image_size)
        mixed = Instances(objects.image_size)
        mixed.gt_boxes = Boxes(torch.cat([boxes, others.gt_boxes.tensor]))
        mixed.gt_classes = torch.cat([objects.gt_classes[indices], others.gt_classes])
        mixed.gt_masks = PolygonMasks([each for _, each in kept] + others.gt_masks.polygons)
        mapped["instances"] = mixed


def copy_paste(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    dicts: Sequence[dict[str, Any]],
    polygon_type: Any,
) -> CopyPaste:
    """Build the mapper that ``INPUT.COPY_PASTE`` describes.

    Args:
        cfg: ``INPUT.COPY_PASTE``, ``INPUT.MASK_FORMAT``, and the kind of model.
        mapper: see :class:`CopyPaste`.
        dicts: the training images.
        polygon_type: see :class:`CopyPaste`.

    Raises:
        InputError: a key is out of its range, the model learns no masks of polygons or learns
            semantic labels, or no image has an object.
    """
    keys = cfg.INPUT.COPY_PASTE
    for key, low, high in (
        ("PROB", 0, 1),
        ("MAX_OBJECTS", 1, 1000),
        ("MIN_AREA", 1, 10**9),
        ("BLEND", 0, 100),
    ):
        if not low <= keys[key] <= high:
            raise InputError(f"INPUT.COPY_PASTE.{key} {keys[key]}: it must be {low} to {high}")
    if cfg.MODEL.META_ARCHITECTURE in ("SemanticSegmentor", "PanopticFPN"):
        raise InputError(
            f"INPUT.COPY_PASTE.PROB: a {cfg.MODEL.META_ARCHITECTURE} learns semantic labels, into "
            "which no objects are pasted; set it to 0.0"
        )
    if not cfg.MODEL.MASK_ON or cfg.INPUT.MASK_FORMAT != "polygon":
        raise InputError(
            "INPUT.COPY_PASTE.PROB: objects are cut out by their polygons; set it to 0.0, or "
            "MODEL.MASK_ON to True and INPUT.MASK_FORMAT to polygon"
        )
    classes = [
        [each["category_id"] for each in image["annotations"] if not each.get("iscrowd", 0)]
        for image in dicts
    ]
    counts = Counter(category for image in classes for category in image)
    if not counts:
        raise InputError("INPUT.COPY_PASTE.PROB: no training image has an object to paste")
    if keys.PREFER_RARE:
        class_weights = {category: 1 / count for category, count in counts.items()}
        image_weights = [sum(class_weights[each] for each in image) for image in classes]
    else:
        class_weights = dict.fromkeys(counts, 1.0)
        image_weights = [float(bool(image)) for image in classes]
    return CopyPaste(
        mapper,
        dicts,
        image_weights=np.array(image_weights),
        class_weights=class_weights,
        polygon_type=polygon_type,
        prob=keys.PROB,
        max_objects=keys.MAX_OBJECTS,
        min_area=keys.MIN_AREA,
        blend=keys.BLEND,
    )
