"""Mask R-CNNs of torchvision, loaded into Detectron2's: the same outputs for the same input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.class_check import class_names, coco_classes
from cityscapes_maskrcnn.engine.weight_conventions import conventions_of
from cityscapes_maskrcnn.modeling.class_rows import match_classes
from cityscapes_maskrcnn.modeling.deeplab_weights import canonical_names
from cityscapes_maskrcnn.modeling.detector_names import from_torchvision
from cityscapes_maskrcnn.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("remove_files")

CONFIGS = {
    "coco_torchvision_R_50_FPN": maskrcnn_resnet50_fpn,
    "coco_torchvision_R_50_FPN_v2": maskrcnn_resnet50_fpn_v2,
}


def config(name: str, *options: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", *map(str, options)]
    return build_config(f"configs/{name}.yaml", words)


def load(cfg: CfgNode, path: Path, **options: Any) -> nn.Module:
    """Build a model and load a file as a training run does."""
    model = build_model(cfg)
    SafeCheckpointer(
        model,
        may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER,
        classes=class_names(cfg),
        conventions=conventions_of(cfg),
        **options,
    ).load(str(path), checkpointables=[])
    return model.eval()


def random_statistics(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics that are no identity."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(std=0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return model.eval()


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest value, of values that differ."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-3 * theirs.abs().max() > 0
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_outputs_are_torchvisions(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    # With the background as many as the heads of Cityscapes: all values are used.
    theirs: Any = CONFIGS[name](weights=None, weights_backbone=None, num_classes=9)
    random_statistics(theirs)
    path = tmp_path / "weights.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 1}, path)
    with caplog.at_level("INFO"):
        ours = load(config(name), path)
    assert "265 of the 265 backbone tensors in the model are bit-equal" in caplog.text
    assert "missing" not in caplog.text
    # Everything is used but BatchNorm's counters, which frozen layers do not keep.
    skipped = [line for line in caplog.text.splitlines() if line.startswith("  skipped")]
    assert len(skipped) == 1
    assert skipped[0].endswith("BatchNorm's counters, which this model does not keep")

    images = torch.randn(1, 3, 128, 192)
    pyramid, other_pyramid = ours.backbone(images), theirs.backbone(images)
    for level, other in (("p2", "0"), ("p3", "1"), ("p4", "2"), ("p5", "3"), ("p6", "pool")):
        assert_close(pyramid[level], other_pyramid[other])

    logits, deltas = ours.proposal_generator.rpn_head([*pyramid.values()])
    other_logits, other_deltas = theirs.rpn.head([*other_pyramid.values()])
    for each, other in zip([*logits, *deltas], [*other_logits, *other_deltas], strict=True):
        assert_close(each, other)

    # Of levels 2 to 5, and across the border of the image.
    boxes = torch.tensor([[3.0, 5, 60, 47], [-8, 20, 150, 130], [0, 0, 9, 9], [20, 9, 190, 120]])
    boxes = torch.cat([boxes, boxes * 4])
    heads, others = ours.roi_heads, theirs.roi_heads
    levels = [pyramid[level] for level in heads.box_in_features]
    size = [(128, 192)]
    regions = heads.box_pooler(levels, [Boxes(boxes)])
    other_regions = others.box_roi_pool(other_pyramid, [boxes], size)
    assert_close(regions, other_regions)
    scores, places = heads.box_predictor(heads.box_head(regions))
    other_scores, other_places = others.box_predictor(others.box_head(other_regions))
    # torchvision's background is the first class, and has boxes.
    assert_close(scores, other_scores[:, [1, 2, 3, 4, 5, 6, 7, 8, 0]])
    assert_close(places, other_places[:, 4:])

    masks = heads.mask_head.layers(heads.mask_pooler(levels, [Boxes(boxes)]))
    other_regions = others.mask_roi_pool(other_pyramid, [boxes], size)
    assert_close(masks, others.mask_predictor(others.mask_head(other_regions))[:, 1:])


@torch.no_grad()
def test_detections_are_torchvisions(tmp_path: Path) -> None:
    """Boxes, scores, classes and masks of its whole forward pass, with its rounded anchors."""
    torch.manual_seed(1)
    size = (128, 192)
    # It normalises and resizes by itself: here to the size that the image has.
    theirs: Any = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=9,
        min_size=size[0],
        max_size=size[1],
    )
    random_statistics(theirs)
    pixels = torch.randint(256, (3, *size), dtype=torch.uint8)
    # Outputs of random layers are alike or huge.
    heads = theirs.roi_heads
    for layer, deviation in (
        (theirs.rpn.head.cls_logits, 2.0),
        (theirs.rpn.head.bbox_pred, 0.3),
        (heads.box_predictor.cls_score, 1.5),
        (heads.box_predictor.bbox_pred, 0.5),
        (heads.mask_predictor.mask_fcn_logits, 2.0),
    ):
        outputs: list[Tensor] = []
        note = layer.register_forward_hook(lambda *each, to=outputs: to.append(each[2].flatten()))
        theirs([pixels / 255])
        note.remove()
        layer.weight.mul_(deviation / torch.cat(outputs).std())
    path = tmp_path / "weights.pth"
    torch.save({"model": theirs.state_dict()}, path)
    ours: Any = load(config("coco_torchvision_R_50_FPN"), path)
    # Masks as they are before they are pasted, which both do in their own way.
    theirs.transform.postprocess = lambda result, *_: result
    cells = ours.proposal_generator.anchor_generator.cell_anchors
    for cell, rounded in zip(cells, theirs.rpn.anchor_generator.cell_anchors, strict=True):
        assert 0 < (cell - rounded).abs().max() <= 0.5
        cell.copy_(rounded)

    (expected,) = theirs([pixels / 255])
    (found,) = ours.inference([{"image": pixels}], do_postprocess=False)
    assert len(found) == len(expected["boxes"]) == 100
    assert len(set(expected["labels"].tolist())) > 2
    # The background is its first class.
    assert torch.equal(found.pred_classes, expected["labels"] - 1)
    assert_close(found.scores, expected["scores"])
    assert_close(found.pred_boxes.tensor, expected["boxes"])
    assert_close(found.pred_masks, expected["masks"])


def test_the_names_of_older_files() -> None:
    """As in the published file of the first version."""
    older = {
        "backbone.fpn.inner_blocks.3.weight": "backbone.fpn_lateral5.weight",
        "backbone.fpn.layer_blocks.0.bias": "backbone.fpn_output2.bias",
        "rpn.head.conv.weight": "proposal_generator.rpn_head.conv.weight",
        "rpn.head.cls_logits.bias": "proposal_generator.rpn_head.objectness_logits.bias",
        "roi_heads.mask_head.mask_fcn4.bias": "roi_heads.mask_head.mask_fcn4.bias",
        "roi_heads.mask_predictor.conv5_mask.weight": "roi_heads.mask_head.deconv.weight",
    }
    state = dict.fromkeys(["backbone.body.layer1.0.conv1.weight", *older], torch.zeros(1))
    names = canonical_names(state, "file")
    assert {names[new]: new for new in names if names[new] in older} == older


def test_cocos_ids_are_matched_by_name() -> None:
    """91 rows: the background and ids 1 to 90, of which ten name nothing."""
    layers = {
        "cls_score.weight": torch.arange(91.0)[:, None],
        "bbox_pred.weight": torch.arange(364.0)[:, None],
    }
    file = {f"roi_heads.box_predictor.{name}": value for name, value in layers.items()}
    file["backbone.body.layer1.0.conv1.weight"] = torch.zeros(1)
    file["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.arange(91.0)
    names = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    initial = {f"roi_heads.box_predictor.{name}": value for name, value in layers.items()}
    initial["roi_heads.mask_head.predictor.bias"] = torch.zeros(8)
    rearranged = from_torchvision(file, "file")
    matched, _, _ = match_classes(rearranged, "file", coco_classes(90), names, initial)
    # The official ids: person 1, car 3, truck 8, bus 6, train 7, motorcycle 4, bicycle 2.
    ids = [1, 1, 3, 8, 6, 7, 4, 2]
    scores, boxes, _, masks = matched.values()
    assert scores.flatten().tolist() == [*ids, 0]
    assert boxes[::4].flatten().tolist() == [4 * number for number in ids]
    assert masks.tolist() == ids


def test_the_first_versions_norm_has_no_epsilon() -> None:
    """torchvision computes with eps 0 after loading that file, by its name, and no other."""
    torch.manual_seed(1)
    layer = FrozenBatchNorm2d(4, eps=0.0)
    layer.weight.normal_()
    layer.running_var.copy_(torch.tensor([1e-5, 1e-4, 1.0, 30.0]))
    state = {f"backbone.body.bn1.{name}": value for name, value in layer.state_dict().items()}
    state["backbone.body.layer1.0.conv1.weight"] = torch.zeros(1)
    images = torch.randn(2, 4, 3, 3)
    for source, equal in (
        ("torchvision://maskrcnn_resnet50_fpn", True),
        ("/my/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", True),
        ("torchvision://maskrcnn_resnet50_fpn_v2", False),
    ):
        other = FrozenBatchNorm2d(4, eps=1e-5)
        loaded = from_torchvision(state, source)
        other.load_state_dict(
            {name: loaded[f"backbone.body.bn1.{name}"] for name in layer.state_dict()}
        )
        assert torch.allclose(other(images), layer(images), rtol=1e-5) == equal


def test_its_colours_are_checked(tmp_path: Path) -> None:
    cfg = config("coco_torchvision_R_50_FPN", "INPUT.FORMAT", "BGR")
    path = tmp_path / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    torch.save({"backbone.body.layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"with INPUT\.FORMAT RGB, not BGR"):
        load(cfg, path)
