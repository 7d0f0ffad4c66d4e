from __future__ import annotations

import pytest
import torch
from torch import nn

from cityscapes_maskrcnn.engine.submission import weights_digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_digest_sees_every_value_and_name(dtype: torch.dtype) -> None:
    model = nn.BatchNorm2d(3).to(dtype)  # its counter of batches is a number without dimensions
    before = weights_digest(model)
    assert weights_digest(nn.BatchNorm2d(3).to(dtype)) == before
    with torch.no_grad():
        model.weight[1] += 0.5
    assert weights_digest(model) != before
    assert weights_digest(nn.Sequential(nn.BatchNorm2d(3).to(dtype))) != before
