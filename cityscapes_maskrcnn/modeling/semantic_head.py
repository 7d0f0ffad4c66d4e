"""Semantic heads of stage 0: torchvision's DeepLabv3, and one on a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from cityscapes_maskrcnn.utils.errors import InputError


def _conv(in_channels: int, out_channels: int, kernel: int, norm: str, dilation: int = 1) -> Conv2d:
    """Make a convolution with normalisation and ReLU that keeps height and width."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=F.relu_,
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, with the branches of torchvision's.

    Detectron2 has an ASPP too; its pooling branch has a bias where this one has BatchNorm.

    Args:
        in_channels: channels of the feature map.
        channels: of every branch and of the output.
        dilations: one 3x3 branch for each; there are a 1x1 branch and a pooling branch besides.
        dropout: probability, after the projection.
        norm: as in :func:`detectron2.layers.get_norm`.

    Source: Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017.
    """

    def __init__(
        self, in_channels: int, channels: int, dilations: Sequence[int], dropout: float, norm: str
    ) -> None:
        super().__init__()
        branches = [_conv(in_channels, channels, 1, norm)]
        branches += [_conv(in_channels, channels, 3, norm, dilation) for dilation in dilations]
        branches += [_conv(in_channels, channels, 1, norm)]
        self.convs = nn.ModuleList(branches)
        self.project = _conv(len(branches) * channels, channels, 1, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, ``channels``, H, W) from (N, ``in_channels``, H, W).

        Raises:
            InputError: training with BatchNorm on a single image, whose pooled value has no
                variance.
        """
        pooling = self.convs[-1]
        if len(x) == 1 and isinstance(pooling.norm, nn.BatchNorm2d) and pooling.norm.training:
            raise InputError(
                "DeepLabv3's pooling branch needs at least 2 training images in every process: "
                "raise SOLVER.IMS_PER_BATCH, lower SOLVER.ACCUMULATE or use fewer processes"
            )
        outputs = [conv(x) for conv in self.convs[:-1]]
        outputs.append(pooling(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:]))
        return self.dropout(self.project(torch.cat(outputs, dim=1)))


@SEM_SEG_HEADS_REGISTRY.register()
class TorchvisionDeepLabV3Head(nn.Module):
    """ASPP, a 3x3 convolution and a classifier, upsampled to the size of the network's input.

    For Detectron2's ``SemanticSegmentor``, on a backbone that also returns its input as the
    feature ``"image"`` (:class:`.backbone.DilatedResNet`). With the weights of torchvision's
    ``deeplabv3_resnet50`` (:mod:`.deeplab_weights`) the logits are the same.

    Args:
        input_shape: the backbone's features.
        in_feature: which of them to classify.
        num_classes: number of classes.
        channels: of the ASPP and of the 3x3 convolution.
        dilations: of the ASPP's three 3x3 branches, in cells of the feature map.
        dropout: probability, after the ASPP's projection.
        norm: "BN", or another of :func:`detectron2.layers.get_norm`.
        ignore_value: label of pixels without loss.
        loss_weight: factor of the loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_feature: str,
        num_classes: int,
        channels: int = 256,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
        norm: str = "BN",
        ignore_value: int = 255,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name in (in_feature, "image"):
            if name not in input_shape:
                raise InputError(
                    f"TorchvisionDeepLabV3Head needs the feature {name!r}, but the backbone gives "
                    f"{', '.join(input_shape)}; build_dilated_resnet_backbone gives it"
                )
        self.in_feature = in_feature
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.aspp = ASPP(input_shape[in_feature].channels, channels, dilations, dropout, norm)
        self.conv = _conv(channels, channels, 3, norm)
        self.predictor = Conv2d(channels, num_classes, kernel_size=1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from ``MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        if len(head.IN_FEATURES) != 1:
            raise InputError(
                "MODEL.SEM_SEG_HEAD.IN_FEATURES: TorchvisionDeepLabV3Head classifies one feature, "
                f"such as ['res5'], not {head.IN_FEATURES}"
            )
        return {
            "input_shape": input_shape,
            "in_feature": head.IN_FEATURES[0],
            "num_classes": head.NUM_CLASSES,
            "channels": head.CONVS_DIM,
            "dilations": head.ASPP_DILATIONS,
            "dropout": head.ASPP_DROPOUT,
            "norm": head.NORM,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Classify every pixel.

        Args:
            features: ``in_feature`` of shape (N, C, H', W') and ``"image"`` of shape (N, 3, H, W).
            targets: class indices and ``ignore_value``, int64 of shape (N, H, W); for training.

        Returns:
            In training None and ``loss_sem_seg``, the mean cross-entropy of the labelled pixels
            of the batch; otherwise float32 logits of shape (N, ``num_classes``, H, W).
        """
        logits = self.predictor(self.conv(self.aspp(features[self.in_feature])))
        # In float32 also under autocast, as Detectron2's heads; bilinear as torchvision's.
        logits = F.interpolate(
            logits.float(), size=features["image"].shape[2:], mode="bilinear", align_corners=False
        )
        if not self.training:
            return logits, {}
        loss = labelled_cross_entropy(logits, targets, self.ignore_value)
        return None, {"loss_sem_seg": self.loss_weight * loss}


@SEM_SEG_HEADS_REGISTRY.register()
class CoarseSemSegFPNHead(SemSegFPNHead):
    """Detectron2's semantic head on a feature pyramid, for labels that leave much out.

    The mean of its loss is over the labelled pixels of a batch, of which there may be none. Levels
    of the pyramid are upsampled to ``MODEL.SEM_SEG_HEAD.COMMON_STRIDE`` and added.

    Source: Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019.
    """

    def losses(self, predictions: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        """Compute ``loss_sem_seg``.

        Args:
            predictions: logits of shape (N, ``num_classes``, H / stride, W / stride).
            targets: labels of shape (N, H, W).
        """
        logits = F.interpolate(
            predictions.float(),
            scale_factor=self.common_stride,
            mode="bilinear",
            align_corners=False,
        )
        loss = labelled_cross_entropy(logits, targets, self.ignore_value)
        return {"loss_sem_seg": self.loss_weight * loss}


def labelled_cross_entropy(logits: Tensor, targets: Tensor | None, ignore_value: int) -> Tensor:
    """Average the cross-entropy over the labelled pixels of a batch; 0 where there are none.

    Args:
        logits: float32, (N, C, H, W).
        targets: int64, (N, H, W): 0 to C - 1, or ``ignore_value``.
        ignore_value: label of pixels without loss.

    Raises:
        InputError: there are no targets.
    """
    if targets is None:
        raise InputError(
            "DATASETS.TRAIN holds images without semantic labels, which this model trains on; "
            "name a dataset such as cityscapes_coarse_semantic_pretrain"
        )
    # The mean that torch offers is NaN where all is ignored; coarse labels have such crops.
    # Summed apart from it: its own sum over images is not reproducible on a GPU.
    losses = F.cross_entropy(logits, targets, ignore_index=ignore_value, reduction="none")
    return losses.sum() / (targets != ignore_value).sum().clamp(min=1)
