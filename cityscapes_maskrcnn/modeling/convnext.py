"""torchvision's ConvNeXt as a Detectron2 backbone, with Detectron2's feature pyramid on it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torchvision.models import convnext
from torchvision.ops import StochasticDepth

from cityscapes_maskrcnn.utils.errors import InputError

_STAGES = ("res2", "res3", "res4", "res5")


class ConvNeXt(Backbone):
    """The four stages of a ConvNeXt (Liu et al., CVPR 2022), as torchvision computes them.

    Of an (N, 3, H, W) input with sides that 32 divides, ``"res2"`` to ``"res5"`` have the sides
    H / 4 and W / 4 to H / 32 and W / 32; they are named as a ResNet's. A stage is its downsampling
    (none in ``res2``) followed by its blocks. No normalisation follows a stage.
    :mod:`.deeplab_weights` has torchvision's names of the tensors, :mod:`.timm_names` timm's.

    Args:
        depths: number of blocks of each stage.
        channels: of the first stage; each further one has twice as many.
        drop_path: probability with which the last block is left out for an image in training; it
            rises from 0 in the first block. Frozen blocks are never left out.
        freeze_at: how much is frozen: 0 nothing, 1 the stem, 2 the stem and ``res2``, ... 5 all.
        out_features: which of the stages to return.
    """

    def __init__(
        self,
        depths: Sequence[int],
        channels: int,
        drop_path: float,
        freeze_at: int,
        out_features: Sequence[str],
    ) -> None:
        super().__init__()
        widths = [channels * 2**stage for stage in range(len(_STAGES))]
        network = convnext.ConvNeXt(
            [
                convnext.CNBlockConfig(width, following, depth)
                for width, following, depth in zip(widths, [*widths[1:], None], depths, strict=True)
            ],
            stochastic_depth_prob=drop_path,
            num_classes=1,
        )
        layers = list(network.features)
        self.stem = layers[0]
        for index, name in enumerate(_STAGES):
            parts = OrderedDict[str, nn.Module]()
            if index:
                parts["downsample"] = layers[2 * index]
            parts.update((str(number), each) for number, each in enumerate(layers[2 * index + 1]))
            self.add_module(name, nn.Sequential(parts))
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(_STAGES, widths, strict=True))
        self._out_feature_strides = {name: 4 * 2**index for index, name in enumerate(_STAGES)}
        for name in ("stem", *_STAGES)[:freeze_at]:
            part = getattr(self, name).requires_grad_(False)
            for module in part.modules():
                if isinstance(module, StochasticDepth):
                    module.p = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features of normalised images, shape (N, 3, H, W)."""
        features = {}
        x = self.stem(x)
        for name in _STAGES:
            x = getattr(self, name)(x)
            features[name] = x
        return {name: features[name] for name in self._out_features}


@BACKBONE_REGISTRY.register()
def build_convnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a ConvNeXt with a feature pyramid, p2 to p6.

    Args:
        cfg: ``MODEL.CONVNEXT``, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.FPN`` are read.
        input_shape: of RGB images; its ``channels`` must be 3.

    Returns:
        The backbone, with randomly initialised weights.

    Raises:
        InputError: a value of the config makes no network.
    """
    keys = cfg.MODEL.CONVNEXT
    if input_shape.channels != 3:
        raise InputError("build_convnext_fpn_backbone: MODEL.PIXEL_MEAN must have 3 values")
    if (
        len(keys.DEPTHS) != len(_STAGES)
        or not all(isinstance(each, int) and each > 0 for each in keys.DEPTHS)
        or keys.CHANNELS < 1
        or not 0 <= keys.DROP_PATH < 1
    ):
        raise InputError(
            f"MODEL.CONVNEXT: DEPTHS {keys.DEPTHS}, CHANNELS {keys.CHANNELS} and DROP_PATH "
            f"{keys.DROP_PATH} are no network: expected 4 numbers of blocks from 1 on, channels "
            "from 1 on and a probability below 1"
        )
    unknown = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in _STAGES]
    if unknown:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES: a ConvNeXt gives {', '.join(_STAGES)}, not {unknown[0]}"
        )
    bottom_up = ConvNeXt(
        depths=keys.DEPTHS,
        channels=keys.CHANNELS,
        drop_path=keys.DROP_PATH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        out_features=cfg.MODEL.FPN.IN_FEATURES,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
