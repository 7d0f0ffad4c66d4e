"""Record how a run uses its data, and refuse to score a model on images that it has seen."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from cityscapes_maskrcnn.data.provenance import (
    TRAINED,
    TUNED,
    SeenImages,
    UsedData,
    find_seen,
    used_data,
)
from cityscapes_maskrcnn.utils.errors import InputError


def data_of_run(cfg: CfgNode) -> list[UsedData]:
    """List the data that training with a config uses, and for what.

    Args:
        cfg: reads ``DATASETS.TRAIN`` (trained on), ``DATASETS.TUNED_ON`` (tuned on) and
            ``DATASETS.VAL``, or without it ``DATASETS.TEST``, which is tuned on where its
            validation loss steers the run: with early stopping, or a learning rate that follows it.
            Watching alone is no tuning.
    """
    tuned = list(cfg.DATASETS.TUNED_ON)
    plateau = cfg.SOLVER.LR_SCHEDULER_NAME == "ReduceLROnPlateau"
    if plateau or cfg.SOLVER.EARLY_STOPPING.ENABLED:
        tuned += cfg.DATASETS.VAL or cfg.DATASETS.TEST
    names = [(name, TRAINED) for name in cfg.DATASETS.TRAIN]
    names += [(name, TUNED) for name in dict.fromkeys(tuned)]
    return [used_data(name, role, DatasetCatalog.get(name)) for name, role in names]


def data_of_selection(cfg: CfgNode) -> list[UsedData]:
    """List the data that selecting weights by what training measures uses."""
    names = cfg.DATASETS.VAL or cfg.DATASETS.TEST
    return [used_data(name, TUNED, DatasetCatalog.get(name)) for name in names]


def refuse_seen_images(
    cfg: CfgNode, history: Iterable[UsedData], roles: Collection[str], flag: str = ""
) -> list[SeenImages]:
    """Refuse to score a model on images that it has seen.

    Args:
        cfg: reads ``DATASETS.TEST`` and ``TEST.ALLOW_SEEN_IMAGES``.
        history: of the model.
        roles: ``("trained",)`` during training, whose scores may steer it; both for a final score.
        flag: that named the dataset, for the message; empty: it was a key.

    Returns:
        What was seen; not empty only if ``TEST.ALLOW_SEEN_IMAGES`` is set.

    Raises:
        InputError: it has seen some, and that is not allowed.
    """
    history = list(history)
    seen = [
        entry
        for name in cfg.DATASETS.TEST
        for entry in find_seen(history, name, DatasetCatalog.get(name), roles)
    ]
    if not seen:
        return []
    overlap = "; ".join(map(str, seen))
    key = "VAL" if cfg.DATASETS.TEST == cfg.DATASETS.VAL else "TEST"
    place = f"by {flag}" if flag else f"in DATASETS.{key}"
    if not cfg.TEST.ALLOW_SEEN_IMAGES:
        raise InputError(
            f"the model has seen images that it is to be scored on: {overlap}. Name others "
            f"{place}, or set TEST.ALLOW_SEEN_IMAGES True for a score that says so"
        )
    logging.getLogger(__name__).warning("The model has seen images it is scored on: %s", overlap)
    return seen
