"""Find the largest micro-batch that fits into a GPU's memory: ``--auto-batch``."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from cityscapes_maskrcnn.engine.dry_run import dry_run
from cityscapes_maskrcnn.engine.precision import CheckedTrainer
from cityscapes_maskrcnn.utils.errors import InputError

# Batches of other images may need a little more than the one that is tried.
_USABLE_MEMORY: Final = 0.92

logger = logging.getLogger(__name__)


def largest_micro_batch(fits: Callable[[int], bool], batch: int) -> int:
    """Find the largest equal part of a batch that fits.

    Args:
        fits: whether so many images fit; asked from ``batch`` downwards.
        batch: number of images.

    Raises:
        InputError: not even one image fits.
    """
    for size in range(batch, 0, -1):
        if batch % size == 0 and fits(size):
            return size
    raise InputError(
        "--auto-batch: not even one image fits into the GPU's memory: set "
        "MODEL.ACTIVATION_CHECKPOINTING or SOLVER.AMP.ENABLED True, or lower INPUT.MIN_SIZE_TRAIN"
    )


def choose_accumulation(trainer: Any) -> int:
    """Choose ``SOLVER.ACCUMULATE`` so that ``SOLVER.IMS_PER_BATCH`` stays the batch of a step.

    All processes call this and choose alike: what fits in all of them. Weights, statistics and
    random choices stay what they are.

    Args:
        trainer: a :class:`.trainer.Trainer`, its weights loaded.

    Returns:
        The number of micro-batches; on a CPU that of the config.

    Raises:
        InputError: not even one image fits, or processes would wait for each other inside a step.
    """
    cfg, step = trainer.cfg, trainer._trainer
    if not next(trainer.model.parameters()).is_cuda:
        logger.warning(
            "--auto-batch: nothing to find on a CPU: SOLVER.ACCUMULATE stays %d",
            cfg.SOLVER.ACCUMULATE,
        )
        return int(cfg.SOLVER.ACCUMULATE)
    processes = comm.get_world_size()
    if processes > 1 and any("Sync" in type(each).__name__ for each in trainer.model.modules()):
        raise InputError(
            "--auto-batch: cannot be tried with SyncBN in several processes: set SOLVER.ACCUMULATE"
        )
    share = cfg.SOLVER.IMS_PER_BATCH // processes
    example = _largest_example(trainer.build_train_loader, cfg)
    reserved = _copies_of_weights(trainer)
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return all(comm.all_gather(try_step(step, [example] * size, whole=size == share)))

    torch.cuda.set_per_process_memory_fraction(_USABLE_MEMORY)
    try:
        size = largest_micro_batch(fits, share)
    finally:
        del reserved
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
    logger.info(
        "--auto-batch: micro-batches of %d images fit%s: SOLVER.ACCUMULATE %d x %d images x %d "
        "processes = SOLVER.IMS_PER_BATCH %d",
        size,
        f", of {tried[-2]} do not" if tried[1:] else "",
        share // size,
        size,
        processes,
        cfg.SOLVER.IMS_PER_BATCH,
    )
    return share // size


def try_step(step: CheckedTrainer, images: list[dict[str, Any]], whole: bool) -> bool:
    """Find out whether there is memory for the gradients of a micro-batch.

    Args:
        step: what trains the model; afterwards it has no gradients.
        images: a micro-batch.
        whole: whether it is the only one of its batch. Others are tried twice, one after the other:
            the second one finds the gradients of the first in memory.
    """
    model: Any = getattr(step.model, "module", step.model)
    accumulate = step.accumulate
    step.accumulate = 1 if whole else 2
    try:
        with dry_run(model):
            step.compute_gradients(model, images if whole else [*images, *images])
    except torch.OutOfMemoryError:
        fits = False
    except FloatingPointError:
        # Of random weights; what is not finite takes no less memory.
        fits = True
    else:
        fits = True
    finally:
        step.accumulate = accumulate
        step.optimizer.zero_grad()
    # The error kept what was computed.
    gc.collect()
    torch.cuda.empty_cache()
    return fits


def _largest_example(load: Callable[[CfgNode], Any], cfg: CfgNode) -> dict[str, Any]:
    """Load a training example at the largest size, of a batch the one with the most objects."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.DATALOADER.NUM_WORKERS = 0
    batch: list[dict[str, Any]] = next(iter(load(cfg)))
    return max(batch, key=lambda each: len(each.get("instances", ())))


def _copies_of_weights(trainer: Any) -> list[torch.Tensor]:
    """Take the memory that comes to be used with the first step only.

    That is the optimizer's state, the average of the weights, and what processes exchange.
    """
    optimizer = trainer._trainer.optimizer
    copies = 0
    if not optimizer.state:
        copies += 2 if "betas" in optimizer.defaults else 1
    copies += bool(trainer.cfg.SOLVER.EMA_DECAY) + (comm.get_world_size() > 1)
    trained = [each for each in trainer.model.parameters() if each.requires_grad]
    return [torch.empty_like(each) for _ in range(copies) for each in trained]
