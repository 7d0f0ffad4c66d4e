"""Explain, in one line, errors that end a training and that the user can fix."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import message_with_type


@contextmanager
def explained_errors(trainer: Any) -> Iterator[None]:
    """Explain what a training ends with in a ``with`` block.

    Args:
        trainer: a :class:`.trainer.Trainer`.

    Raises:
        InputError: a GPU out of memory, a loader that ended, images too small for BatchNorm, or a
            loss that became infinite.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory on the GPU in iteration {trainer.iter}: raise SOLVER.ACCUMULATE (now "
            f"{trainer.cfg.SOLVER.ACCUMULATE}; tools/train_net.py --auto-batch finds a value), set "
            "MODEL.ACTIVATION_CHECKPOINTING, or lower INPUT.MIN_SIZE_TRAIN (in an evaluation "
            f"INPUT.MIN_SIZE_TEST): {str(error).partition('. GPU')[0]}"
        ) from error
    except StopIteration as error:
        raise InputError(
            f"the training loader ended before iteration {trainer.iter} of {trainer.max_iter}: "
            "build_train_loader must return an endless one, as Detectron2's is"
        ) from error
    except ValueError as error:
        # Of torch's batch_norm.
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        raise InputError(
            f"iteration {trainer.iter}: the images are too small for live BatchNorm, which would "
            f"average over a single cell of a feature map; {trainer._trainer.images}; raise "
            "INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, CROP.SIZE or LSJ.SIZE, or the batch"
        ) from error
    except FloatingPointError as error:
        raise InputError(
            f"training diverged in iteration {trainer.iter}: {error}; {trainer._trainer.images}; "
            "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS"
        ) from error


@contextmanager
def explained_keys(section: str, what: str) -> Iterator[None]:
    """Explain what Detectron2 raises while it builds something of a config in a ``with`` block.

    Args:
        section: of the config's keys.
        what: is built, for the message.

    Raises:
        InputError: Detectron2 or torch raised an error. One of a user's own module, such as a
            registered one, passes through.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a wrong value makes Detectron2 raise errors of any type
        modules = {
            frame.f_globals.get("__name__", "").partition(".")[0]
            for frame, _ in traceback.walk_tb(error.__traceback__)
        }
        libraries = {__name__.partition(".")[0], "detectron2", "fvcore", "torch", "yacs"}
        if not modules <= {*libraries, *sys.stdlib_module_names}:
            raise
        raise InputError(
            f"{section}: Detectron2 cannot build {what} of these keys: {message_with_type(error)}"
        ) from error
