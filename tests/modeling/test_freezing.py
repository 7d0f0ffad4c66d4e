"""A tiny Mask R-CNN, trained for two steps with parts of it frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.freezing import freeze_fpn, parameter_table
from cityscapes_maskrcnn.utils.errors import InputError

CONFIG = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
TINY = """
MODEL.DEVICE cpu MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN
MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 8
MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.FPN.OUT_CHANNELS 8
MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_MASK_HEAD.NUM_CONV 1
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TRAIN 20
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 128 INPUT.MIN_SIZE_TEST 64
SOLVER.IMS_PER_BATCH 2 SOLVER.EPOCHS 0 SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.MAX_ITER 2
SOLVER.WARMUP_ITERS 0 SOLVER.BASE_LR 0.01 TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False
DATALOADER.NUM_WORKERS 0
"""


def config(root: Path, output: Path, *options: object) -> CfgNode:
    last = ["MODEL.WEIGHTS", "", "DATASETS.TEST", "()", "OUTPUT_DIR", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        return build_config(str(CONFIG), [*TINY.split(), *last, *map(str, options)])


def train(cfg: CfgNode) -> tuple[nn.Module, set[str]]:
    """Train; return the model and the names of the tensors that differ from before."""
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    return trainer.model, {name for name in before if not torch.equal(before[name], after[name])}


def of_fpn(name: str) -> bool:
    return name.startswith("backbone.fpn_")


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything live: what the other tests start from, and proof that it would move."""
    output = tmp_path_factory.mktemp("live")
    _, moved = train(config(small_root, output, "MODEL.BACKBONE.FREEZE_AT", 0))
    statistics = {name for name in moved if name.endswith(("running_mean", "running_var"))}
    # 53 normalisations of the ResNet and 8 of the FPN.
    assert len(statistics) == 2 * (53 + 8)
    assert {"backbone.fpn_lateral2.weight", "backbone.fpn_output5.norm.bias"} <= moved
    assert {"backbone.bottom_up.stem.conv1.weight"} <= moved
    return output / "model_final.pth"


def test_frozen_fpn_is_bit_equal_and_lets_gradients_through(
    trained: Path, small_root: Path, tmp_path: Path
) -> None:
    keys = ("MODEL.WEIGHTS", trained, "MODEL.FPN.FREEZE", True, "MODEL.BACKBONE.FREEZE_AT", 0)
    _, moved = train(config(small_root, tmp_path, *keys))
    # Its BatchNorm statistics too.
    assert not {name for name in moved if of_fpn(name)}
    # Below it and above it everything goes on.
    assert "backbone.bottom_up.stem.conv1.weight" in moved
    assert "backbone.bottom_up.res5.2.conv3.norm.running_mean" in moved
    assert "proposal_generator.rpn_head.conv.weight" in moved


def test_freeze_at_5_and_the_frozen_fpn_leave_the_whole_backbone(
    trained: Path, small_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ("MODEL.WEIGHTS", trained, "MODEL.FPN.FREEZE", True, "MODEL.BACKBONE.FREEZE_AT", 5)
    with caplog.at_level("INFO", logger="cityscapes_maskrcnn.engine.trainer"):
        _, moved = train(config(small_root, tmp_path, *keys))
    assert not {name for name in moved if name.startswith("backbone.")}
    assert "roi_heads.mask_head.predictor.weight" in moved
    (table,) = [text for text in caplog.messages if "trainable" in text]
    rows = rows_of(table.partition("\n")[2])
    frozen = ("stem", "res2", "res3", "res4", "res5", "FPN")
    assert [rows[part][1] for part in frozen] == [0] * 6
    assert all(rows[part][1] for part in ("RPN", "box head", "mask head", "total"))


def rows_of(table: str) -> dict[str, tuple[int, int]]:
    """Part -> parameters and how many of them are trained."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {name: (int(a.replace(",", "")), int(b.replace(",", ""))) for name, a, b in cells}


def test_the_table_counts_all_of_the_model(small_root: Path, tmp_path: Path) -> None:
    live, half = (
        Trainer.build_model(config(small_root, tmp_path, "MODEL.BACKBONE.FREEZE_AT", freeze_at))
        for freeze_at in (0, 5)
    )
    table, frozen = rows_of(parameter_table(live)), rows_of(parameter_table(half))
    parts = ["stem", "res2", "res3", "res4", "res5", "FPN", "RPN", "box head", "mask head"]
    assert list(table) == [*parts, "total"]
    total = sum(p.numel() for p in live.parameters())
    assert table["total"] == (total, total)
    # The stem: 4 x 3 x 7 x 7 weights, 4 + 4 of its normalisation.
    assert table["stem"] == (588 + 8, 588 + 8)
    # A frozen part has as many parameters as a live one.
    assert [size for size, _ in frozen.values()] == [size for size, _ in table.values()]
    assert [frozen[part][1] == 0 for part in parts] == [True] * 5 + [False] * 4
    other = nn.ModuleDict({"sem_seg_head": nn.Linear(2, 3), "extra": nn.Linear(1, 1, bias=False)})
    other.extra.requires_grad_(False)
    assert rows_of(parameter_table(other)) == {
        "semantic head": (9, 9),
        "extra": (1, 0),
        "total": (10, 9),
    }


def test_no_fpn_to_freeze(small_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MODEL\.FPN\.FREEZE: the model has no feature pyramid"):
        freeze_fpn(nn.Linear(1, 1))
    keys = ("MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 32)
    model = Trainer.build_model(config(small_root, tmp_path, *keys))
    freeze_fpn(model)  # GroupNorm has no statistics: its weights stop to be trained, that is all
    layers = [module for name, module in model.named_modules() if of_fpn(name)]
    assert not any(isinstance(layer, FrozenBatchNorm2d) for layer in layers)
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())


def test_another_number_of_anchors_never_loads(
    trained: Path, small_root: Path, tmp_path: Path
) -> None:
    keys = ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5,1.0]]", "MODEL.WEIGHTS", trained)
    trainer = Trainer(config(small_root, tmp_path, *keys))
    # 3 anchors a cell in the file, 2 in the model.
    name = r"proposal_generator\.rpn_head\.(objectness_logits|anchor_deltas)\.\w+"
    with pytest.raises(InputError, match=name + r" is \((3|12),.*\) in the file"):
        trainer.resume_or_load(resume=False)
