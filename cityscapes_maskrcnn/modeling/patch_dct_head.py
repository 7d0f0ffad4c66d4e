"""PatchDCT: a mask of 112x112 from one vector, refined patch by patch (Wen et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import BaseMaskRCNNHead
from detectron2.structures import Instances
from torch import Tensor, nn

from cityscapes_maskrcnn.modeling.dct import dct_matrix, join_patches, split_patches
from cityscapes_maskrcnn.modeling.polygon_masks import mask_targets
from cityscapes_maskrcnn.modeling.pooling import BatchedROIPooler
from cityscapes_maskrcnn.modeling.step_metrics import StepMetrics

# The paper's sizes. 42 = 3 x 14: a convolution with stride 3 makes a cell of each patch.
_MASK_SIZE: Final = 112
_VECTOR_DIM: Final = 300
_PATCH_SIZE: Final = 8
_PATCH_VECTOR_DIM: Final = 6
_CELLS: Final = _MASK_SIZE // _PATCH_SIZE
_FINE_STRIDE: Final = 3
_BACKGROUND, _MIXED, _FOREGROUND = range(3)


@ROI_MASK_HEAD_REGISTRY.register()
class PatchDCTHead(StepMetrics, BaseMaskRCNNHead):
    """A mask head that takes its own samples, as PointRend's does, from the features of all levels.

    From 14x14 samples of a region, convolutions and linear layers predict the lowest 300
    frequencies of its mask, the same for all classes. The mask that they decode to and 42x42
    samples of the finest level give, for each of its 14x14 patches of 8x8 pixels and each class,
    whether the patch is background, foreground or mixed, and the lowest 6 frequencies of a mixed
    one.

    Layers start as those of Detectron2's mask heads do: convolutions by He's rule (MSRA), hidden
    linear layers by Xavier's, outputs from a normal distribution with a standard deviation of
    0.001. The authors' code initialises its layers differently.

    Args:
        in_features: names of the levels, the finest first.
        in_channels: of each level.
        coarse_pooler: takes samples of all levels.
        fine_pooler: takes 42x42 samples of the finest one.
        num_classes: number of classes that patches are predicted for; 1: of all alike.
        num_conv: convolutions before the vector.
        conv_dim: their channels, and those of the convolutions at 42x42.
        fc_dim: outputs of the linear layers, and channels of the convolutions at 14x14.
        conv_norm: see :func:`detectron2.layers.get_norm`.
        solid_thresh: a patch is foreground or background, whichever is more probable, from this
            probability on, also if it is more probably mixed.
        loss_weight: of all losses.
    """

    # It samples features at the proposals of the foreground, which BatchedROIHeads has at hand.
    takes_foreground = True

    dct: Tensor
    patch_dct: Tensor

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: int,
        coarse_pooler: BatchedROIPooler,
        fine_pooler: BatchedROIPooler,
        num_classes: int,
        num_conv: int,
        conv_dim: int,
        fc_dim: int,
        conv_norm: str = "",
        solid_thresh: float = 0.3,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight=loss_weight)
        self.in_features = tuple(in_features)
        self.coarse_pooler = coarse_pooler
        self.fine_pooler = fine_pooler
        self.num_classes = num_classes
        self.solid_thresh = solid_thresh

        def conv(inputs: int, outputs: int, stride: int = 1) -> Conv2d:
            layer = Conv2d(
                inputs,
                outputs,
                kernel_size=3,
                stride=stride,
                padding=1 if stride == 1 else 0,
                bias=not conv_norm,
                norm=get_norm(conv_norm, outputs),
                activation=nn.ReLU(),
            )
            weight_init.c2_msra_fill(layer)
            return layer

        widths = [in_channels] + [conv_dim] * num_conv
        self.num_conv = num_conv
        for number in range(num_conv):
            self.add_module(f"coarse_fcn{number + 1}", conv(widths[number], conv_dim))
        height, width = coarse_pooler.output_size
        self.coarse_fc1 = nn.Linear(widths[-1] * height * width, fc_dim)
        self.coarse_fc2 = nn.Linear(fc_dim, fc_dim)
        self.coarse_vector = nn.Linear(fc_dim, _VECTOR_DIM)
        self.patch_mask = conv(1, in_channels)
        self.patch_fcn1 = conv(in_channels, conv_dim)
        self.patch_fcn2 = conv(conv_dim, conv_dim)
        self.patch_cells = conv(conv_dim, fc_dim, stride=_FINE_STRIDE)
        self.patch_fcn3 = conv(fc_dim, fc_dim)
        self.patch_kind = Conv2d(fc_dim, 3 * num_classes, kernel_size=1)
        self.patch_vector = Conv2d(fc_dim, _PATCH_VECTOR_DIM * num_classes, kernel_size=1)
        for layer in (self.coarse_fc1, self.coarse_fc2):
            weight_init.c2_xavier_fill(layer)
        for output in (self.coarse_vector, self.patch_kind, self.patch_vector):
            nn.init.normal_(output.weight, std=0.001)
            nn.init.zeros_(output.bias)
        self.register_buffer("dct", dct_matrix(_MASK_SIZE, _VECTOR_DIM), persistent=False)
        patch_dct = dct_matrix(_PATCH_SIZE, _PATCH_VECTOR_DIM)
        self.register_buffer("patch_dct", patch_dct, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the constructor's arguments from ``MODEL.ROI_MASK_HEAD`` and ``PATCH_DCT_HEAD``."""
        node = cfg.MODEL.ROI_MASK_HEAD
        in_features = list(input_shape)
        levels = [
            (node.POOLER_RESOLUTION, in_features),
            (_FINE_STRIDE * _CELLS, in_features[:1]),
        ]
        coarse_pooler, fine_pooler = (
            BatchedROIPooler(
                output_size=resolution,
                scales=[1.0 / input_shape[name].stride for name in names],
                sampling_ratio=node.POOLER_SAMPLING_RATIO,
                pooler_type="ROIAlignV2",
            )
            for resolution, names in levels
        )
        return {
            "in_features": in_features,
            "in_channels": input_shape[in_features[0]].channels,
            "coarse_pooler": coarse_pooler,
            "fine_pooler": fine_pooler,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "num_conv": node.NUM_CONV,
            "conv_dim": node.CONV_DIM,
            "fc_dim": node.FC_DIM,
            "conv_norm": node.NORM,
            "solid_thresh": cfg.MODEL.PATCH_DCT_HEAD.SOLID_THRESH,
        }

    def forward(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """Compute losses, or masks of detections.

        Args:
            features: by level.
            instances: of every image: foreground with ``proposal_boxes``, ``gt_classes`` and
                ``gt_masks`` in training, otherwise detections with ``pred_boxes`` and
                ``pred_classes``.

        Returns:
            The losses; or the detections with ``pred_masks``, (N, 1, 112, 112), 0 to 1.
        """
        boxes = [each.proposal_boxes if self.training else each.pred_boxes for each in instances]
        levels = [features[name] for name in self.in_features]
        coarse = self.coarse_pooler(levels, boxes)
        fine = self.fine_pooler(levels[:1], boxes)
        # Half precision would move a mask's border: what follows is in float32.
        vectors, kinds, patch_vectors = (each.float() for each in self.layers([coarse, fine]))
        with torch.autocast(vectors.device.type, enabled=False):
            if self.training:
                return self._losses(vectors, kinds, patch_vectors, instances)
            masks = self._masks(kinds, patch_vectors, instances)
        for each, its_masks in zip(instances, masks.split([*map(len, instances)]), strict=True):
            each.pred_masks = its_masks
        return instances

    def layers(self, x: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predict vectors and patches of N regions.

        Args:
            x: samples at 14x14, (N, C, 14, 14), and at 42x42.

        Returns:
            Vectors (N, 300); logits of background, mixed and foreground (N, K, 3, 14, 14) of each
            of K classes; and vectors of patches (N, K, 6, 14, 14).
        """
        coarse, fine = x
        for number in range(self.num_conv):
            coarse = getattr(self, f"coarse_fcn{number + 1}")(coarse)
        hidden = F.relu(self.coarse_fc1(coarse.flatten(1)))
        vectors = self.coarse_vector(F.relu(self.coarse_fc2(hidden)))
        with torch.autocast(vectors.device.type, enabled=False):
            masks = (vectors.float() @ self.dct).view(-1, 1, _MASK_SIZE, _MASK_SIZE)
        masks = F.interpolate(masks, size=fine.shape[-2:], mode="nearest")
        cells = self.patch_fcn2(self.patch_fcn1(fine + self.patch_mask(masks.to(fine.dtype))))
        cells = self.patch_fcn3(self.patch_cells(cells))
        shape = (self.num_classes, -1)
        kinds = self.patch_kind(cells).unflatten(1, shape)
        return vectors, kinds, self.patch_vector(cells).unflatten(1, shape)

    def _losses(
        self, vectors: Tensor, kinds: Tensor, patch_vectors: Tensor, instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute the losses, each a mean: over vectors, patches, and vectors of mixed patches.

        Args:
            vectors: and the next two are the results of :meth:`layers`, in float32.
            kinds: see there.
            patch_vectors: see there.
            instances: see :meth:`forward`.
        """
        num_images = len(instances)
        instances = [each for each in instances if len(each)]
        if instances:
            classes = torch.cat([each.gt_classes for each in instances])
            masks = mask_targets(instances, _MASK_SIZE).to(vectors.dtype)
        else:
            classes = torch.zeros(0, dtype=torch.int64, device=vectors.device)
            masks = vectors.new_zeros(0, _MASK_SIZE, _MASK_SIZE)
        patches = split_patches(masks, _PATCH_SIZE)
        filled = patches.mean(dim=-1)
        gt_kinds = _BACKGROUND + (filled > 0).long() + (filled == 1).long()
        is_mixed = gt_kinds == _MIXED
        num_mixed = is_mixed.sum()
        # The gradients of micro-batches are weighed by it; the host does not wait for it.
        self.step_metrics = {"patch_dct/num_mixed_patches": num_mixed / num_images}
        vector_errors = (vectors - masks.flatten(1) @ self.dct.T).abs()
        kind_logits = self._of_classes(kinds, classes).permute(0, 2, 3, 1)
        kind_losses = F.cross_entropy(
            kind_logits.reshape(-1, 3), gt_kinds.view(-1), reduction="none"
        )
        patch_errors = self._of_classes(patch_vectors, classes).permute(0, 2, 3, 1)
        patch_errors = (patch_errors - patches @ self.patch_dct.T).abs() * is_mixed[..., None]
        losses = {
            "loss_mask": vector_errors.sum() / max(vector_errors.numel(), 1),
            "loss_mask_patch_kind": kind_losses.sum() / max(kind_losses.numel(), 1),
            "loss_mask_patch_dct": patch_errors.sum()
            / (_PATCH_VECTOR_DIM * num_mixed).clamp(min=1),
        }
        return {name: loss * self.loss_weight for name, loss in losses.items()}

    def _masks(self, kinds: Tensor, patch_vectors: Tensor, instances: list[Instances]) -> Tensor:
        """Decode the masks of detections, (N, 1, 112, 112); arguments as of :meth:`_losses`."""
        classes = torch.cat([each.pred_classes for each in instances])
        background, _, foreground = self._of_classes(kinds, classes).softmax(dim=1).unbind(dim=1)
        is_solid = torch.maximum(background, foreground) > self.solid_thresh
        decoded = self._of_classes(patch_vectors, classes).permute(0, 2, 3, 1) @ self.patch_dct
        solid = (foreground > background).to(decoded.dtype)
        patches = torch.where(is_solid[..., None], solid[..., None], decoded)
        # Few frequencies overshoot.
        return join_patches(patches.clamp(0, 1), _PATCH_SIZE)[:, None]

    def _of_classes(self, values: Tensor, classes: Tensor) -> Tensor:
        """Select from (N, K, C, H, W) what belongs to one class each, (N, C, H, W)."""
        if self.num_classes == 1:
            return values[:, 0]
        index = classes.view(-1, 1, 1, 1, 1).expand(-1, -1, *values.shape[2:])
        return values.gather(1, index)[:, 0]
