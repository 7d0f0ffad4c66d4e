"""Data loaders for training, for inference, and for the validation loss."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import util
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.build import print_instances_class_histogram, trivial_batch_collator
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from cityscapes_maskrcnn.data.augmentation import copy_paste
from cityscapes_maskrcnn.data.image_cache import ImageCache
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.data.prefetch import PrefetchedLoader, prefetch
from cityscapes_maskrcnn.data.training_stream import TrainingStream
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import loader_context, start_worker

_WORKER_IMPORTS: Final = "cityscapes_maskrcnn.data.worker_imports"
_REPEATING: Final = "RepeatFactorTrainingSampler"


def training_dicts(cfg: CfgNode, log_classes: bool = False) -> list[dict[str, Any]]:
    """Load the images of one training epoch.

    Args:
        cfg: reads ``DATASETS.TRAIN``, ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``, and what decides the
            kind of ground truth: ``MODEL.META_ARCHITECTURE`` and ``MODEL.MASK_ON``.
        log_classes: log the number of instances of every class.

    Returns:
        Detectron2 dataset dicts.

    Raises:
        InputError: no dataset is named, its ground truth is of another kind than the model learns,
            an object has a class that the dataset's metadata do not name, or no image has an
            annotated instance.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    if not names:
        raise InputError("DATASETS.TRAIN is empty: name a dataset to train on")
    try:
        dicts: list[dict[str, Any]] = get_detection_dataset_dicts(
            names,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            check_consistency=False,
        )
    except AssertionError as error:
        raise InputError(f"DATASETS.TRAIN {names} has no image with an instance") from error
    needed = {"annotations": "instances", "sem_seg_file_name": "semantic labels"}
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        del needed["annotations"]
    elif cfg.MODEL.META_ARCHITECTURE != "PanopticFPN":
        del needed["sem_seg_file_name"]
    for field, kind in needed.items():
        if any(field not in image for image in dicts):
            raise InputError(
                f"DATASETS.TRAIN {names}: a {cfg.MODEL.META_ARCHITECTURE} learns {kind}, which "
                "these datasets do not have"
            )
    if "annotations" in needed:
        _check_objects(cfg, dicts, MetadataCatalog.get(names[0]).get("thing_classes"), log_classes)
    return dicts


def _check_objects(
    cfg: CfgNode, dicts: list[dict[str, Any]], classes: list[str] | None, log_classes: bool
) -> None:
    """Verify that annotated objects have a class and, if the model learns masks, an outline.

    Args:
        cfg: ``MODEL.MASK_ON``.
        dicts: with ``annotations``.
        classes: names by contiguous id; None: not known.
        log_classes: log the number of instances of every class.
    """
    for image in dicts:
        for each in image["annotations"]:
            if classes is not None and not 0 <= each["category_id"] < len(classes):
                raise InputError(
                    f"{image['file_name']}: an object has category_id {each['category_id']}, but "
                    f"the dataset has {len(classes)} classes, 0 to {len(classes) - 1}: "
                    f"{', '.join(classes)}"
                )
            if cfg.MODEL.MASK_ON and "segmentation" not in each:
                raise InputError(
                    f"{image['file_name']}: an object has a box but no segmentation, which a model "
                    "with MODEL.MASK_ON True learns; set it to False to learn boxes alone"
                )
    if classes is not None and log_classes:
        print_instances_class_histogram(dicts, classes)


def build_train_loader(cfg: CfgNode) -> DataLoader[Any] | PrefetchedLoader:
    """Build the endless loader of training batches of this process, on the GPU if it has one.

    Its ``dataset`` is :func:`build_training_stream`'s: set ``start_batch`` of it before iterating
    to continue an earlier run.

    Raises:
        InputError: see :func:`build_training_stream`.
    """
    stream = build_training_stream(cfg)
    loader = DataLoader(
        stream,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        drop_last=True,
        collate_fn=trivial_batch_collator,
        # A generator of its own: starting a loader draws a number, which must not be one that the
        # first step after a resume would have drawn.
        generator=torch.Generator().manual_seed(stream.seed),
        **_worker_options(cfg, stream),
    )
    # Detectron2 draws the ground truth of a batch from boxes on the CPU.
    return loader if cfg.VIS_PERIOD > 0 else prefetch(loader, cfg.MODEL.DEVICE)


def build_training_stream(cfg: CfgNode) -> TrainingStream:
    """Build the endless order of augmented training images of this process.

    With a negative ``SEED`` the order is drawn, alike in all processes.

    Raises:
        InputError: see :func:`training_dicts` and :func:`.augmentation.copy_paste`; the batch
            cannot be divided among the processes, or a key of Detectron2's loader is set that this
            one does not support.
    """
    total, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total < 1:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {total}: at least 1")
    if total % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {total} cannot be shared equally by {processes} processes"
        )
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    unsupported = {
        f"DATALOADER.SAMPLER_TRAIN {sampler}": sampler not in ("TrainingSampler", _REPEATING),
        "MODEL.LOAD_PROPOSALS True": cfg.MODEL.LOAD_PROPOSALS,
        "MODEL.KEYPOINT_ON True": cfg.MODEL.KEYPOINT_ON,
    }
    for key, is_set in unsupported.items():
        if is_set:
            raise InputError(
                f"{key}: this project's training loader does not support it; only an override of "
                "Trainer.build_train_loader can"
            )
    dicts = training_dicts(cfg, log_classes=True)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        # Images of one orientation, as all of Cityscapes, are one group.
        orientations = {each["width"] > each["height"] for each in dicts if "width" in each}
        if len(orientations) > 1:
            raise InputError(
                "DATALOADER.ASPECT_RATIO_GROUPING True: DATASETS.TRAIN has landscape and portrait "
                "images, which this project does not group; set it to False"
            )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # DatasetFromList keeps the dicts as one array, which worker processes share.
    shared = DatasetFromList(dicts, copy=False)
    mapper = CityscapesMapper(cfg, is_train=True)
    _check_cache(mapper, dicts)
    mixed = None
    if cfg.INPUT.COPY_PASTE.PROB:
        polygon_type, mapper.polygon_type = mapper.polygon_type, None
        mixed = copy_paste(cfg, mapper, shared, polygon_type)
    return TrainingStream(
        dicts=shared,
        mapper=mixed or mapper,
        seed=seed,
        batch_size=total // processes,
        repeat_factors=_repeat_factors(cfg, dicts) if sampler == _REPEATING else None,
    )


def _repeat_factors(cfg: CfgNode, dicts: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """Compute how often a pass has each image: Detectron2's factors, of the rarest class in it."""
    if not 0.0 < cfg.DATALOADER.REPEAT_THRESHOLD <= 1.0:
        raise InputError(
            f"DATALOADER.REPEAT_THRESHOLD is {cfg.DATALOADER.REPEAT_THRESHOLD}: with {_REPEATING} "
            "it must be above 0 and at most 1: images with classes that are in a smaller share of "
            "all images are repeated"
        )
    if any("annotations" not in image for image in dicts):
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {_REPEATING}: DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} "
            "has no instances, whose classes decide how often images are repeated; use "
            "TrainingSampler"
        )
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    logging.getLogger(__name__).info(
        "%s: a pass over %d images has %.0f examples on average",
        _REPEATING,
        len(dicts),
        float(factors.sum()),
    )
    numbers: npt.NDArray[np.float32] = factors.numpy()
    return numbers


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
    """Build the loader of a dataset to score: this process's share, in order.

    Batches are of images of one size, ``TEST.BATCH_SIZE`` at most.
    """
    dicts = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    mapper = CityscapesMapper(cfg, is_train=False)
    return inference_loader(dicts, mapper, cfg, batch_size=cfg.TEST.BATCH_SIZE)


def build_validation_loader(cfg: CfgNode) -> DataLoader[Any] | PrefetchedLoader:
    """Build a loader of ``DATASETS.TEST`` with ground truth, at the size of inference.

    Its worker processes stay for the next time that it is gone through.
    """
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = CityscapesMapper(
        cfg,
        is_train=True,
        augmentations=[resize],
        recompute_boxes=False,  # INPUT.CROP is for training alone
    )
    return prefetch(inference_loader(dicts, mapper, cfg, persistent=True), cfg.MODEL.DEVICE)


def inference_loader(
    dicts: Sequence[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any],
    cfg: CfgNode,
    *,
    batch_size: int = 1,
    persistent: bool = False,
) -> DataLoader[Any]:
    """Build a loader that goes through this process's share of some images once, in order.

    Args:
        dicts: Detectron2 dataset dicts of all processes.
        mapper: turns one of them into the model's input.
        cfg: ``DATALOADER.NUM_WORKERS`` and ``MODEL.DEVICE``.
        batch_size: the most images of a batch. Those of one are next to each other and have one
            size; an image whose dict does not name its size is a batch of its own.
        persistent: worker processes stay for the next time that the loader is gone through.
    """
    _check_cache(mapper, dicts)
    dataset = MapDataset(DatasetFromList(list(dicts), copy=False), mapper)
    return DataLoader(
        dataset,
        batch_sampler=_same_size_batches(dicts, InferenceSampler(len(dataset)), batch_size),
        collate_fn=trivial_batch_collator,
        **_worker_options(cfg, mapper, persistent=persistent),
    )


def _same_size_batches(
    dicts: Sequence[dict[str, Any]], indices: Iterable[int], batch_size: int
) -> list[list[int]]:
    """Divide images into batches, in order; see :func:`inference_loader`."""
    batches: list[list[int]] = []
    size_before = None
    for index in indices:
        size = (dicts[index].get("height"), dicts[index].get("width"))
        fits = size == size_before and None not in size and len(batches[-1]) < batch_size
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
        size_before = size
    return batches


def _check_cache(mapper: object, dicts: Sequence[dict[str, Any]]) -> None:
    """Verify that the decoded images fit into the cache of the mapper, if it has one."""
    cache = getattr(mapper, "cache", None)
    if isinstance(cache, ImageCache):
        cache.check_space(
            (each["file_name"], each.get("height"), each.get("width")) for each in dicts
        )


def _worker_options(cfg: CfgNode, mapper: object, *, persistent: bool = False) -> dict[str, Any]:
    """Get the arguments of a DataLoader that concern its memory and its worker processes."""
    pin_memory = cfg.MODEL.DEVICE.startswith("cuda")
    num_workers = cfg.DATALOADER.NUM_WORKERS
    if num_workers < 1:
        return {"num_workers": 0, "pin_memory": pin_memory}
    # Of an instance, the module of its class.
    with_main = getattr(mapper, "__module__", "") == "__main__"
    return {
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "persistent_workers": persistent,
        "multiprocessing_context": loader_context(_WORKER_IMPORTS, with_main),
        "worker_init_fn": _start_worker,
    }


def _start_worker(_worker_id: int) -> None:
    """Leave signals to the training process, which needs its workers to finish its step and save.

    A worker ends with that process, also when it is stuck in a read.
    """
    start_worker()
    # Otherwise it removes sockets in its end, and shows a traceback if that process, which ends
    # too, has removed them before.
    util.Finalize(None, os._exit, args=(0,), exitpriority=100)
