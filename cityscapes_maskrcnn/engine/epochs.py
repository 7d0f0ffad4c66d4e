"""Epochs into iterations, the unit in which Detectron2 counts."""

from __future__ import annotations

import math

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from cityscapes_maskrcnn.utils.errors import InputError


def count_training_images(cfg: CfgNode) -> int:
    """Count the images that training goes through in one epoch.

    Args:
        cfg: reads ``DATASETS.TRAIN`` and ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.

    Raises:
        InputError: no dataset is named, or none of its images has an annotated instance.
    """
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name a dataset to train on")
    try:
        return len(
            get_detection_dataset_dicts(
                cfg.DATASETS.TRAIN,
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                check_consistency=False,
            )
        )
    except AssertionError as error:
        raise InputError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with an instance to learn"
        ) from error


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
    pairs = [
        ("SOLVER.EPOCHS", cfg.SOLVER, "EPOCHS", "MAX_ITER"),
        ("SOLVER.CHECKPOINT_EPOCHS", cfg.SOLVER, "CHECKPOINT_EPOCHS", "CHECKPOINT_PERIOD"),
        ("TEST.EVAL_EPOCHS", cfg.TEST, "EVAL_EPOCHS", "EVAL_PERIOD"),
    ]
    for name, node, epochs_key, _ in pairs:
        if node[epochs_key] < 0:
            raise InputError(f"{name} is {node[epochs_key]}: it must be 0 (not used) or positive")
    if not any(node[epochs_key] for _, node, epochs_key, _ in pairs):
        return ""

    images = count_training_images(cfg)
    epoch = math.ceil(images / cfg.SOLVER.IMS_PER_BATCH)
    parts = [
        f"one epoch: {images} images / {cfg.SOLVER.IMS_PER_BATCH} a batch = {epoch} iterations"
    ]
    for name, node, epochs_key, iterations_key in pairs:
        if node[epochs_key]:
            node[iterations_key] = node[epochs_key] * epoch
            parts.append(f"{name} {node[epochs_key]} -> {iterations_key} {node[iterations_key]}")
    return "; ".join(parts)
