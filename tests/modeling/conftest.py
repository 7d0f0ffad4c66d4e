from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def plain_tensors() -> dict[str, Tensor]:
    """What every reader of weights should read: other strides, types, no dimensions, no values."""
    return {
        "a.weight": torch.arange(6.0).reshape(2, 3).t(),
        "a.bias": torch.zeros(2, dtype=torch.float16),
        "b.num_batches_tracked": torch.tensor(7),
        "b.empty": torch.zeros(0, 3),
    }
