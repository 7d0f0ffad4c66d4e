"""A tiny Mask R-CNN with fewer channels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.deploy.pruning import prune_channels, prune_checkpoint
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.folding import fold_for_good
from cityscapes_maskrcnn.modeling.narrowing import layer_widths
from cityscapes_maskrcnn.utils.errors import InputError

TINY = (Path(__file__).parents[1] / "tiny_network.txt").read_text().split()


def model_of(cfg: CfgNode) -> Any:
    model = Trainer.build_model(cfg).eval()
    load_for_inference(model, cfg)
    return model


def outputs(model: Any) -> dict[str, torch.Tensor]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 150), dtype=np.uint8)
    with torch.no_grad():
        (found,) = model.inference([{"image": torch.from_numpy(pixels)}], do_postprocess=False)
    assert len(found) == 10
    return {"boxes": found.pred_boxes.tensor, "scores": found.scores, "masks": found.pred_masks}


def test_ratio_0_changes_nothing(config: CfgNode) -> None:
    expected = outputs(model_of(config))
    model = fold_for_good(model_of(config))
    prune_channels(model, 0.0)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=1e-4)


def test_every_group_loses_its_share(config: CfgNode) -> None:
    model = fold_for_good(model_of(config))
    prune_channels(model, 0.3)
    widths = layer_widths(model)
    # ceil(0.7 x 8) = 6 of the stem's 8; ceil(0.7 x 16) = 12; of 32 or more a multiple of 8:
    # 0.7 x 64 = 44.8 -> 48, 0.7 x 32 = 22.4 -> 24. The FPN gives 16 to the heads as before.
    assert widths["backbone.bottom_up.stem.conv1"] == [3, 6]
    assert widths["backbone.bottom_up.res2.0.shortcut"] == [6, 12]
    assert widths["backbone.bottom_up.res4.5.conv3"] == [24, 48]
    assert widths["backbone.bottom_up.res5.2.conv2"] == [48, 48]
    assert widths["backbone.fpn_lateral4"] == [48, 12]
    assert widths["backbone.fpn_output4"] == [12, 16]
    assert widths["proposal_generator.rpn_head.conv"] == [16, 12]
    assert widths["proposal_generator.rpn_head.anchor_deltas"] == [12, 12]
    assert widths["roi_heads.box_head.fc1"] == [16 * 7 * 7, 24]
    assert widths["roi_heads.box_predictor.cls_score"] == [24, 9]
    assert widths["roi_heads.mask_head.mask_fcn1"] == [16, 12]
    assert widths["roi_heads.mask_head.deconv"] == [12, 12]
    assert widths["roi_heads.mask_head.predictor"] == [12, 8]
    outputs(model)


def test_the_smallest_weights_go(config: CfgNode) -> None:
    model = fold_for_good(model_of(config))
    layer = model.roi_heads.box_head.fc1
    with torch.no_grad():
        layer.weight[::2] *= 1e-3
        layer.bias.zero_()
    large = layer.weight.detach()[1::2].clone()
    prune_channels(model, 0.5)
    assert torch.equal(layer.weight.detach(), large)


def test_a_residual_branch_loses_what_the_trunk_loses(config: CfgNode) -> None:
    model = fold_for_good(model_of(config))
    blocks = list(model.backbone.bottom_up.res3)
    layers: list[Any] = [blocks[0].shortcut, *(each.conv3 for each in blocks)]
    with torch.no_grad():
        for layer in layers:
            layer.weight[8:24] *= 1e-3
    kept = [torch.cat([each.weight[:8], each.weight[24:]]).detach() for each in layers]
    prune_channels(model, 0.5)
    for layer, weight in zip(layers, kept, strict=True):
        # Half of their inputs have gone too; norms tell the rows.
        assert layer.weight.shape == (16, weight.shape[1] // 2, 1, 1)
        assert layer.weight.norm() > 0.4 * weight.norm()


def test_the_checkpoint_is_a_model_like_any_other(config: CfgNode, tmp_path: Path) -> None:
    path, before, after = prune_checkpoint(config, 0.5, tmp_path / "pruned")
    assert path == tmp_path / "pruned" / "model_pruned.pth"
    assert sorted(each.name for each in path.parent.iterdir()) == ["config.yaml", path.name]
    assert (before, after) == (317_920, 90_608)
    cfg = build_config(str(path.parent / "config.yaml"), [])
    assert cfg.MODEL.PRUNED_WIDTHS["backbone.bottom_up.res3.1.conv2"] == [8, 8]
    model = model_of(cfg)
    assert sum(each.numel() for each in model.parameters()) == after
    assert not any(isinstance(each, nn.BatchNorm2d) for each in model.modules())


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0, "0"), (1.0, "1"), (float("nan"), "nan"), (-1, "-1")]
)
def test_ratio_out_of_range(config: CfgNode, tmp_path: Path, ratio: float, text: str) -> None:
    with pytest.raises(InputError) as error:
        prune_checkpoint(config, ratio, tmp_path / "pruned")
    assert str(error.value) == f"--ratio {text}: it must be above 0 and below 1"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "MODEL.META_ARCHITECTURE RetinaNet: only Gene"),
        (["MODEL.MASK_ON", False], "only what can be exported can be pruned: MODEL.MASK_ON False"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
    ],
)
def test_what_cannot_be_pruned_is_one_line(
    config: CfgNode, tmp_path: Path, options: list[object], problem: str
) -> None:
    config.merge_from_list(options)
    with pytest.raises(InputError) as error:
        prune_checkpoint(config, 0.5, tmp_path / "pruned")
    assert str(error.value).startswith(problem)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config_file", "options", "problem"),
    [
        ("stage_1_heads", ["MODEL.ROI_MASK_HEAD.NORM", "LN"], "mask_head.mask_fcn1.norm: a LayerN"),
        ("stage_1_heads", ["MODEL.RESNETS.NUM_GROUPS", "2"], "res2.0.conv2: a Conv2d in groups"),
        ("convnext_t/stage_1_heads", ["MODEL.CONVNEXT.CHANNELS", "8"], "bottom_up.stem.1: a Layer"),
    ],
)
def test_layers_that_cannot_be_pruned(config_file: str, options: list[str], problem: str) -> None:
    cfg = build_config(f"configs/{config_file}.yaml", [*TINY, *options])
    with pytest.raises(InputError, match=problem):
        prune_channels(fold_for_good(Trainer.build_model(cfg)), 0.5)


def test_without_the_package(
    config: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(InputError, match=r"torch-pruning: pip install -e '\.\[compress\]'"):
        prune_checkpoint(config, 0.5, tmp_path / "pruned")
