"""PointRend by this project's config against Detectron2's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks
from detectron2.utils.events import EventStorage

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.config_check import check_ranges
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY
from cityscapes_maskrcnn.evaluation.instances import (
    compact_instances,
    instances_to_predictions,
    leave_masks_unpasted,
)
from cityscapes_maskrcnn.modeling.determinism import make_deterministic
from cityscapes_maskrcnn.utils.errors import InputError

CONFIG = "configs/pointrend_rcnn_R_50_FPN.yaml"
TINY = (Path(__file__).parents[1] / "tiny_network.txt").read_text().split()
TINY += ["MODEL.ROI_MASK_HEAD.FC_DIM", "32", "MODEL.POINT_HEAD.FC_DIM", "16", "MODEL.WEIGHTS", ""]
# All anchors are sampled.
TINY += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "10000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"]
# 3 steps from 28x28 on: the first two of 7x7 and 14x14 would choose all of their points anyway.
SIDE = 224
SIZE = (96, 192)
CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def own_config(*options: object) -> CfgNode:
    return build_config(CONFIG, [*TINY, *map(str, options)])


def detectron2_config() -> CfgNode:
    """What Detectron2's PointRend for Cityscapes sets, with the input of this project's."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    words = """
    MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.MASK_ON True
    MODEL.BACKBONE.NAME build_resnet_fpn_backbone
    MODEL.RESNETS.OUT_FEATURES ["res2","res3","res4","res5"]
    MODEL.FPN.IN_FEATURES ["res2","res3","res4","res5"]
    MODEL.ANCHOR_GENERATOR.SIZES [[32],[64],[128],[256],[512]]
    MODEL.RPN.IN_FEATURES ["p2","p3","p4","p5","p6"] MODEL.RPN.PRE_NMS_TOPK_TRAIN 2000
    MODEL.RPN.PRE_NMS_TOPK_TEST 1000 MODEL.RPN.POST_NMS_TOPK_TRAIN 1000
    MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES ["p2","p3","p4","p5"]
    MODEL.ROI_HEADS.NUM_CLASSES 8 MODEL.POINT_HEAD.NUM_CLASSES 8
    MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 2
    MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7 MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES True
    MODEL.ROI_MASK_HEAD.NAME PointRendMaskHead MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 14
    MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION 7 MODEL.ROI_MASK_HEAD.IN_FEATURES ["p2"]
    MODEL.ROI_MASK_HEAD.NUM_FC 2 MODEL.ROI_MASK_HEAD.POINT_HEAD_ON True
    MODEL.POINT_HEAD.NUM_FC 3 MODEL.POINT_HEAD.IN_FEATURES ["p2"]
    MODEL.RESNETS.STRIDE_IN_1X1 False MODEL.PIXEL_MEAN [123.675,116.28,103.53]
    MODEL.PIXEL_STD [58.395,57.12,57.375] INPUT.FORMAT RGB
    """
    cfg.merge_from_list([*words.split(), "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""])
    for key, value in zip(TINY[::2], TINY[1::2], strict=True):
        if key not in ("TRACKING.NUM_PICTURES", "TEST.ANALYSIS_PICTURES"):  # of this project
            cfg.merge_from_list([key, value])
    return cfg


def both_models() -> tuple[Any, Any]:
    """Detectron2's and this project's, with the same random weights, whose masks are no blur."""
    torch.manual_seed(5)
    stock = build_model(detectron2_config())
    with torch.no_grad():
        heads = stock.roi_heads.mask_head
        for layer in (heads.coarse_head.prediction, heads.point_head.predictor):
            layer.weight.normal_(std=0.3)
    own = build_model(own_config())
    assert type(own.roi_heads).__name__ == "BatchedROIHeads"
    own.load_state_dict(stock.state_dict(), strict=True)
    # On a CPU this project's pooling rounds in another way, which has tests of its own.
    stock.roi_heads.box_pooler = own.roi_heads.box_pooler
    return stock, own


def batch(*numbers: int) -> list[dict[str, Any]]:
    """Images with these numbers of instances, ellipses in boxes of 10 to 50 pixels."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    images = []
    for number in numbers:
        corner = torch.rand(number, 2, generator=generator) * torch.tensor([140.0, 45.0])
        size = 10 + 40 * torch.rand(number, 2, generator=generator)
        centre = (corner + size / 2)[:, :, None, None]
        distance = (x - centre[:, 0]) ** 2 / (size[:, 0, None, None] / 2) ** 2
        distance = distance + (y - centre[:, 1]) ** 2 / (size[:, 1, None, None] / 2) ** 2
        instances = Instances(
            SIZE,
            gt_boxes=Boxes(torch.cat([corner, corner + size], dim=1)),
            gt_classes=torch.randint(8, (number,), generator=generator),
            gt_masks=BitMasks(distance < 1),
        )
        image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=generator)
        # As if it had been shrunk to a network's size.
        images.append({"image": image, "instances": instances, "height": 192, "width": 384})
    return images


def test_detections_are_detectron2s() -> None:
    stock, own = both_models()
    inputs = batch(3, 2)
    with torch.no_grad():
        expected, actual = stock.eval()(inputs), own.eval()(inputs)
    for one, other in zip(expected, actual, strict=True):
        one, other = one["instances"], other["instances"]
        assert len(one) == 10
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.pred_classes, other.pred_classes)
        assert torch.equal(one.pred_masks, other.pred_masks)
        assert 0 < one.pred_masks.float().mean() < 0.5


@pytest.mark.parametrize("numbers", [(5, 2), (0, 3)], ids=str)
def test_losses_and_gradients_of_the_same_samples_are_detectron2s(numbers: tuple[int]) -> None:
    stock, own = both_models()
    draw, samples = own.roi_heads.label_and_sample_proposals, []

    def noted(*arguments: Any) -> list[Instances]:
        samples.extend(draw(*arguments))
        # The model changes the proposals' boxes to what it predicts.
        return [Instances(each.image_size, **each.get_fields()) for each in samples]

    own.roi_heads.label_and_sample_proposals = noted
    stock.roi_heads.label_and_sample_proposals = lambda *_: samples
    results = []
    for model in (own, stock):
        # The same random points; what is sampled in the RPN and in the heads draws before.
        mask_head = model.roi_heads.mask_head
        mask_head.register_forward_pre_hook(lambda *_: torch.manual_seed(2) and None)
        torch.manual_seed(1)
        with EventStorage():
            losses = model.train()(batch(*numbers))
            sum(losses.values()).backward()
        gradients = [each.grad for each in model.parameters() if each.requires_grad]
        results.append(({name: loss.item() for name, loss in losses.items()}, gradients))
    (losses, gradients), (expected, expected_gradients) = results
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses["loss_mask_point"] > 0.1
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_without_objects_has_no_loss_of_masks() -> None:
    """Detectron2's own head fails here; large-scale jitter, say, leaves such batches."""
    _, own = both_models()
    with EventStorage():
        losses = own.train()(batch(0, 0))
        sum(losses.values()).backward()
    assert losses["loss_mask"] == losses["loss_mask_point"] == 0
    # DistributedDataParallel waits for all of them.
    assert all(each.grad is not None for each in own.roi_heads.mask_head.parameters())


def test_masks_stay_unpasted_and_score_as_pasted_ones() -> None:
    _, own = both_models()
    inputs = batch(3, 2)
    with torch.no_grad():
        pasted, unpasted = own.eval()(inputs), leave_masks_unpasted(own)(inputs)
    for one, other in zip(pasted, unpasted, strict=True):
        one, other = one["instances"], other["instances"]
        assert isinstance(other.pred_masks, ROIMasks)
        assert other.pred_masks.tensor.shape == (10, SIDE, SIDE)
        assert compact_instances(other).masks.shape == (10, SIDE, SIDE)
        expected = instances_to_predictions(one, 192, 384)
        actual = instances_to_predictions(other, 192, 384)
        assert len(expected) == len(actual) == 10
        for wanted, got in zip(expected, actual, strict=True):
            assert wanted.mask.area() > 0
            assert wanted.mask.starts.tolist() == got.mask.starts.tolist()
            assert wanted.mask.ends.tolist() == got.mask.ends.tolist()
            assert (wanted.confidence, wanted.category) == (got.confidence, got.category)


@pytest.mark.parametrize("classes", [CLASSES[::-1], CLASSES[:2]], ids=["order", "number"])
def test_a_head_of_other_classes_starts_anew(
    classes: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In another order, too, which no shape shows: one class follows from the masks of all."""
    number = len(classes)
    options = ("MODEL.ROI_HEADS.NUM_CLASSES", number, "MODEL.POINT_HEAD.NUM_CLASSES", number)
    torch.manual_seed(6)
    given = build_model(own_config("DATASETS.TRAIN", "()", "DATASETS.TEST", "()", *options))
    path = tmp_path / "model_final.pth"
    torch.save({"model": given.state_dict(), ORIGIN_KEY: {"classes": classes}}, path)
    cfg = own_config()
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointer = SafeCheckpointer(model, may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER, classes=CLASSES)
    with caplog.at_level("INFO"):
        checkpointer.load(str(path), checkpointables=[])
    after, theirs = model.state_dict(), given.state_dict()
    for name in ("coarse_head.prediction", "point_head.fc1", "point_head.fc3"):
        weight = f"roi_heads.mask_head.{name}.weight"
        assert torch.equal(after[weight], before[weight])
    weight = "roi_heads.mask_head.coarse_head.fc1.weight"
    assert torch.equal(after[weight], theirs[weight])
    scores = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(after[scores][0], theirs[scores][classes.index("person")])
    assert "  roi_heads.mask_head.point_head starts from scratch\n" in caplog.text + "\n"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.MASK_FORMAT", "polygon", "INPUT.MASK_FORMAT polygon: PointRendMaskHead needs bitm"),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2", "takes its own samples; set it to "),
        ("MODEL.POINT_HEAD.NUM_CLASSES", 80, "NUM_CLASSES 80: it must be that of MODEL.ROI_HEADS"),
        ("INPUT.COLOR_AUG_SSD", True, "INPUT.COLOR_AUG_SSD True: there is INPUT.COLOR_JITTER"),
        ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75, "crops are not drawn by it here"),
    ],
)
def test_keys_that_do_not_fit_get_one_line(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        own_config(key, value)


def test_detectron2s_own_keys_and_defaults_are_left_alone() -> None:
    cfg, own = get_cfg(), build_config("", [])
    add_pointrend_config(cfg)
    assert own.MODEL.POINT_HEAD == cfg.MODEL.POINT_HEAD
    assert own.MODEL.ROI_MASK_HEAD == cfg.MODEL.ROI_MASK_HEAD
    check_ranges(cfg)


def test_determinism_on_a_gpu_gets_one_line() -> None:
    cfg = own_config("DETERMINISTIC", True)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(InputError, match="on a GPU the gradients of PointRendMaskHead are sums"):
        make_deterministic(cfg)
