"""From a dataset dict to what the model takes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from cityscapes_maskrcnn.data.images import read_image, read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.utils.errors import InputError


class CityscapesMapper(DatasetMapper):
    """Detectron2's mapper for Cityscapes files.

    It differs in three things: semantic ground truth is read from the official ``*_labelIds.png``
    and looked up to train ids (nobody has to generate ``*_labelTrainIds.png``); images are read
    without a negative stride; and a broken file, or one of another size than its annotation, ends
    with one line that names it.

    Built as Detectron2's: ``CityscapesMapper(cfg, is_train=True)``.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the constructor's arguments as Detectron2 does; the crop may follow the resize."""
        arguments = super().from_config(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.AFTER_RESIZE:
            crop, *others = arguments["augmentations"]
            arguments["augmentations"] = [*others, crop]
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
        dataset_dict = copy.deepcopy(dataset_dict)
        file_name = dataset_dict["file_name"]
        image = read_image(file_name, self.image_format)
        expected = (
            dataset_dict.setdefault("height", image.shape[0]),
            dataset_dict.setdefault("width", image.shape[1]),
        )
        _check_size(file_name, image, expected)

        label_file = dataset_dict.pop("sem_seg_file_name", None)
        sem_seg = None
        if label_file and self.is_train:
            label_ids = read_label_image(label_file)
            _check_size(label_file, label_ids, expected)
            sem_seg = train_id_lookup()[label_ids]

        augmented = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(augmented)
        chw = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.as_tensor(chw)
        if augmented.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, augmented.image.shape[:2])
        return dataset_dict


def _check_size(path: str, array: np.ndarray, expected: tuple[int, int]) -> None:
    """Raise unless an image is as high and wide as its annotation says."""
    height, width = array.shape[:2]
    if (height, width) != expected:
        raise InputError(
            f"{path} is {width}x{height} pixels, but its annotation is for "
            f"{expected[1]}x{expected[0]}; image and annotation must come from the same release"
        )
