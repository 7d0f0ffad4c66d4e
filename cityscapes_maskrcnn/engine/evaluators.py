"""Which evaluator scores which dataset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.result_files import ground_truth_file
from cityscapes_maskrcnn.evaluation.semantic_evaluator import CityscapesSemanticEvaluator
from cityscapes_maskrcnn.evaluation.unpasted import leave_masks_unpasted
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.evaluation_plots import plot_errors


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: Path) -> DatasetEvaluator:
    """Build the evaluator for a dataset by its ``evaluator_type``.

    Args:
        cfg: with several ``DATASETS.TEST``, each has a folder of its own in ``folder``.
        dataset_name: a registered dataset.
        folder: for the files that the evaluator writes.

    Raises:
        InputError: datasets of this type, or without labels, cannot be scored, a file with labels
            is missing, or the model predicts something else.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    evaluators: dict[str, Callable[..., DatasetEvaluator]] = {
        "cityscapes_instance": partial(
            CityscapesInstanceEvaluator,
            num_workers=cfg.TEST.NUM_WORKERS,
            analysis_confidence=cfg.TEST.ANALYSIS_CONFIDENCE,
            draw=plot_errors,
        ),
        "cityscapes_sem_seg": partial(
            CityscapesSemanticEvaluator, num_workers=cfg.TEST.NUM_WORKERS
        ),
    }
    if kind not in evaluators:
        raise InputError(f"{dataset_name}: datasets of type {kind!r} cannot be scored here")
    # Other architectures, such as PanopticFPN, may predict both.
    not_predicted = {
        "GeneralizedRCNN": "cityscapes_sem_seg",
        "SemanticSegmentor": "cityscapes_instance",
    }
    architecture = cfg.MODEL.META_ARCHITECTURE
    if not_predicted.get(architecture) == kind:
        labels = "instances" if kind == "cityscapes_instance" else "semantic labels"
        raise InputError(
            f"DATASETS.TEST {dataset_name}: its {labels} are not what MODEL.META_ARCHITECTURE "
            f"{architecture} predicts"
        )
    evaluator = evaluators[kind](
        dataset_name, folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder
    )
    if kind == "cityscapes_instance":
        _check_ground_truth(dataset_name)
    return evaluator


def _check_ground_truth(dataset_name: str) -> None:
    """Make sure that there is ground truth for every image, before any is predicted."""
    gt_dir = MetadataCatalog.get(dataset_name).gt_dir
    for image in DatasetCatalog.get(dataset_name):
        file = ground_truth_file(gt_dir, image["file_name"])
        if not file.is_file():
            raise InputError(f"{file}: no such file, which {image['file_name']} is scored against")


def fit_to_evaluators(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Let a model leave its masks unpasted, if all evaluators of the config understand that.

    Args:
        cfg: ``TEST.UNPASTED_MASKS`` and ``DATASETS.TEST``.
        model: plain or wrapped by DistributedDataParallel.

    Returns:
        The model to score.
    """
    kinds = {MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
    if cfg.TEST.UNPASTED_MASKS and kinds == {"cityscapes_instance"}:
        return leave_masks_unpasted(model)
    return model
