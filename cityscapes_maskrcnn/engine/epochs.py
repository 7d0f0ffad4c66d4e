"""Epochs into iterations, the unit in which Detectron2 counts."""

from __future__ import annotations

import math
from typing import Any, Final

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from cityscapes_maskrcnn.utils.errors import InputError

# Keys that count iterations, and those that set them when they count epochs.
IN_EPOCHS: Final = {
    "SOLVER.MAX_ITER": "SOLVER.EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
}


def training_dicts(cfg: CfgNode, log_classes: bool = False) -> list[dict[str, Any]]:
    """Load the images that training goes through in one epoch.

    Args:
        cfg: reads ``DATASETS.TRAIN``, ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` and the meta
            architecture, which says what kind of ground truth is needed.
        log_classes: log the number of instances of every class.

    Returns:
        Detectron2 dataset dicts.

    Raises:
        InputError: no dataset is named, its labels are of another kind than the model learns, or
            none of its images has an annotated instance.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    if not names:
        raise InputError("DATASETS.TRAIN is empty: name a dataset to train on")
    semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    needed = "sem_seg_file_name" if semantic else "annotations"
    try:
        dicts = get_detection_dataset_dicts(
            names,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            check_consistency=log_classes,
        )
    except AssertionError as error:
        raise InputError(f"DATASETS.TRAIN {names} has no image with an instance") from error
    if any(needed not in image for image in dicts):
        kind = "semantic labels" if semantic else "instances"
        raise InputError(f"DATASETS.TRAIN {names}: this model learns {kind}, which it has not")
    return dicts


def resolve_epochs(cfg: CfgNode) -> str:
    """Turn the keys that count epochs into Detectron2's keys that count iterations.

    Args:
        cfg: edited in place: ``SOLVER.MAX_ITER``, ``SOLVER.CHECKPOINT_PERIOD`` and
            ``TEST.EVAL_PERIOD``, each only if its key in epochs is positive.

    Returns:
        One line for the log that shows the arithmetic; empty if no key counts epochs.

    Raises:
        InputError: a key is negative, or there is nothing to train on.
    """
    pairs = []
    for key, name in IN_EPOCHS.items():
        section, iterations_key = key.split(".")
        pairs.append((name, cfg[section], name.split(".")[1], iterations_key))
    for name, node, epochs_key, _ in pairs:
        if node[epochs_key] < 0:
            raise InputError(f"{name} is {node[epochs_key]}: it must be 0 (not used) or positive")
    if not any(node[epochs_key] for _, node, epochs_key, _ in pairs):
        return ""

    if cfg.SOLVER.IMS_PER_BATCH < 1:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: at least 1")
    images = len(training_dicts(cfg))
    epoch = math.ceil(images / cfg.SOLVER.IMS_PER_BATCH)
    parts = [
        f"one epoch: {images} images / {cfg.SOLVER.IMS_PER_BATCH} a batch = {epoch} iterations"
    ]
    for name, node, epochs_key, iterations_key in pairs:
        if node[epochs_key]:
            node[iterations_key] = node[epochs_key] * epoch
            parts.append(f"{name} {node[epochs_key]} -> {iterations_key} {node[iterations_key]}")
    return "; ".join(parts)
