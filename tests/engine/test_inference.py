"""Evaluators of the datasets, unpasted masks, and test-time augmentation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.data.tree import dataset_root
from cityscapes_maskrcnn.engine.inference import (
    build_evaluator,
    fit_to_evaluators,
    with_test_time_augmentation,
)
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.instances import UnpastedInference
from cityscapes_maskrcnn.evaluation.semantic_evaluator import CityscapesSemanticEvaluator
from cityscapes_maskrcnn.utils.errors import InputError

INSTANCE, SEMANTIC = "cityscapes_instance_val", "cityscapes_fine_semantic_val"


@pytest.fixture
def root(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    return small_root


@pytest.mark.parametrize(
    ("stage", "dataset", "evaluator"),
    [
        ("stage_0_backbone", SEMANTIC, CityscapesSemanticEvaluator),
        ("stage_1_heads", INSTANCE, CityscapesInstanceEvaluator),
    ],
)
@pytest.mark.usefixtures("root")
def test_every_dataset_has_its_evaluator(
    tmp_path: Path, stage: str, dataset: str, evaluator: type
) -> None:
    cfg = build_config(f"configs/{stage}.yaml", [])
    assert type(build_evaluator(cfg, dataset, tmp_path)) is evaluator


@pytest.mark.parametrize(
    ("stage", "dataset", "message"),
    [
        ("stage_0_backbone", INSTANCE, "its instances are not what .* SemanticSegmentor predicts"),
        ("stage_1_heads", SEMANTIC, "its semantic labels are not what .* GeneralizedRCNN predicts"),
        ("stage_1_heads", "cityscapes_instance_test", "no labels to score against"),
    ],
)
@pytest.mark.usefixtures("root")
def test_a_model_that_predicts_something_else(
    tmp_path: Path, stage: str, dataset: str, message: str
) -> None:
    cfg = build_config(f"configs/{stage}.yaml", [])
    with pytest.raises(InputError, match=message):
        build_evaluator(cfg, dataset, tmp_path)


def test_missing_ground_truth(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = build_config("configs/stage_1_heads.yaml", [])
    missing = max((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing}: no such file, which .*_leftImg8bit.png is"):
        build_evaluator(cfg, INSTANCE, tmp_path)


HEIGHT, WIDTH = 64, 128  # a mirrored image lies on the same grid: no padding to multiples of 32
NETWORK = f"""
MODEL.DEVICE cpu MODEL.MASK_ON True MODEL.BACKBONE.NAME build_resnet_fpn_backbone
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 16
MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5']
MODEL.FPN.IN_FEATURES ['res2','res3','res4','res5']
MODEL.ANCHOR_GENERATOR.SIZES [[16],[32],[64],[128],[256]]
MODEL.RPN.IN_FEATURES ['p2','p3','p4','p5','p6'] MODEL.RPN.POST_NMS_TOPK_TEST 30
MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES ['p2','p3','p4','p5']
MODEL.ROI_HEADS.NUM_CLASSES 8 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.FC_DIM 32
MODEL.ROI_MASK_HEAD.NAME MaskRCNNConvUpsampleHead MODEL.ROI_MASK_HEAD.NUM_CONV 1
MODEL.ROI_MASK_HEAD.CONV_DIM 16 TEST.DETECTIONS_PER_IMAGE 12
TEST.AUG.ENABLED True TEST.AUG.MIN_SIZES ({HEIGHT},) TEST.AUG.MAX_SIZE {WIDTH} TEST.AUG.FLIP False
"""


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.merge_from_list(NETWORK.split())
    return cfg


@pytest.fixture(scope="module")
def model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(2)
    model = build_model(cfg).eval()
    # Under frozen BatchNorm random features grow to hundreds, and random heads say nearly the same
    # of everything: bring both to where scores differ.
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name.startswith("fpn_output"):
                parameter.mul_(0.01)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(10)
        model.roi_heads.box_predictor.cls_score.weight.mul_(8)
        model.roi_heads.mask_head.predictor.weight.mul_(500)
    return model


def example(seed: int = 0, mirrored: bool = False) -> dict:
    image = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) * 255
    image = image.byte()
    return {
        "image": image.flip(2) if mirrored else image,
        "height": HEIGHT,
        "width": WIDTH,
    }


def predict(model: nn.Module, example: dict):
    with torch.no_grad():
        (output,) = model([example])
    return output["instances"]


def test_identity_alone_is_plain_inference(cfg: CfgNode, model: nn.Module) -> None:
    plain = predict(model, example())
    augmented = predict(with_test_time_augmentation(cfg, model), example())
    assert len(plain) == len(augmented) == 12
    assert 0.05 < plain.pred_masks.float().mean() < 0.95
    torch.testing.assert_close(plain.scores, augmented.scores)
    torch.testing.assert_close(plain.pred_boxes.tensor, augmented.pred_boxes.tensor)
    assert torch.equal(plain.pred_classes, augmented.pred_classes)
    # A box that moved by its last bit may round a pixel of the mask's border differently.
    assert (plain.pred_masks != augmented.pred_masks).float().mean() < 1e-3


def test_flip_makes_results_symmetric(cfg: CfgNode, model: nn.Module) -> None:
    with_flip = cfg.clone()
    with_flip.TEST.AUG.FLIP = True
    augmented = with_test_time_augmentation(with_flip, model)
    image, mirrored = (predict(augmented, example(1, each)) for each in (False, True))
    assert len(image) == len(mirrored) == 12
    torch.testing.assert_close(image.scores, mirrored.scores, rtol=1e-3, atol=1e-5)
    boxes = mirrored.pred_boxes.tensor
    boxes = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], 1)
    torch.testing.assert_close(image.pred_boxes.tensor, boxes, rtol=1e-3, atol=0.05)
    difference = image.pred_masks != mirrored.pred_masks.flip(2)
    assert difference.float().mean() < 0.01
    # Plain inference is not symmetric: the test could fail.
    plain, other = (predict(model, example(1, each)) for each in (False, True))
    assert (plain.scores - other.scores).abs().max() > 1e-3


def test_several_sizes_and_a_scaled_image(cfg: CfgNode, model: nn.Module) -> None:
    several = cfg.clone()
    several.TEST.AUG.MIN_SIZES = (48, 64, 96)
    several.TEST.AUG.MAX_SIZE = 192
    # The mapper has halved the image before; results are in pixels of the file.
    halved = {**example(2), "height": 2 * HEIGHT, "width": 2 * WIDTH}
    found = predict(with_test_time_augmentation(several, model), halved)
    assert found.pred_masks.shape == (12, 2 * HEIGHT, 2 * WIDTH)
    assert found.pred_boxes.tensor[:, 2].max() > WIDTH


def test_nothing_found(cfg: CfgNode, model: nn.Module) -> None:
    threshold = model.roi_heads.box_predictor.test_score_thresh
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    try:
        found = predict(with_test_time_augmentation(cfg, model), example())
    finally:
        model.roi_heads.box_predictor.test_score_thresh = threshold
    assert found.pred_masks.shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("key", "value"), [("MIN_SIZES", ()), ("MIN_SIZES", (0, 64)), ("MAX_SIZE", 32)]
)
def test_sizes_that_make_no_sense(cfg: CfgNode, model: nn.Module, key: str, value) -> None:
    wrong = cfg.clone()
    wrong.TEST.AUG[key] = value
    with pytest.raises(InputError, match=r"TEST\.AUG\.MIN_SIZES"):
        with_test_time_augmentation(wrong, model)


def test_other_networks(cfg: CfgNode) -> None:
    with pytest.raises(InputError, match="a Linear cannot be augmented"):
        with_test_time_augmentation(cfg, nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("scored", "masks", "unpasted"),
    [
        (["ours"], True, True),
        (["ours", ["ours"]], True, True),
        (["ours"], False, False),
        # Another evaluator, also of this project's datasets, gets what Detectron2 gives it.
        (["ours", "theirs"], True, False),
        ([["ours", "theirs"]], True, False),
    ],
)
@pytest.mark.usefixtures("root")
def test_masks_stay_unpasted_if_all_evaluators_accept_it(
    cfg: CfgNode, model: nn.Module, scored: list[object], masks: bool, unpasted: bool
) -> None:
    register_all(dataset_root())
    known = {"ours": CityscapesInstanceEvaluator(INSTANCE), "theirs": DatasetEvaluator()}

    def build(names: list[object]) -> list[object]:
        return [
            DatasetEvaluators(build(each)) if isinstance(each, list) else known[str(each)]
            for each in names
        ]

    other = cfg.clone()
    other.TEST.UNPASTED_MASKS = masks
    fitted = fit_to_evaluators(other, model, build(scored))
    assert isinstance(fitted, UnpastedInference) == unpasted
