from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.utils.errors import InputError

# Mask R-CNN on a narrow ResNet-50 that needs a fraction of a second for an image.
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 16
MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.RPN.POST_NMS_TOPK_TEST 20 INPUT.MIN_SIZE_TEST 80
"""


@pytest.fixture
def tiny_config(tmp_path: Path) -> CfgNode:
    cfg = build_config("configs/stage_1_heads.yaml", TINY.split())
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_same_predictions_as_detectron2(tiny_config, photograph):
    tiny_config.freeze()
    before = tiny_config.dump()
    ours = Predictor(tiny_config, 0.0)
    assert tiny_config.dump() == before
    cfg = tiny_config.clone()
    cfg.defrost()
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


def test_weights_are_loaded_and_must_be_whole(tiny_config, tmp_path):
    whole = torch.load(tiny_config.MODEL.WEIGHTS, weights_only=True)["model"]
    backbone = {name: value for name, value in whole.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    for name, value in Predictor(tiny_config).model.state_dict().items():
        assert torch.equal(value, whole[name]), name
    tiny_config.MODEL.WEIGHTS = str(tmp_path / "backbone.pth")
    with pytest.raises(
        InputError, match=r"backbone\.pth: lacks 6 tensors of proposal_gen.* random"
    ):
        Predictor(tiny_config)
    cls_score = "roi_heads.box_predictor.cls_score.weight"
    torch.save({"model": {**whole, cls_score: torch.zeros(81, 32)}}, tmp_path / "coco.pth")
    tiny_config.MODEL.WEIGHTS = str(tmp_path / "coco.pth")
    with pytest.raises(
        InputError, match=r"cls_score\.weight is \(81, 32\) in the file, .*\(9, 32\)"
    ):
        Predictor(tiny_config)
    tiny_config.MODEL.WEIGHTS = ""
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS is empty: name a checkpoint"):
        Predictor(tiny_config)


def test_a_picture_without_ground_truth_is_one_panel(tiny_config, photograph):
    picture = Predictor(tiny_config, 1.0).draw(photograph)
    # 128 wide, enlarged to 1024: 512 high; caption letters 1024 / 45 = 23, bar 1.8 * 23 = 41
    assert picture.shape == (512 + 41, 1024, 3)


@pytest.mark.parametrize("score_thresh", [-0.1, 1.1, float("nan")])
def test_score_thresh_out_of_range(tiny_config, score_thresh):
    with pytest.raises(InputError, match="--score-thresh"):
        Predictor(tiny_config, score_thresh)
