from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor
from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.predictor import Predictor


@pytest.fixture
def tiny_config() -> CfgNode:
    """Mask R-CNN on a ResNet-18 that needs a fraction of a second for an image."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 8
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TEST = ()
    cfg.INPUT.MIN_SIZE_TEST = 80
    return cfg


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_same_predictions_as_detectron2(tiny_config, photograph, tmp_path):
    torch.manual_seed(0)
    tiny_config.freeze()
    before = tiny_config.dump()
    ours = Predictor(tiny_config, 0.0)
    assert tiny_config.dump() == before
    torch.save({"model": ours.model.state_dict()}, tmp_path / "model.pth")
    cfg = tiny_config.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    theirs = DefaultPredictor(cfg)(cv2.imread(str(photograph)))["instances"]

    found = ours(photograph)
    assert len(found) == len(theirs) > 0
    assert found.image_size == (64, 128)
    assert found.pred_masks.shape == (len(found), 64, 128)
    for name, value in theirs.get_fields().items():
        mine = found.get(name)
        if name == "pred_boxes":
            mine, value = mine.tensor, value.tensor
        torch.testing.assert_close(mine, value, rtol=0, atol=0)


def test_a_picture_without_ground_truth_is_one_panel(tiny_config, photograph):
    picture = Predictor(tiny_config, 1.0).draw(photograph)
    # 128 wide, enlarged to 1024: 512 high; caption letters 1024 / 45 = 23, bar 1.8 * 23 = 41
    assert picture.shape == (512 + 41, 1024, 3)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_out_of_range(tiny_config, threshold):
    with pytest.raises(InputError, match="--score-thresh"):
        Predictor(tiny_config, threshold)


def test_another_datasets_config(tiny_config):
    tiny_config.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(InputError, match="80, but Cityscapes has 8"):
        Predictor(tiny_config)
