"""How training images are resized, cropped and coloured."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from cityscapes_maskrcnn.utils.errors import InputError

Array = npt.NDArray[Any]

# Of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in Detectron2 and Pillow.
_LUMA = (0.299, 0.587, 0.114)


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
        return [*_large_scale_jitter(cfg), *jitter, *flip]
    if cfg.INPUT.CROP.AFTER_RESIZE:
        return [resize, *jitter, *flip, *crop]
    return [*crop, resize, *jitter, *flip]


def _large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
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
    return [T.ResizeScale(*scales, *size), T.FixedSizeCrop(size)]


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
