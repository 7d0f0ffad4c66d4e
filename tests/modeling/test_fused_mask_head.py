from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.modeling.folding import activate_in_place
from cityscapes_maskrcnn.modeling.fused_mask_head import FusedMaskHead

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def heads(
    num_classes: int = 8, conv_norm: str = "", device: str = "cpu"
) -> tuple[MaskRCNNConvUpsampleHead, FusedMaskHead]:
    """Detectron2's head and ours of the same weights: 12 channels become 10."""
    torch.manual_seed(0)
    both = [
        kind(
            ShapeSpec(channels=12, width=14, height=14),
            num_classes=num_classes,
            conv_dims=[10, 10, 10],
            conv_norm=conv_norm,
        )
        for kind in (MaskRCNNConvUpsampleHead, FusedMaskHead)
    ]
    for parameter in both[0].parameters():
        nn.init.normal_(parameter, std=0.3)
    both[1].load_state_dict(both[0].state_dict())
    stock, fused = (each.to(device, torch.float64) for each in both)
    return stock, fused


def logits_and_gradients(head: MaskRCNNConvUpsampleHead, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    logits = head.layers(x)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    (logits * weights.to(x.device)).sum().backward()
    return [logits, x.grad, *(each.grad for each in head.parameters())]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("num_classes", "conv_norm", "number"),
    [(8, "", 5), (1, "", 5), (8, "BN", 3), (8, "", 0)],
)
def test_logits_and_gradients_are_detectron2_s(
    num_classes: int, conv_norm: str, number: int, device: str
) -> None:
    stock, fused = heads(num_classes, conv_norm, device)
    # As after pooling, and not square.
    x = torch.rand(number, 12, 14, 11, dtype=torch.float64).to(device)
    for theirs, ours in zip(
        logits_and_gradients(stock, x), logits_and_gradients(fused, x), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    for layout in (torch.channels_last, torch.contiguous_format):
        fused = fused.to(memory_format=layout)
        torch.testing.assert_close(fused.layers(x), stock.layers(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_in_half_precision_they_agree_to_its_rounding(device: str) -> None:
    stock, fused = (each.float() for each in heads(device=device))
    x = torch.rand(4, 12, 14, 14, device=device)
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        theirs, ours = stock.layers(x), activate_in_place(fused).layers(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert ours.shape == theirs.shape
    scale = float(theirs.abs().max())
    assert float((ours.float() - theirs.float()).abs().max()) < 0.03 * scale


def test_no_feature_map_of_the_masks_size_is_convolved() -> None:
    stock, fused = heads()
    x = torch.rand(4, 12, 14, 14, dtype=torch.float64)
    counts = []
    for head in (stock, fused):
        with torch.no_grad(), OperationCounter() as count:
            head.layers(x)
        counts.append(count.operations["aten::convolution"])
    # Of five convolutions, the transposed one and the predictor are matrix products.
    assert counts == [4, 2]
