"""Models whose heads compute what no exported file does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from detectron2.config import CfgNode
from detectron2.modeling.anchor_generator import RotatedAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear, Box2BoxTransformRotated
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from cityscapes_maskrcnn.deploy.exportable import check_exportable
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
        (with_rotated_anchors, "MODEL.ANCHOR_GENERATOR.NAME: rotated anchors are not exported"),
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
