"""Mask R-CNNs of MMDetection, by the names and shapes of its published files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.class_check import class_names, coco_classes
from cityscapes_maskrcnn.engine.weight_conventions import conventions_of
from cityscapes_maskrcnn.modeling.deeplab_weights import canonical_names
from cityscapes_maskrcnn.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("remove_files")

# mask_rcnn_r50_fpn: name in its file -> shape, and name in Detectron2. Each has a bias. Transcribed
# from the modules of MMDetection v3.3.0: mmdet/models/necks/fpn.py,
# mmdet/models/dense_heads/rpn_head.py, mmdet/models/roi_heads/bbox_heads/convfc_bbox_head.py and
# mmdet/models/roi_heads/mask_heads/fcn_mask_head.py, as
# configs/_base_/models/mask-rcnn_r50_fpn.py builds them.
FPN, RPN, ROI = "backbone.fpn_", "proposal_generator.rpn_head.", "roi_heads."
HEADS: dict[str, tuple[tuple[int, ...], str]] = {
    "neck.lateral_convs.0.conv": ((256, 256, 1, 1), f"{FPN}lateral2"),
    "neck.lateral_convs.1.conv": ((256, 512, 1, 1), f"{FPN}lateral3"),
    "neck.lateral_convs.2.conv": ((256, 1024, 1, 1), f"{FPN}lateral4"),
    "neck.lateral_convs.3.conv": ((256, 2048, 1, 1), f"{FPN}lateral5"),
    "neck.fpn_convs.0.conv": ((256, 256, 3, 3), f"{FPN}output2"),
    "neck.fpn_convs.1.conv": ((256, 256, 3, 3), f"{FPN}output3"),
    "neck.fpn_convs.2.conv": ((256, 256, 3, 3), f"{FPN}output4"),
    "neck.fpn_convs.3.conv": ((256, 256, 3, 3), f"{FPN}output5"),
    "rpn_head.rpn_conv": ((256, 256, 3, 3), f"{RPN}conv"),
    "rpn_head.rpn_cls": ((3, 256, 1, 1), f"{RPN}objectness_logits"),
    "rpn_head.rpn_reg": ((12, 256, 1, 1), f"{RPN}anchor_deltas"),
    "roi_head.bbox_head.fc_cls": ((81, 1024), f"{ROI}box_predictor.cls_score"),
    "roi_head.bbox_head.fc_reg": ((320, 1024), f"{ROI}box_predictor.bbox_pred"),
    "roi_head.bbox_head.shared_fcs.0": ((1024, 12544), f"{ROI}box_head.fc1"),
    "roi_head.bbox_head.shared_fcs.1": ((1024, 1024), f"{ROI}box_head.fc2"),
    "roi_head.mask_head.convs.0.conv": ((256, 256, 3, 3), f"{ROI}mask_head.mask_fcn1"),
    "roi_head.mask_head.convs.1.conv": ((256, 256, 3, 3), f"{ROI}mask_head.mask_fcn2"),
    "roi_head.mask_head.convs.2.conv": ((256, 256, 3, 3), f"{ROI}mask_head.mask_fcn3"),
    "roi_head.mask_head.convs.3.conv": ((256, 256, 3, 3), f"{ROI}mask_head.mask_fcn4"),
    "roi_head.mask_head.upsample": ((256, 256, 2, 2), f"{ROI}mask_head.deconv"),
    "roi_head.mask_head.conv_logits": ((80, 256, 1, 1), f"{ROI}mask_head.predictor"),
}
# Its configs of style "pytorch" with one process of images; what Detectron2 has to be set to.
PYTORCH_STYLE = [
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "False",
    "INPUT.FORMAT",
    "RGB",
    "MODEL.PIXEL_MEAN",
    "(123.675, 116.28, 103.53)",
    "MODEL.PIXEL_STD",
    "(58.395, 57.12, 57.375)",
]
CONFIG_OF_3 = (
    "data_preprocessor=dict(bgr_to_rgb=True, mean=[123.675, 116.28, 103.53],\n"
    "    std=[58.395, 57.12, 57.375], pad_mask=True)\nbackbone=dict(depth=50, style='pytorch')"
)


def config(*options: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", *map(str, options)]
    return build_config("configs/coco_mask_rcnn_R_50_FPN.yaml", words)


def load(cfg: CfgNode, model: nn.Module, path: Path) -> None:
    SafeCheckpointer(
        model,
        may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER,
        classes=class_names(cfg),
        weights_classes=cfg.MODEL.WEIGHTS_CLASSES,
        conventions=conventions_of(cfg),
    ).load(str(path), checkpointables=[])


def test_every_tensor_finds_its_place(
    deeplab: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Its ResNet has torchvision's names.
    state: dict[str, Tensor] = OrderedDict(
        (name, value) for name, value in deeplab.state_dict().items() if name.startswith("backbone")
    )
    for number, (name, (shape, _)) in enumerate(HEADS.items()):
        state[f"{name}.weight"] = torch.full(shape, number + 1.0)
        state[f"{name}.bias"] = torch.arange(
            shape[1 if "upsample" in name else 0], dtype=torch.float32
        )
    meta: dict[str, Any] = {"CLASSES": tuple(coco_classes(80)), "config": CONFIG_OF_3}
    path = tmp_path / "mask_rcnn_r50_fpn.pth"
    torch.save({"meta": meta, "state_dict": state}, path)
    # The file names its classes; no key is needed.
    cfg = config(*PYTORCH_STYLE, "MODEL.WEIGHTS_CLASSES", "()")
    model = build_model(cfg)
    with caplog.at_level("INFO"):
        load(cfg, model, path)
    assert "265 of the 265 backbone tensors in the model are bit-equal" in caplog.text
    assert "missing" not in caplog.text
    ours = model.state_dict()
    # person rider car truck bus train motorcycle bicycle, among COCO's 80.
    rows = [0, 0, 2, 7, 5, 6, 3, 1]
    biases = {
        f"{ROI}box_predictor.cls_score": [*rows, 80],
        f"{ROI}box_predictor.bbox_pred": [4 * row + each for row in rows for each in range(4)],
        f"{ROI}mask_head.predictor": rows,
    }
    for number, (name, (_, new)) in enumerate(HEADS.items()):
        assert (ours[f"{new}.weight"] == number + 1).all()
        bias = state[f"{name}.bias"].tolist()
        assert ours[f"{new}.bias"].tolist() == biases.get(new, bias)
    assert len(ours) == 265 + 2 * len(HEADS)


def test_layers_with_normalisation() -> None:
    """A convolution with BatchNorm, several in the RPN, and convolutions in the box head."""
    expected = {
        "neck.lateral_convs.0.bn.running_var": f"{FPN}lateral2.norm.running_var",
        "rpn_head.rpn_conv.0.conv.weight": f"{RPN}conv.conv0.weight",
        "rpn_head.rpn_conv.1.conv.bias": f"{RPN}conv.conv1.bias",
        "roi_head.bbox_head.shared_convs.3.conv.weight": f"{ROI}box_head.conv4.weight",
        "roi_head.bbox_head.shared_convs.3.bn.weight": f"{ROI}box_head.conv4.norm.weight",
        "roi_head.mask_head.convs.2.gn.bias": f"{ROI}mask_head.mask_fcn3.norm.bias",
    }
    # A model of Detectron2's registries may have heads with such names, which stay.
    own = "roi_heads.mask_head.block.bn.weight"
    expected[own] = own
    state = dict.fromkeys(["backbone.layer1.0.conv1.weight", *expected], torch.zeros(1))
    names = canonical_names(state, "file")
    assert {names[new]: new for new in names if names[new] in expected} == expected


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (
            {"cfg": CONFIG_OF_3},
            r"FORMAT RGB, not BGR; MODEL\.PIXEL_STD \[58\.\S+ 57\S+ 57\S+ not .*IN_1X1 False, not",
        ),
        (
            {"config": "img_norm_cfg = dict(std=[1.0, 1.0, 1.0], to_rgb=False)\nstyle='pytorch'"},
            r"was trained with MODEL\.RESNETS\.STRIDE_IN_1X1 False, not True; set",
        ),
    ],
)
def test_its_config_is_compared(meta: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mask_rcnn.pth"
    torch.save({"meta": meta, "state_dict": {"rpn_head.rpn_conv.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=message):
        load(config(), nn.Conv2d(1, 1, 1), path)
