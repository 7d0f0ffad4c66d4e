"""Detectron2's plug for the pixel-level scores: logits in, results out, no images written."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from cityscapes_maskrcnn.data.images import read_label_image
from cityscapes_maskrcnn.data.labels import SEMANTIC_LABELS
from cityscapes_maskrcnn.evaluation.pixel_iou import (
    ImageCounts,
    count_image,
    format_pixel_scores,
    pixel_scores,
)
from cityscapes_maskrcnn.evaluation.result_files import image_name, read_instance_ids
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

RESULTS_FILE = "cityscapes_semantic_results.json"
_LABEL_IDS_SUFFIX = "_labelIds.png"
# Detectron2's names of the four averages -> the official script's.
_AVERAGES = {
    "IoU": "averageScoreClasses",
    "iIoU": "averageScoreInstClasses",
    "IoU_sup": "averageScoreCategories",
    "iIoU_sup": "averageScoreInstCategories",
}


class CityscapesSemanticEvaluator(DatasetEvaluator):
    """Score semantic segmentation with the official pixel-level protocol.

    Every image is compared with its ground truth as soon as it is predicted; a confusion matrix is
    kept of it. Works on any device, on any number of processes and machines, on any part of a split
    and on coarse annotations, whose unlabeled pixels do not count.

    Args:
        dataset_name: a registered dataset whose images have a ``sem_seg_file_name``, a
            ``*_labelIds.png`` with its ``*_instanceIds.png`` beside it, as in ``gtFine`` and
            ``gtCoarse``.
        output_dir: where the main process writes ``cityscapes_semantic_results.json``, the official
            result as fractions (null for NaN), see :func:`.pixel_iou.pixel_scores`; Detectron2 uses
            ``OUTPUT_DIR/inference``. None: no file.

    Raises:
        InputError: the dataset has no semantic labels, or other classes.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike[str] | None = None) -> None:
        classes = tuple(label.name for label in SEMANTIC_LABELS)
        metadata = MetadataCatalog.get(dataset_name)
        if tuple(metadata.get("stuff_classes", classes)) != classes:
            raise InputError(
                f"dataset {dataset_name} has not the 19 Cityscapes classes in the order of their"
                f" train ids: {', '.join(metadata.stuff_classes)}"
            )
        self._truth_files: dict[str, Path] = {}
        for image in DatasetCatalog.get(dataset_name):
            file = image.get("sem_seg_file_name")
            if file is None or not file.endswith(_LABEL_IDS_SUFFIX):
                raise InputError(
                    f"dataset {dataset_name} has no *{_LABEL_IDS_SUFFIX} to score against; name one"
                    " with semantic labels, such as cityscapes_coarse_semantic_pretrain_val"
                )
            self._truth_files[image_name(image["file_name"])] = Path(file)
        self._dataset_name = dataset_name
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._logger = logging.getLogger(__name__)
        self._images: dict[str, ImageCounts] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._images = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count the pixels of some images.

        Args:
            inputs: Detectron2's dataset dicts; ``file_name`` is used.
            outputs: Detectron2's predictions: ``{"sem_seg": logits}`` at the image's original size,
                shape (19, height, width), floating point, classes in the order of train ids.

        Raises:
            InputError: an image is not of the dataset, its ground truth is missing or unreadable,
                or the prediction does not fit it.
        """
        for image, output in zip(inputs, outputs, strict=True):
            name = image_name(image["file_name"])
            if name not in self._truth_files:
                raise InputError(f"cannot score {self._dataset_name}: {name} does not belong to it")
            file = self._truth_files[name]
            instance_file = file.with_name(
                file.name.removesuffix(_LABEL_IDS_SUFFIX) + "_instanceIds.png"
            )
            label_ids, instance_ids = read_label_image(file), read_instance_ids(instance_file)
            try:
                predicted_ids = logits_to_label_ids(output["sem_seg"])
                self._images[name] = count_image(label_ids, instance_ids, predicted_ids)
            except InputError as error:
                raise InputError(f"{file}: {error}") from error

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather all processes' images and score them. Every process has to call this.

        Returns:
            In the main process ``{"sem_seg": scores}`` in percent, named as Detectron2 names them:
            ``IoU`` and ``iIoU`` (means over classes), ``IoU_sup`` and ``iIoU_sup`` (means over
            categories); and ``IoU-<class>`` for the 19 classes. NaN for what appears neither in
            the ground truth nor predicted on it. Elsewhere nothing.

        Raises:
            InputError: images of the dataset were not predicted.
        """
        gathered = comm.gather(self._images)
        if not comm.is_main_process():
            return OrderedDict()
        # A sampler may give an image to two processes, so that all have equally many.
        by_name = {name: image for part in gathered for name, image in part.items()}
        missing = sorted(self._truth_files.keys() - by_name.keys())
        if missing:
            examples = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise InputError(
                f"cannot score {self._dataset_name}: {len(missing)} images were not predicted:"
                f" {examples}"
            )
        # The order of images decides on the last bits: keep it independent of the processes.
        official = pixel_scores([by_name[name] for name in sorted(by_name)])
        self._logger.info(
            "%s, %d images\n%s", self._dataset_name, len(by_name), format_pixel_scores(official)
        )
        if self._output_dir is not None:
            with atomic_write(self._output_dir / RESULTS_FILE, "w") as file:
                file.write(_to_json(official))
        scores = {key: 100 * official[name] for key, name in _AVERAGES.items()}
        for label in SEMANTIC_LABELS:
            scores[f"IoU-{label.name}"] = 100 * official["classScores"][label.name]
        return OrderedDict(sem_seg=scores)


def logits_to_label_ids(logits: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Take the class of the highest logit of every pixel.

    Args:
        logits: shape (19, height, width), floating point, on any device, in order of train ids.

    Returns:
        Shape (height, width), dtype uint8: official label ids.

    Raises:
        InputError: the logits have another shape, or are NaN somewhere.
    """
    if logits.ndim != 3 or len(logits) != len(SEMANTIC_LABELS):
        raise InputError(
            f"the model's sem_seg has shape {tuple(logits.shape)}; expected (19, height, width), a"
            " logit for each of the 19 train ids: set MODEL.SEM_SEG_HEAD.NUM_CLASSES 19"
        )
    # PyTorch's argmax takes four times as long on a CPU.
    highest, train_ids = logits.max(dim=0)
    if highest.isnan().any():
        raise InputError("the model predicts NaN; its weights are broken or training diverged")
    label_ids = torch.tensor([label.id for label in SEMANTIC_LABELS], dtype=torch.uint8)
    # The lookup comes first: a byte per pixel leaves the device, not eight.
    ids: npt.NDArray[np.uint8] = label_ids.to(logits.device)[train_ids].cpu().numpy()
    return ids


def _to_json(official: Mapping[str, Any]) -> str:
    """Write the official result as JSON; NaN, which JSON does not know, becomes null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(clean(official), allow_nan=False) + "\n"
