"""Scoring of a model: the evaluator of each dataset, precision, test-time augmentation."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, FastRCNNOutputLayers
from detectron2.structures import Instances, ROIMasks
from detectron2.utils import comm
from torch import Tensor, nn

from cityscapes_maskrcnn.config_check import check_ranges
from cityscapes_maskrcnn.data.labels import SEMANTIC_LABELS, THING_CLASSES
from cityscapes_maskrcnn.data.provenance import TRAINED, TUNED
from cityscapes_maskrcnn.data.registration import register_datasets_of
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.ema import SUFFIX
from cityscapes_maskrcnn.engine.evaluation_pictures import SampledPredictions
from cityscapes_maskrcnn.engine.hooks import without_nan
from cityscapes_maskrcnn.engine.precision import HALF_PRECISIONS
from cityscapes_maskrcnn.engine.run_setup import save_config
from cityscapes_maskrcnn.engine.seen_images import refuse_seen_images
from cityscapes_maskrcnn.engine.summary import about_run, write_scores
from cityscapes_maskrcnn.evaluation.evaluator import (
    CityscapesInstanceEvaluator,
    dataset_categories,
    ground_truth_files,
)
from cityscapes_maskrcnn.evaluation.instance_ap import ALL_CATEGORIES, FloatArray
from cityscapes_maskrcnn.evaluation.instances import leave_masks_unpasted
from cityscapes_maskrcnn.evaluation.semantic_evaluator import CityscapesSemanticEvaluator
from cityscapes_maskrcnn.modeling.pooling import pool_at_exact_boxes
from cityscapes_maskrcnn.utils.error_summary import ErrorSummary
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.evaluation_plots import plot_errors


def model_categories(cfg: CfgNode) -> tuple[int, ...]:
    """Find a model's classes among the 8 official ones: those of the data it was trained on.

    Args:
        cfg: reads the number of classes, and ``DATASETS.TRAIN``, or else ``DATASETS.TEST``, or else
            takes the 8; of these ``DATASETS.CLASSES`` chooses some, whether or not that was done in
            the catalog already.

    Returns:
        By class of the model its contiguous id, 0 to 7.

    Raises:
        InputError: the model has another number of classes, or others than Cityscapes'.
    """
    name = next(iter((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)), None)
    chosen = cfg.DATASETS.CLASSES or THING_CLASSES
    known = ALL_CATEGORIES if name is None else dataset_categories(name)
    categories = tuple(each for each in known if THING_CLASSES[each] in chosen)
    section = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    num_classes = cfg.MODEL[section].NUM_CLASSES
    if num_classes != len(categories):
        raise InputError(
            f"MODEL.{section}.NUM_CLASSES is {num_classes}, but {name or 'Cityscapes'} has"
            f" {len(categories)} instance classes: name the data that the model was trained on in"
            " DATASETS.TRAIN, or its classes in DATASETS.CLASSES"
        )
    return categories


def _draw_errors(
    cfg: CfgNode, dataset_name: str, folder: Path, summary: ErrorSummary, ap: FloatArray
) -> None:
    """Draw the errors of an evaluation that has ended."""
    num_images = len(DatasetCatalog.get(dataset_name))
    plot_errors(
        folder,
        summary,
        ap,
        sorted(dataset_categories(dataset_name)),
        about_run(cfg, [dataset_name], num_images, "official protocol"),
    )


# It predicts no masks; MODEL.MASK_ON has no effect on it.
_BOXES_ONLY: Final = "RetinaNet"
_NOT_AUGMENTED: Final = "TEST.AUG.ENABLED: a {} cannot be augmented, only GeneralizedRCNN"


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: Path) -> DatasetEvaluator:
    """Build the evaluator for a dataset by its ``evaluator_type``.

    Args:
        cfg: with several ``DATASETS.TEST``, each has a folder of its own in ``folder``.
        dataset_name: a registered dataset.
        folder: for the files that the evaluator writes.

    Raises:
        InputError: datasets of this type, or without labels, cannot be scored, a file with labels
            is missing, or the model predicts something else; or as :func:`check_inference`.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    evaluators: dict[str, Callable[..., DatasetEvaluator]] = {
        "cityscapes_instance": partial(
            CityscapesInstanceEvaluator,
            num_workers=cfg.TEST.NUM_WORKERS,
            masks=cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE != _BOXES_ONLY,
            analysis_confidence=cfg.TEST.ANALYSIS_CONFIDENCE,
            draw=partial(_draw_errors, cfg, dataset_name) if cfg.TEST.ANALYSIS_PICTURES else None,
        ),
        "cityscapes_sem_seg": partial(
            CityscapesSemanticEvaluator, num_workers=cfg.TEST.NUM_WORKERS
        ),
    }
    check_inference(cfg)
    if cfg.TEST.AUG.ENABLED:
        # Images are augmented last, after all that is scored without.
        if cfg.MODEL.META_ARCHITECTURE in (_BOXES_ONLY, "SemanticSegmentor"):
            raise InputError(_NOT_AUGMENTED.format(cfg.MODEL.META_ARCHITECTURE))
        _check_augmented_sizes(cfg)
    if kind not in evaluators:
        raise InputError(f"{dataset_name}: datasets of type {kind!r} cannot be scored here")
    # Other architectures, such as PanopticFPN, may predict both.
    not_predicted = {
        "GeneralizedRCNN": {"cityscapes_sem_seg"},
        "RetinaNet": {"cityscapes_sem_seg"},
        "SemanticSegmentor": {"cityscapes_instance"},
        "ProposalNetwork": {"cityscapes_instance", "cityscapes_sem_seg"},
    }
    architecture = cfg.MODEL.META_ARCHITECTURE
    if kind in not_predicted.get(architecture, ()):
        labels = "instances" if kind == "cityscapes_instance" else "semantic labels"
        raise InputError(
            f"dataset {dataset_name}: its {labels} are not what MODEL.META_ARCHITECTURE "
            f"{architecture} predicts"
        )
    evaluator = evaluators[kind](
        dataset_name, folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder
    )
    if kind == "cityscapes_instance":
        # Before any image is predicted.
        ground_truth_files(dataset_name)
    return evaluator


def check_metric(cfg: CfgNode, key: str = "SOLVER.BEST_CHECKPOINT_METRIC") -> None:
    """Verify that a metric is none that looks like a score but is none.

    Args:
        cfg: its ``DATASETS.TEST`` are scored by what :func:`build_evaluator` builds.
        key: names the metric.

    Raises:
        InputError: the metric is of a task of these evaluators, but not among their scores.
    """
    section, name = key.split(".")
    metric = cfg[section][name]
    names: list[str] = []
    for dataset in cfg.DATASETS.TEST:
        prefix = f"{dataset}/" if len(cfg.DATASETS.TEST) > 1 else ""
        names += [prefix + name for name in _score_names(cfg, dataset)]
    if cfg.SOLVER.EMA_DECAY:
        names += [f"{first}{SUFFIX}/{rest}" for first, _, rest in (n.partition("/") for n in names)]
    task = metric.rpartition("/")[0].rpartition("/")[2].removesuffix(SUFFIX)
    if metric not in names and task in ("segm", "coco_segm", "coco_bbox", "sem_seg"):
        near = difflib.get_close_matches(metric, names, n=1)
        hint = f"did you mean {near[0]}?" if near else ", ".join(names)
        raise InputError(f"{key} {metric}: is not measured; {hint}")


def _score_names(cfg: CfgNode, dataset_name: str) -> list[str]:
    """List what the evaluator of a dataset measures."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") == "cityscapes_sem_seg":
        classes = [f"IoU-{label.name}" for label in SEMANTIC_LABELS]
        return [f"sem_seg/{name}" for name in ("IoU", "iIoU", "IoU_sup", "iIoU_sup", *classes)]
    classes = metadata.get("thing_classes", THING_CLASSES)
    official = ["AP", "AP50", *(f"{ap}-{name}" for ap in ("AP", "AP50") for name in classes)]
    coco = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", *(f"AP-{name}" for name in classes)]
    names = [f"coco_bbox/{name}" for name in coco]
    if cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE != _BOXES_ONLY:
        names = (
            [f"segm/{name}" for name in official] + [f"coco_segm/{name}" for name in coco] + names
        )
    return names


def fit_to_evaluators(cfg: CfgNode, model: nn.Module, evaluators: Iterable[Any]) -> nn.Module:
    """Have a model leave its masks unpasted if all evaluators accept such masks.

    What counts are the evaluators, not the datasets: a trainer's ``build_evaluator`` may build any.

    Args:
        cfg: ``TEST.UNPASTED_MASKS``.
        model: plain or wrapped by DistributedDataParallel.
        evaluators: Detectron2 evaluators.

    Returns:
        The model to score.
    """

    def accepts(evaluator: Any) -> bool:
        if isinstance(evaluator, DatasetEvaluators):
            return all(map(accepts, evaluator._evaluators))
        if isinstance(evaluator, SampledPredictions):
            return True
        # A subclass may do something else with the masks.
        return (
            isinstance(evaluator, CityscapesInstanceEvaluator)
            and type(evaluator).process is CityscapesInstanceEvaluator.process
        )

    unpasted = cfg.TEST.UNPASTED_MASKS and all(map(accepts, evaluators))
    return leave_masks_unpasted(model) if unpasted else model


_PRECISIONS: Final = {"float32": torch.float32, **HALF_PRECISIONS}


def check_inference(cfg: CfgNode) -> None:
    """Verify that the device and the model can predict as the keys say.

    Raises:
        InputError: a value is out of its range, ``TEST.PRECISION`` is unknown or not for a CPU, or
            soft-NMS is not for this model.
    """
    check_ranges(cfg)
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    precisions = [name for name in _PRECISIONS if on_gpu or name != "float16"]
    if cfg.TEST.PRECISION not in precisions:
        raise InputError(
            f"TEST.PRECISION {cfg.TEST.PRECISION!r}: on MODEL.DEVICE {cfg.MODEL.DEVICE} it must be "
            f"one of {', '.join(precisions)}"
        )
    heads = cfg.MODEL.ROI_HEADS
    if heads.SOFT_NMS.METHOD != "off":
        others = {
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no such step": (
                cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "PanopticFPN")
            ),
            f"MODEL.ROI_HEADS.NAME {heads.NAME} has none; BatchedROIHeads has": (
                heads.NAME != "BatchedROIHeads"
            ),
            "TEST.AUG.ENABLED merges detections in its own way; set METHOD off with it": (
                cfg.TEST.AUG.ENABLED
            ),
        }
        for problem, present in others.items():
            if present:
                raise InputError(
                    f"MODEL.ROI_HEADS.SOFT_NMS.METHOD {heads.SOFT_NMS.METHOD}: {problem}"
                )


def for_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Have a model predict in ``TEST.PRECISION``, from images that are uploaded without waiting.

    Args:
        cfg: that key, checked by :func:`check_inference`.
        model: on its device, perhaps wrapped; its weights are shared and stay as they are.
    """
    on_gpu = next(model.parameters()).is_cuda
    dtype = _PRECISIONS[cfg.TEST.PRECISION]
    return InferenceModel(model, dtype) if on_gpu or dtype is not torch.float32 else model


class InferenceModel(nn.Module):
    """See :func:`for_inference`.

    Args:
        model: takes Detectron2's list of dicts.
        dtype: to compute in, where autocast finds it safe.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        # Detectron2 puts a model back into the mode it found it in.
        self.training = model.training
        self._device = next(model.parameters()).device
        self._dtype = dtype
        if dtype is not torch.float32:
            # Of any model, not only of a trainer's.
            pool_at_exact_boxes(model)
        self._last_layers = [
            module
            for module in model.modules()
            if isinstance(module, FastRCNNOutputLayers | BaseMaskRCNNHead)
        ]

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Predict; input and output are the model's.

        Raises:
            InputError: a GPU out of memory.
        """
        try:
            return self._predict(batched_inputs)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of memory on the GPU with {len(batched_inputs)} images: lower TEST.BATCH_SIZE"
                " or INPUT.MIN_SIZE_TEST, or set TEST.PRECISION bfloat16: "
                f"{str(error).partition('. GPU')[0]}"
            ) from error

    def _predict(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        inputs = list(batched_inputs)
        # Augmentation resizes images on the host.
        if not isinstance(self.model, GeneralizedRCNNWithTTA):
            inputs = [
                {**each, "image": each["image"].to(self._device, non_blocking=True)}
                for each in inputs
            ]
        if self._dtype is torch.float32:
            return self.model(inputs)
        with torch.autocast(self._device.type, self._dtype), ExitStack() as stack:
            for each in self._last_layers:
                # What follows is in float32: in half precision many scores are equal, and masks
                # are pasted pixels off their places.
                stack.callback(each.register_forward_hook(_outputs_in_float32).remove)
            outputs = self.model(inputs)
        return [{name: _in_float32(value) for name, value in each.items()} for each in outputs]


def _outputs_in_float32(_module: nn.Module, _inputs: Any, outputs: Sequence[Any]) -> list[Any]:
    return [_in_float32(each) for each in outputs]


def _in_float32(value: Any) -> Any:
    """Convert what a model predicts from half precision, which not all that follows understands."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, ROIMasks):
        return ROIMasks(value.tensor.float())
    if isinstance(value, Instances):
        fields = {name: _in_float32(field) for name, field in value.get_fields().items()}
        return Instances(value.image_size, **fields)
    return value


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> GeneralizedRCNNWithTTA:
    """Wrap a model so that it predicts every image in several sizes, and mirrored.

    Boxes of all versions go through non-maximum suppression together; the mask of each remaining
    one is the mean over all versions. A version costs plain inference and one more mask head.

    Args:
        cfg: ``TEST.AUG.MIN_SIZES`` (shorter side, pixels), ``MAX_SIZE`` (longer side) and ``FLIP``.
        model: plain or wrapped by DistributedDataParallel; its weights are shared.

    Raises:
        InputError: the model is no GeneralizedRCNN, or there are no sizes.
    """
    inner = getattr(model, "module", model)
    if not isinstance(inner, GeneralizedRCNN):
        raise InputError(_NOT_AUGMENTED.format(type(inner).__name__))
    _check_augmented_sizes(cfg)
    return GeneralizedRCNNWithTTA(cfg, inner)


def _check_augmented_sizes(cfg: CfgNode) -> None:
    sizes = list(cfg.TEST.AUG.MIN_SIZES)
    if not sizes or min(sizes) < 1 or max(sizes) > cfg.TEST.AUG.MAX_SIZE:
        raise InputError(
            f"TEST.AUG.MIN_SIZES {sizes}, MAX_SIZE {cfg.TEST.AUG.MAX_SIZE}: name at least one size"
            " in pixels, none larger than MAX_SIZE"
        )


def evaluate_checkpoint(
    trainer: type[DefaultTrainer], cfg: CfgNode, resume: bool
) -> dict[str, Any]:
    """Score ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Args:
        trainer: builds the model and tests it, with and without augmentation.
        cfg: the frozen config.
        resume: take the last checkpoint of ``OUTPUT_DIR`` instead, if there is one.

    Returns:
        The results on the main process, an empty dict on others.

    Raises:
        InputError: there are no weights, or not all, or no dataset to score on, or the model has
            seen images of it, or a value of the config is out of range.
    """
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST is empty: name a dataset to score on")
    check_ranges(cfg)
    register_datasets_of(cfg)
    # Missing data are found before the model is built.
    evaluators = [trainer.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
    model = trainer.build_model(cfg)
    checkpointer = load_for_inference(model, cfg, resume)
    seen = refuse_seen_images(cfg, checkpointer.history, roles=(TRAINED, TUNED))
    save_config(cfg, scoring=True)
    results: dict[str, Any] = trainer.test(cfg, model, evaluators)
    if cfg.TEST.AUG.ENABLED:
        results.update(trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        write_scores(cfg, checkpointer.path, without_nan(results), seen)
        if results and _no_number(results):
            raise InputError(
                f"DATASETS.TEST {', '.join(cfg.DATASETS.TEST)}: nothing could be scored, all scores"
                " are NaN: the ground truth has nothing of the dataset's classes that counts"
            )
        verify_results(cfg, results)
    return results


def _no_number(results: Mapping[str, Any]) -> bool:
    """Whether all scores, by task and perhaps by dataset before that, are NaN."""
    return all(
        _no_number(value)
        if isinstance(value, Mapping)
        else isinstance(value, float) and math.isnan(value)
        for value in results.values()
    )
