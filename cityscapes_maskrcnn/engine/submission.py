"""Make the zip file for the benchmark server from a config and a checkpoint."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from cityscapes_maskrcnn.data.images import read_image_size
from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.data.loaders import inference_loader
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.data.provenance import find_seen
from cityscapes_maskrcnn.data.registration import (
    check_dataset_names,
    image_names,
    image_suffix_of,
)
from cityscapes_maskrcnn.data.tree import image_name
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.inference import (
    check_inference,
    for_inference,
    model_categories,
    with_test_time_augmentation,
)
from cityscapes_maskrcnn.engine.run_setup import start_logs
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.instances import (
    instances_to_predictions,
    leave_masks_unpasted,
)
from cityscapes_maskrcnn.evaluation.submission_check import ExpectedImage
from cityscapes_maskrcnn.evaluation.submission_writer import SubmissionWriter
from cityscapes_maskrcnn.utils.config_keys import flat_config
from cityscapes_maskrcnn.utils.errors import InputError

# Keys of MODEL that change training, where a model comes from, or where and how fast it runs.
_ONLY_TRAINING: Final = re.compile(
    r"""MODEL\.(
        DEVICE | CHANNELS_LAST | FOLD_FROZEN_NORM | COMPILE | ACTIVATION_CHECKPOINTING
        | WEIGHTS.* | LOAD_PROPOSALS | (BACKBONE|FPN)\.FREEZE.*
        | .*\.( .*_TRAIN | IOU_(THRESHOLDS|LABELS) | IOUS | BATCH_SIZE_PER_IMAGE
            | POSITIVE_FRACTION | BOUNDARY_THRESH | PROPOSAL_APPEND_GT | TRAIN_ON_PRED_BOXES
            | .*LOSS.* | SMOOTH_L1_BETA )
    )""",
    re.VERBOSE,
)


def expected_images(dataset_name: str) -> list[ExpectedImage]:
    """List the images that a submission for a registered dataset needs.

    Raises:
        InputError: there is no such dataset, or its images are missing.
    """
    check_dataset_names([dataset_name])
    expected = []
    for name, image in zip(
        image_names(dataset_name), DatasetCatalog.get(dataset_name), strict=True
    ):
        if "height" in image and "width" in image:
            height, width = image["height"], image["width"]
        else:
            height, width = read_image_size(image["file_name"])
        expected.append(ExpectedImage(name, height, width))
    return expected


def make_submission(cfg: CfgNode, dataset_name: str, output: str | os.PathLike[str]) -> None:
    """Predict a dataset and write the results; goes on where an earlier run was interrupted.

    Every process calls this. With ``TEST.AUG.ENABLED`` each image is augmented.

    Args:
        cfg: the model's config and ``MODEL.WEIGHTS``.
        dataset_name: a registered dataset, with or without labels.
        output: the zip file; it appears when it is complete and was read back.

    Raises:
        InputError: no weights, another dataset's model, a broken image, a full disk, or finished
            images of another model beside the output.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: name a checkpoint")
    if not cfg.MODEL.MASK_ON:
        raise InputError("a submission needs masks: MODEL.MASK_ON True")
    check_inference(cfg)
    start_logs(None)
    logger = logging.getLogger(__name__)
    categories = model_categories(cfg)
    images = expected_images(dataset_name)
    missing = [name for i, name in enumerate(THING_CLASSES) if i not in categories]
    if missing:
        logger.warning(
            "The model predicts %d of the 8 classes; the benchmark scores the others with 0: %s",
            len(categories),
            ", ".join(missing),
        )
    model = Trainer.build_model(cfg).eval()
    history = load_for_inference(model, cfg).history
    # The test split is labelled on the server only, and nothing can be trained on it.
    for seen in find_seen(history, dataset_name, DatasetCatalog.get(dataset_name)):
        logger.warning("The model has seen images that it predicts now: %s", seen)
    run = {
        "weights": weights_digest(model),
        "dataset": dataset_name,
        **prediction_settings(cfg),
    }
    writer = SubmissionWriter(output, images, run)
    if comm.is_main_process():
        writer.prepare()
    comm.synchronize()
    dicts = DatasetCatalog.get(dataset_name)
    left = [
        # Images without annotations have no size, by which batches are formed.
        {**image, "height": expected.height, "width": expected.width}
        for image, expected in zip(dicts, images, strict=True)
        if not writer.is_done(expected.name)
    ]
    logger.info("%d of %d images of %s are left to predict", len(left), len(dicts), dataset_name)
    # Nobody may write before all have looked.
    comm.synchronize()
    if left:
        # Without INPUT.CACHE: each is read once.
        mapper = CityscapesMapper(cfg, is_train=False, cache=None)
        loader = inference_loader(left, mapper, cfg, batch_size=cfg.TEST.BATCH_SIZE)
        if cfg.TEST.AUG.ENABLED:
            model = with_test_time_augmentation(cfg, model)
        elif cfg.TEST.UNPASTED_MASKS:
            model = leave_masks_unpasted(model)
        write = _WriteResults(writer, image_suffix_of(dataset_name), categories)
        inference_on_dataset(for_inference(cfg, model), loader, write)
    comm.synchronize()
    if comm.is_main_process():
        writer.finish()
        logger.info("%s: %d images, complete, read back and valid", output, len(images))


class _WriteResults(DatasetEvaluator):
    """Hands predictions to the writer as they come."""

    def __init__(
        self, writer: SubmissionWriter, image_suffix: str, categories: Sequence[int]
    ) -> None:
        self._writer = writer
        self._image_suffix = image_suffix
        self._categories = categories

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            predictions = instances_to_predictions(
                output["instances"],
                height=image["height"],
                width=image["width"],
                categories=self._categories,
            )
            name = image_name(image["file_name"], self._image_suffix)
            self._writer.write(name, predictions)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def prediction_settings(cfg: CfgNode) -> dict[str, Any]:
    """Get what predictions depend on beside the weights: key -> value.

    That is ``MODEL`` without the keys of :data:`_ONLY_TRAINING`, the pixel format and test size of
    ``INPUT``, the number of detections, ``TEST.AUG`` if it is enabled, and half precision.
    """
    values = flat_config(cfg)
    keys = [key for key in values if key.startswith("MODEL.") and not _ONLY_TRAINING.fullmatch(key)]
    keys += ["INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"]
    keys += ["TEST.DETECTIONS_PER_IMAGE", "TEST.AUG.ENABLED"]
    if cfg.TEST.AUG.ENABLED:
        keys += ["TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE", "TEST.AUG.FLIP"]
    if cfg.TEST.PRECISION != "float32":
        keys.append("TEST.PRECISION")
    return {key: values[key] for key in keys}
