"""Mask R-CNN's mask head that upsamples class scores instead of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn


@ROI_MASK_HEAD_REGISTRY.register()
class FusedMaskHead(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` with faster last layers: the same parameters, equal logits.

    The transposed convolution has a 2x2 kernel and a stride of 2, so that a cell alone determines
    four pixels; the layers behind it look at one pixel each. Both are matrix products over cells
    then, and only the logits, of few channels, are moved to where the pixels are.
    """

    def layers(self, x: Tensor) -> Tensor:
        """Compute the logits of masks; they differ from Detectron2's by rounding.

        Args:
            x: pooled features, (M, C, size, size).

        Returns:
            (M, K, 2 * size, 2 * size) of K classes.
        """
        *convs, deconv, relu, predictor = self
        if x.device.type == "cpu":
            # The convolutions of oneDNN are up to 1.3 times faster in this layout.
            x = x.contiguous(memory_format=torch.channels_last)
        for conv in convs:
            x = conv(x)
        number, channels, height, width = x.shape
        cells = x.permute(0, 2, 3, 1).reshape(-1, channels)
        features = relu(F.linear(cells, *weights_of_cells(deconv)))
        logits = F.linear(
            features.view(-1, 4, deconv.out_channels),
            predictor.weight.flatten(1),
            predictor.bias,
        )
        classes = logits.shape[-1]
        logits = logits.view(number, height, width, 2, 2, classes)
        return logits.permute(0, 5, 1, 3, 2, 4).reshape(number, classes, 2 * height, 2 * width)


def weights_of_cells(deconv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Get the matrix product by which an upsampling layer computes four pixels from a cell.

    Args:
        deconv: from C to D channels, with a 2x2 kernel, a stride of 2 and a bias.

    Returns:
        Weight (4 * D, C) and bias (4 * D,), of the pixels of a cell row by row.
    """
    # From (C, D, 2, 2), the layout of a transposed convolution.
    weight = deconv.weight.permute(2, 3, 1, 0).reshape(-1, deconv.in_channels)
    assert deconv.bias is not None
    return weight, deconv.bias.repeat(4)
