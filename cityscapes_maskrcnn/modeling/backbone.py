"""The dilated ResNet of torchvision's DeepLabv3, built from Detectron2's blocks."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import Tensor

from cityscapes_maskrcnn.utils.errors import InputError

# Depth -> number of blocks of each stage, res2 to res5.
_NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Per stage: stride of the first block, its dilation, and that of the other blocks. In torchvision
# a stage that is dilated instead of strided keeps the dilation of the stage before in its first
# block, so Detectron2's one value per stage cannot express it.
_STAGES = ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4))


class DilatedResNet(ResNet):
    """A ResNet that also returns its input, as the feature ``"image"``.

    A head that predicts at the size of the input takes it from there; it does not follow from the
    features, whose sizes are rounded up: of an (N, 3, H, W) input ``"res5"`` has the shape
    (N, 2048, ceil(H / 8), ceil(W / 8)).
    """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features of normalised images, shape (N, 3, H, W)."""
        return {**super().forward(x), "image": x}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Get channels and stride of every feature."""
        image = ShapeSpec(channels=self.stem.in_channels, stride=1)
        return {**super().output_shape(), "image": image}


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedResNet:
    """Build the ResNet of torchvision's ``deeplabv3_resnet50`` or ``101``, of output stride 8.

    With ``MODEL.RESNETS.STRIDE_IN_1X1 False`` and the same weights it computes the same features.

    Args:
        cfg: ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.RESNETS`` are read; of the latter, the keys
            about dilation and deformable convolutions have no meaning here.
        input_shape: its ``channels`` are read.

    Returns:
        The backbone, with randomly initialised weights.

    Raises:
        InputError: ``MODEL.RESNETS.DEPTH`` is neither 50 nor 101.
    """
    resnet = cfg.MODEL.RESNETS
    if resnet.DEPTH not in _NUM_BLOCKS:
        raise InputError(
            f"MODEL.RESNETS.DEPTH {resnet.DEPTH}: build_dilated_resnet_backbone builds the depths "
            f"{' and '.join(map(str, _NUM_BLOCKS))}, those of torchvision's DeepLabv3"
        )
    in_channels, out_channels = resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS
    width = resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP
    stem = BasicStem(in_channels=input_shape.channels, out_channels=in_channels, norm=resnet.NORM)
    stages = []
    for num_blocks, (first_stride, first_dilation, dilation) in zip(
        _NUM_BLOCKS[resnet.DEPTH], _STAGES, strict=True
    ):
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                num_blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                bottleneck_channels=width,
                num_groups=resnet.NUM_GROUPS,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                dilation_per_block=[first_dilation] + [dilation] * (num_blocks - 1),
                norm=resnet.NORM,
                stride_in_1x1=resnet.STRIDE_IN_1X1,
            )
        )
        in_channels, out_channels, width = out_channels, 2 * out_channels, 2 * width
    return DilatedResNet(
        stem,
        stages,
        out_features=resnet.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
