"""Mask R-CNN from pixels to detections using only tensors, which exporters can trace.

Detectron2's inference goes through lists with an entry an image, and through sizes that are Python
numbers, so that a graph of it is for one image. Here all images of a batch are one tensor, and
what is no box is marked instead of removed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from torch import Tensor, nn

from cityscapes_maskrcnn.modeling.anchor_generator import KMeansAnchorGenerator
from cityscapes_maskrcnn.modeling.folding import fold_for_good
from cityscapes_maskrcnn.modeling.fused_mask_head import FusedMaskHead, weights_of_cells
from cityscapes_maskrcnn.modeling.roi_heads import BatchedROIHeads
from cityscapes_maskrcnn.utils.errors import InputError


class ExportableMaskRCNN(nn.Module):
    """The inference of a Mask R-CNN for any height, width and number of images.

    Shapes: N images, P proposals of each, K classes, M detections of all images together.

    Args:
        model: in evaluation mode; it is copied.

    Raises:
        InputError: as :func:`check_exportable`.
    """

    backbone: Any
    proposal_generator: Any
    roi_heads: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        check_exportable(model)
        model = fold_for_good(copy.deepcopy(model)).to(memory_format=torch.contiguous_format)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.backbone = model.backbone
        self.proposal_generator = model.proposal_generator
        self.roi_heads = model.roi_heads
        self.roi_heads.mask_head = _MaskHead(model.roi_heads.mask_head)
        self.register_buffer("pixel_mean", model.pixel_mean[None])
        self.register_buffer("pixel_std", model.pixel_std[None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Find the instances of images.

        Args:
            images: (N, 3, H, W), uint8, in the order of channels of ``INPUT.FORMAT``.

        Returns:
            Of all images, one after the other, by falling score: boxes (M, 4), float32,
            (x0, y0, x1, y1) in pixels of the input; contiguous classes (M,), int64; scores (M,),
            float32; masks (M, S, S), float32, probabilities over the box; and for each the index
            of its image (M,), int64.
        """
        height, width = images.shape[-2:]
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        divisor = max(self.backbone.size_divisibility, 1)
        features = self.backbone(F.pad(pixels, (0, -width % divisor, 0, -height % divisor)))
        proposals = self._propose(features, height, width)
        boxes, classes, scores, image_indices = self._detect(features, proposals, height, width)
        masks = self._masks(features, boxes, classes, image_indices)
        return boxes, classes, scores, masks, image_indices

    def _propose(self, features: dict[str, Tensor], height: Any, width: Any) -> Tensor:
        """Propose regions (N, P, 4); empty ones, at the upper left corner, fill up the number."""
        rpn = self.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        most = rpn.pre_nms_topk[False]
        level_scores, level_deltas, level_anchors = [], [], []
        for level, (logit_map, delta_map) in enumerate(zip(*rpn.rpn_head(maps), strict=True)):
            logits = logit_map.permute(0, 2, 3, 1).flatten(1)  # (N, R) of R anchors
            deltas = delta_map.permute(0, 2, 3, 1).reshape(logits.shape[0], -1, 4)
            # So that there are as many as are asked for, however small the image.
            scores, indices = F.pad(logits, (0, most), value=-torch.inf).topk(most, dim=1)
            indices = torch.where(scores.isfinite(), indices, 0)
            level_scores.append(scores)
            level_deltas.append(deltas.gather(1, indices[..., None].expand(-1, -1, 4)))
            level_anchors.append(
                _anchors(rpn.anchor_generator, level, indices, width=logit_map.shape[3])
            )
        # Each level of each image is a list of its own, (NL, T) of L levels and T anchors.
        scores = torch.stack(level_scores, dim=1).flatten(0, 1)
        boxes = rpn.box2box_transform.apply_deltas(
            torch.stack(level_deltas, dim=1).reshape(-1, 4),
            torch.stack(level_anchors, dim=1).reshape(-1, 4),
        ).reshape(-1, most, 4)
        is_box = boxes.isfinite().all(dim=2) & scores.isfinite()
        boxes = _clip(boxes, height, width)
        is_box = is_box & (boxes[..., 2:] - boxes[..., :2] > rpn.min_box_size).all(dim=2)
        scores = scores.masked_fill(~is_box, -torch.inf)
        keep = _suppress(boxes, scores, rpn.nms_thresh)
        per_image = most * len(maps)
        scores = scores.masked_fill(~keep, -torch.inf).reshape(-1, per_image)
        scores, indices = scores.topk(min(rpn.post_nms_topk[False], per_image), dim=1)
        boxes = boxes.reshape(-1, per_image, 4).gather(1, indices[..., None].expand(-1, -1, 4))
        return boxes.masked_fill(~scores.isfinite()[..., None], 0)

    def _detect(
        self, features: dict[str, Tensor], proposals: Tensor, height: Any, width: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify proposals (N, P, 4): boxes, classes, scores and image indices."""
        heads, predictor = self.roi_heads, self.roi_heads.box_predictor
        num_images, number = proposals.shape[:2]
        image_indices = torch.arange(num_images, device=proposals.device)
        image_indices = image_indices[:, None].expand(-1, number).flatten()
        maps = [features[name] for name in heads.in_features]
        pooled, places = _pool(heads.box_pooler, maps, proposals.flatten(0, 1), image_indices)
        logits, deltas = predictor(heads.box_head(pooled).index_select(0, places))
        scores = logits.softmax(dim=1).reshape(num_images, number, -1)
        num_classes = logits.shape[1] - 1
        # (NP, 4K), or (NP, 4) for all classes
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals.flatten(0, 1))
        boxes = boxes.reshape(num_images, number, -1, 4).expand(-1, -1, num_classes, -1)
        is_box = boxes.isfinite().flatten(2).all(dim=2) & scores.isfinite().all(dim=2)
        # A proposal that only fills up is empty.
        is_box = is_box & (proposals[..., 2] > proposals[..., 0])
        boxes = _clip(boxes, height, width).transpose(1, 2)  # (N, K, P, 4)
        scores = scores[..., :-1].transpose(1, 2)  # (N, K, P)
        is_candidate = (scores > predictor.test_score_thresh) & is_box[:, None]
        scores = scores.masked_fill(~is_candidate, -torch.inf)
        keep = _suppress(boxes.flatten(0, 1), scores.flatten(0, 1), predictor.test_nms_thresh)
        scores = scores.flatten(1).masked_fill(~keep.reshape(num_images, -1), -torch.inf)
        most = predictor.test_topk_per_image
        limit = num_classes * number
        scores, indices = scores.topk(limit if most < 0 else min(most, limit), dim=1)
        boxes = boxes.flatten(1, 2).gather(1, indices[..., None].expand(-1, -1, 4))
        image_indices, places = scores.isfinite().nonzero().unbind(dim=1)
        classes = indices[image_indices, places].div(number, rounding_mode="floor")
        return boxes[image_indices, places], classes, scores[image_indices, places], image_indices

    def _masks(
        self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor, image_indices: Tensor
    ) -> Tensor:
        heads = self.roi_heads
        maps = [features[name] for name in heads.mask_in_features]
        pooled, places = _pool(heads.mask_pooler, maps, boxes, image_indices)
        logits: Tensor = heads.mask_head(pooled, classes, places)
        return logits.sigmoid()


class _MaskHead(nn.Module):
    """``MaskRCNNConvUpsampleHead`` with convolutions only, at the size of its input.

    The transposed convolution has a 2x2 kernel and a stride of 2, and the predictor a 1x1 kernel: a
    cell of the features alone determines the logits of four pixels. So both are 1x1 convolutions
    with four times the channels, and only logits are moved to where the pixels are. The result
    differs by rounding.
    ONNX Runtime computes this faster on CPUs, and has no transposed convolution in int8.

    Args:
        head: in evaluation mode. Its first convolutions are shared, the last two layers copied.
    """

    def __init__(self, head: MaskRCNNConvUpsampleHead) -> None:
        super().__init__()
        *convs, deconv, relu, predictor = head
        self.num_classes = predictor.out_channels
        self.convs = nn.Sequential(*convs)
        weight, bias = weights_of_cells(deconv)
        self.upsample = nn.Conv2d(
            deconv.in_channels,
            4 * deconv.out_channels,
            kernel_size=1,
            device="meta",
        )
        self.upsample.weight = _fixed(weight[:, :, None, None])
        self.upsample.bias = _fixed(bias)
        self.relu = relu
        self.predictor = nn.Conv2d(
            4 * deconv.out_channels,
            4 * self.num_classes,
            kernel_size=1,
            device="meta",
        )
        # Each pixel has its own channels. Runtimes are slower with groups than with these zeros.
        of_pixel = predictor.weight[:, :, 0, 0]
        weight = torch.block_diag(of_pixel, of_pixel, of_pixel, of_pixel)
        self.predictor.weight = _fixed(weight[:, :, None, None])
        self.predictor.bias = _fixed(predictor.bias.repeat(4))

    def forward(self, pooled: Tensor, classes: Tensor, places: Tensor) -> Tensor:
        """Compute the logits (M, 2S, 2S) of classes (M,).

        Args:
            pooled: features (M, C, S, S) of the detections, in another order.
            classes: of the detections.
            places: of the detections in ``pooled``, (M,).
        """
        logits = self.predictor(self.relu(self.upsample(self.convs(pooled))))
        rows = places * self.num_classes
        if self.num_classes > 1:
            rows = rows + classes
        # (M, 4K, S, S), by pixel and then by class, become (MK, 4, S, S).
        cells = logits.unflatten(1, (4, self.num_classes)).transpose(1, 2).flatten(0, 1)
        return F.pixel_shuffle(cells.index_select(0, rows), 2)[:, 0]


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=False)


def plain_config(cfg: CfgNode) -> CfgNode:
    """Copy a config, and have PyTorch compute in float32 on the CPU, with nothing compiled."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.COMPILE = "off"
    cfg.MODEL.CHANNELS_LAST = False
    return cfg


def check_exportable(model: GeneralizedRCNN) -> None:
    """Verify that a model is one that :class:`ExportableMaskRCNN` computes as it does.

    Raises:
        InputError: its heads compute something else.
    """
    heads, rpn = model.roi_heads, model.proposal_generator
    if type(heads) not in (StandardROIHeads, BatchedROIHeads):
        raise InputError(
            f"MODEL.ROI_HEADS.NAME {type(heads).__name__}: only StandardROIHeads and"
            " BatchedROIHeads can be exported"
        )
    if not heads.mask_on:
        raise InputError("MODEL.MASK_ON False: an exported model has masks; set MODEL.MASK_ON True")
    poolers = [heads.box_pooler, heads.mask_pooler]
    transforms = [rpn.box2box_transform, heads.box_predictor.box2box_transform]
    pools_by_align = all(
        isinstance(each, ROIPooler) and isinstance(each.level_poolers[0], ROIAlign)
        for each in poolers
    )
    needs_square = getattr(model.backbone, "padding_constraints", {}).get("square_size", 0)
    problems = [
        (heads.keypoint_on, "MODEL.KEYPOINT_ON True: keypoints are not exported"),
        (
            type(heads.mask_head) not in (MaskRCNNConvUpsampleHead, FusedMaskHead),
            f"MODEL.ROI_MASK_HEAD.NAME {type(heads.mask_head).__name__}: only"
            " MaskRCNNConvUpsampleHead and FusedMaskHead can be exported",
        ),
        (
            type(heads.box_predictor) is not FastRCNNOutputLayers
            or heads.box_predictor.use_sigmoid_ce,
            "MODEL.ROI_BOX_HEAD: only the box predictor with softmax can be exported",
        ),
        (
            type(rpn.anchor_generator) not in (DefaultAnchorGenerator, KMeansAnchorGenerator),
            "MODEL.ANCHOR_GENERATOR.NAME: only DefaultAnchorGenerator and KMeansAnchorGenerator can"
            " be exported",
        ),
        (
            not pools_by_align,
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE and MODEL.ROI_MASK_HEAD.POOLER_TYPE: only ROIAlignV2"
            " and ROIAlign can be exported",
        ),
        (
            any(type(each) is not Box2BoxTransform for each in transforms),
            "the model predicts boxes in another way than as offsets of anchors, which is not"
            " exported",
        ),
        (
            needs_square > 0,
            "MODEL.BACKBONE.NAME: a backbone that needs square images cannot be exported",
        ),
        (
            getattr(heads, "soft_nms", "off") != "off",
            "MODEL.ROI_HEADS.SOFT_NMS.METHOD: soft-NMS is not exported, set it to off",
        ),
    ]
    for is_present, problem in problems:
        if is_present:
            raise InputError(problem)


def _anchors(
    generator: DefaultAnchorGenerator, level: int, indices: Tensor, *, width: Any
) -> Tensor:
    """Compute the anchors with the indices (N, T) among those of a level; (N, T, 4).

    They equal Detectron2's, which computes all of the level.

    Args:
        generator: of the network.
        level: whose anchors.
        indices: by row, by column, by shape.
        width: of the level's features; may be a number that the exporter traces.
    """
    shapes = list(generator.cell_anchors)[level]
    cells = indices.div(len(shapes), rounding_mode="floor")
    columns, rows = cells % width, cells.div(width, rounding_mode="floor")
    corners = torch.stack([columns, rows, columns, rows], dim=-1)
    shifts = (corners + generator.offset) * generator.strides[level]
    return shapes[indices % len(shapes)] + shifts


def _clip(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Clip boxes (..., 4) to an image; its size may be a number that the exporter traces."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    return torch.stack(
        [
            x0.clamp(min=0, max=width),
            y0.clamp(min=0, max=height),
            x1.clamp(min=0, max=width),
            y1.clamp(min=0, max=height),
        ],
        dim=-1,
    )


def _suppress(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Suppress boxes (B, R, 4) of B lists by scores (B, R), of which -inf are no boxes.

    Returns:
        Which boxes are kept, bool of shape (B, R).
    """
    if torch.onnx.is_in_onnx_export():
        rows, indices = _ListsNMS.apply(boxes, scores, iou_thresh)
    else:
        rows, indices = _nms_of_lists(boxes, scores, iou_thresh)
    keep = torch.zeros_like(scores)
    return keep.index_put((rows, indices), torch.ones((), device=keep.device)) > 0


def _nms_of_lists(boxes: Tensor, scores: Tensor, iou_thresh: float) -> tuple[Tensor, Tensor]:
    """List what is kept: indices of lists, and of the boxes in them."""
    is_box = scores.isfinite()
    rows, indices = is_box.nonzero().unbind(dim=1)
    # What is no box may be NaN.
    farthest = boxes.masked_fill(~is_box[..., None], 0).double().amax()
    # Lists are moved apart. In float32 that would round the boxes.
    candidates = boxes[rows, indices].double() + (rows * (farthest + 1))[:, None]
    # torch.export takes it that two boxes are kept at least: these, far from all others and last.
    more = candidates.new_tensor([[-9.0, -9.0, -8.0, -8.0], [-7.0, -7.0, -6.0, -6.0]])
    lowest = torch.finfo(torch.float64).min
    ranks = F.pad(scores[rows, indices].double(), (0, 2), value=lowest)
    keep = torchvision.ops.nms(torch.cat([candidates, more]), ranks, iou_thresh)[:-2]
    return rows[keep], indices[keep]


class _ListsNMS(torch.autograd.Function):
    """The operator of ONNX, which takes the lists as its batch."""

    @staticmethod
    def forward(
        _ctx: Any, boxes: Tensor, scores: Tensor, iou_thresh: float
    ) -> tuple[Tensor, Tensor]:
        return _nms_of_lists(boxes, scores, iou_thresh)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou_thresh: float) -> tuple[Any, Any]:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        selected = g.op(
            "NonMaxSuppression",
            boxes,
            g.op("Unsqueeze", scores, constant([1], torch.int64)),
            constant(2**31 - 1, torch.int64),
            constant(iou_thresh, torch.float32),
            constant(torch.finfo(torch.float32).min, torch.float32),
        )
        columns = [
            g.op("Gather", selected, constant(column, torch.int64), axis_i=1) for column in (0, 2)
        ]
        return columns[0], columns[1]


def _pool(
    pooler: ROIPooler, maps: list[Tensor], boxes: Tensor, image_indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Pool finite boxes (R, 4) of images (R,), each from its level.

    Returns:
        Features (R, C, S, S) in the order of levels, and the place of each box among them, (R,):
        what heads make of the features is smaller and faster to move.
    """
    regions = torch.cat([image_indices[:, None].to(boxes.dtype), boxes], dim=1)
    positions = torch.arange(boxes.shape[0], device=boxes.device)
    if len(maps) == 1:
        return pooler.level_poolers[0](maps[0], regions), positions
    # As Detectron2's assign_boxes_to_levels, whose Boxes ask whether there are any.
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = pooler.canonical_level + torch.log2(sizes / pooler.canonical_box_size + 1e-8)
    levels = levels.floor().clamp(min=pooler.min_level, max=pooler.max_level) - pooler.min_level
    of_levels, pooled = [], []
    for level, (features, level_pooler) in enumerate(zip(maps, pooler.level_poolers, strict=True)):
        (indices,) = (levels == level).nonzero().unbind(dim=1)
        of_levels.append(indices)
        pooled.append(level_pooler(features, regions[indices]))
    places = torch.zeros_like(positions).index_put((torch.cat(of_levels),), positions)
    return torch.cat(pooled), places
