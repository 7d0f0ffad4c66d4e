"""Values of a config that only building or the first iteration finds out about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError


def test_images_too_small_for_batch_norm(train: Callable[..., Trainer]) -> None:
    """Of 96x192 pixels 2 x 4 are left: one cell of the backbone's last feature map."""
    with pytest.raises(InputError) as caught:
        train("INPUT.MIN_SIZE_TRAIN", "(2,)", "SOLVER.IMS_PER_BATCH", 1)
    message = str(caught.value)
    assert message.startswith("iteration 0: the images are too small for live BatchNorm, which ")
    assert "; images of the batch: /" in message


def test_batches_that_do_not_divide_among_processes(train: Callable[..., Trainer]) -> None:
    with pytest.raises(InputError, match=r"^SOLVER: .* REFERENCE_WORLD_SIZE in config!$"):
        train("SOLVER.REFERENCE_WORLD_SIZE", 3)
