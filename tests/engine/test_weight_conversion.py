from __future__ import annotations

import torch

from cityscapes_maskrcnn.engine.weight_conversion import take_as_named


def test_what_is_no_tensor_is_skipped() -> None:
    weight = torch.zeros(2)
    tensors, report = take_as_named({"net.fc.weight": weight, "epoch": 3}, "last.ckpt")
    assert tensors == {"net.fc.weight": weight}
    assert report.used == {"net.fc.weight": "net.fc.weight"}
    assert report.skipped == {"epoch": "not tensors"}
    assert report.missing == ()
