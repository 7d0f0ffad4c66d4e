"""Mask heads as exported files compute them, and models whose heads no exported file computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear, Box2BoxTransformRotated
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes
from torchvision.ops import nms

from cityscapes_maskrcnn.deploy.exportable import (
    _anchors,
    _MaskHead,
    _pool,
    _suppress,
    check_exportable,
)
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError


def with_keypoints(model: GeneralizedRCNN) -> None:
    model.roi_heads.keypoint_on = True


def with_sigmoid(model: GeneralizedRCNN) -> None:
    model.roi_heads.box_predictor.use_sigmoid_ce = True


def with_another_box_predictor(model: GeneralizedRCNN) -> None:
    model.roi_heads.box_predictor.__class__ = type("Other", (FastRCNNOutputLayers,), {})


def with_rotated_anchors(model: GeneralizedRCNN) -> None:
    model.proposal_generator.anchor_generator = RotatedAnchorGenerator(
        sizes=[[32]],
        aspect_ratios=[[1.0]],
        strides=[4],
        angles=[[0]],
    )


def with_pooled_masks(model: GeneralizedRCNN) -> None:
    model.roi_heads.mask_pooler = ROIPooler(
        output_size=14,
        scales=[1 / 4],
        sampling_ratio=0,
        pooler_type="ROIPool",
    )


def with_linear_offsets(model: GeneralizedRCNN) -> None:
    model.proposal_generator.box2box_transform = Box2BoxTransformLinear()


def with_rotated_boxes(model: GeneralizedRCNN) -> None:
    predictor = model.roi_heads.box_predictor
    predictor.box2box_transform = Box2BoxTransformRotated(weights=(1, 1, 1, 1, 1))


def with_square_images(model: GeneralizedRCNN) -> None:
    model.backbone._square_pad = 1024


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_keypoints, "MODEL.KEYPOINT_ON True: keypoints are not exported"),
        (with_sigmoid, "MODEL.ROI_BOX_HEAD: only the box predictor with softmax can be exported"),
        (with_another_box_predictor, "MODEL.ROI_BOX_HEAD: only the box predictor with softmax"),
        (
            with_rotated_anchors,
            "MODEL.ANCHOR_GENERATOR.NAME: only DefaultAnchorGenerator and KMeansAnchorGenerator",
        ),
        (with_pooled_masks, "MODEL.ROI_BOX_HEAD.POOLER_TYPE and MODEL.ROI_MASK_HEAD.POOLER_TYPE:"),
        (with_linear_offsets, "the model predicts boxes in another way than as offsets of anchors"),
        (with_rotated_boxes, "the model predicts boxes in another way than as offsets of anchors"),
        (with_square_images, "MODEL.BACKBONE.NAME: a backbone that needs square images cannot be"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    config: CfgNode, change: Callable[[GeneralizedRCNN], None], problem: str
) -> None:
    model = Trainer.build_model(config)
    check_exportable(model)
    change(model)
    with pytest.raises(InputError) as error:
        check_exportable(model)
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    ("num_classes", "conv_dims", "number"),
    [(8, [16, 12], 5), (8, [12], 5), (1, [12, 12], 5), (8, [16, 12], 0)],
)
def test_masks_are_those_of_the_transposed_convolution(
    num_classes: int, conv_dims: list[int], number: int
) -> None:
    torch.manual_seed(0)
    # The last of conv_dims is of the transposed convolution.
    head = MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=6),
        num_classes=num_classes,
        conv_dims=conv_dims,
    ).eval()
    # Detectron2's initial values, 0 and a deviation of 0.001, would hide errors.
    for name, parameter in head.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if name.endswith("weight") else 1.0)
    pooled = torch.randn(number, 6, 7, 7)
    classes = torch.randint(0, 8, (number,))
    with torch.no_grad():
        logits = head.layers(pooled)
        expected = logits[torch.arange(number), classes if num_classes > 1 else 0]
        # Detections lie in another order than their features.
        order = torch.randperm(number)
        found = _MaskHead(head)(pooled[order], classes, order.argsort())
    assert found.shape == (number, 14, 14)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5])
def test_chosen_anchors_are_those_of_detectron2(offset: float) -> None:
    generator = DefaultAnchorGenerator(
        sizes=[[10.3, 21.7], [48.9]],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=[4, 8],
        offset=offset,
    )
    maps = [torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 3, 4)]
    for level, (features, expected) in enumerate(zip(maps, generator(maps), strict=True)):
        indices = torch.randperm(len(expected)).reshape(2, -1)
        found = _anchors(generator, level, indices, width=features.shape[3])
        torch.testing.assert_close(found, expected.tensor[indices], rtol=0, atol=0)


def test_what_is_no_box_suppresses_nothing() -> None:
    torch.manual_seed(0)
    corners = torch.rand(3, 20, 2) * 20
    boxes = torch.cat([corners, corners + 10], dim=2)
    scores = torch.rand(3, 20)
    scores[:, ::4] = -torch.inf
    boxes[1, 0] = torch.nan
    keep = _suppress(boxes, scores, 0.4)
    for each, of_list, kept in zip(boxes, scores, keep, strict=True):
        (candidates,) = of_list.isfinite().nonzero().unbind(dim=1)
        expected = candidates[nms(each[candidates], of_list[candidates], 0.4)]
        assert 0 < len(expected) < len(candidates)
        assert kept.nonzero()[:, 0].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("num_levels", [1, 3])
def test_regions_are_pooled_as_detectron2_does(num_levels: int) -> None:
    torch.manual_seed(0)
    strides = [4, 8, 16][:num_levels]
    pooler = ROIPooler(
        output_size=3,
        scales=[1 / stride for stride in strides],
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
        canonical_box_size=32,
        canonical_level=3,
    )
    maps = [torch.randn(2, 5, 128 // stride, 128 // stride) for stride in strides]
    corners = torch.rand(2, 9, 2) * 64
    boxes = torch.cat([corners, corners + 4 + torch.rand(2, 9, 2) * 60], dim=2)
    expected = pooler(maps, [Boxes(each) for each in boxes])
    image_indices = torch.arange(2).repeat_interleave(9)
    pooled, places = _pool(pooler, maps, boxes.flatten(0, 1), image_indices)
    torch.testing.assert_close(pooled[places], expected, rtol=0, atol=0)
