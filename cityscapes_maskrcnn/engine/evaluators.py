"""Which evaluator scores which dataset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.semantic_evaluator import CityscapesSemanticEvaluator
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.evaluation_plots import plot_errors


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: Path) -> DatasetEvaluator:
    """Build the evaluator for a dataset by its ``evaluator_type``.

    Args:
        cfg: with several ``DATASETS.TEST``, each has a folder of its own in ``folder``.
        dataset_name: a registered dataset.
        folder: for the files that the evaluator writes.

    Raises:
        InputError: datasets of this type, or without labels, cannot be scored.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    evaluators: dict[str, Callable[..., DatasetEvaluator]] = {
        "cityscapes_instance": partial(
            CityscapesInstanceEvaluator,
            analysis_confidence=cfg.TEST.ANALYSIS_CONFIDENCE,
            draw=plot_errors,
        ),
        "cityscapes_sem_seg": CityscapesSemanticEvaluator,
    }
    if kind not in evaluators:
        raise InputError(f"{dataset_name}: datasets of type {kind!r} cannot be scored here")
    return evaluators[kind](
        dataset_name, folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder
    )
