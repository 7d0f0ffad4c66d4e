"""What ends a training for a reason that the user can do something about, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cityscapes_maskrcnn.utils.errors import InputError


@contextmanager
def explained_errors(trainer: Any) -> Iterator[None]:
    """Explain what a training ends with in a ``with`` block.

    Args:
        trainer: a :class:`.trainer.Trainer`.

    Raises:
        InputError: a GPU out of memory, a loader that ended, or a loss that became infinite.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory on the GPU in iteration {trainer.iter}: raise SOLVER.ACCUMULATE (or let"
            " tools/train_net.py --auto-batch choose it), or lower INPUT.MIN_SIZE_TRAIN (in an "
            f"evaluation INPUT.MIN_SIZE_TEST): {str(error).partition('. GPU')[0]}"
        ) from error
    except StopIteration as error:
        raise InputError(
            f"the training loader ended before iteration {trainer.iter} of {trainer.max_iter}: "
            "build_train_loader must return an endless one, as Detectron2's is"
        ) from error
    except FloatingPointError as error:
        raise InputError(
            f"training diverged in iteration {trainer.iter}: {error}; {trainer._trainer.images}; "
            "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS"
        ) from error
