"""Training that imitates another model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from cityscapes_maskrcnn.engine.distillation import Distillation, class_loss, feature_loss
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

Config = Callable[..., CfgNode]
Train = Callable[..., Trainer]

#: One step, and nothing is measured.
QUICK = ["SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False]


@pytest.fixture
def teacher(build: Callable[..., nn.Module], tmp_path: Path) -> Path:
    path = tmp_path / "teacher.pth"
    torch.save({"model": build("stage_1_heads").state_dict()}, path)
    return path


def test_feature_loss_is_a_share_and_a_mean_over_images_and_levels() -> None:
    theirs = {"p2": torch.tensor([[[[3.0]], [[4.0]]], [[[0.0]], [[2.0]]]])}
    assert feature_loss(theirs, theirs).item() == 0
    ours = {"p2": torch.tensor([[[[3.0]], [[1.0]]], [[[2.0]], [[2.0]]]])}
    # (9 / 25 + 4 / 4) / 2
    assert feature_loss(ours, theirs).item() == pytest.approx(0.68)
    levels = {**theirs, "p3": torch.ones(2, 1, 1, 1)}
    # With another level that is as the teacher's.
    assert feature_loss({**levels, **ours}, levels).item() == pytest.approx(0.34)
    assert feature_loss({"p2": torch.zeros(1, 1, 1, 1)}, {"p2": torch.zeros(1, 1, 1, 1)}) == 0


def test_class_loss_is_a_mean_over_regions() -> None:
    theirs = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()
    assert class_loss(theirs, theirs).item() == pytest.approx(0, abs=1e-7)
    ours = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    # 0.8 ln(0.8 / 0.5) + 0.2 ln(0.2 / 0.5), and 0
    expected = (0.8 * math.log(1.6) + 0.2 * math.log(0.4)) / 2
    assert class_loss(ours, theirs).item() == pytest.approx(expected)
    assert class_loss(torch.zeros(0, 9), torch.zeros(0, 9)).item() == 0


@pytest.mark.parametrize("train_on_pred_boxes", [False, True])
def test_equal_models_have_nothing_to_imitate(
    train: Train, teacher: Path, train_on_pred_boxes: bool
) -> None:
    state = torch.load(teacher, weights_only=True)["model"]
    # Boxes move far, and their classes are not all alike.
    state["roi_heads.box_predictor.bbox_pred.bias"] += 5.0
    state["roi_heads.box_predictor.cls_score.weight"] *= 100.0
    torch.save({"model": state}, teacher)
    # Frozen BatchNorm computes in training what it does in evaluation.
    frozen = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "FrozenBN"]
    keys = [*frozen, "MODEL.WEIGHTS", teacher, "MODEL.DISTILLATION.TEACHER", teacher]
    keys += ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", train_on_pred_boxes]
    trainer = train(*keys, *QUICK)
    latest = trainer.storage.latest()
    assert latest["loss_distill_features"][0] < 1e-9
    assert latest["loss_distill_classes"][0] < 1e-6
    assert latest["loss_cls"][0] > 0.01


def test_the_weight_is_a_factor_and_checkpoints_have_no_teacher(
    train: Train, teacher: Path, tmp_path: Path
) -> None:
    losses = []
    for weight in (1.0, 3.0):
        keys = ["MODEL.DISTILLATION.TEACHER", teacher, "MODEL.DISTILLATION.WEIGHT", weight]
        trainer = train(*keys, *QUICK, "OUTPUT_DIR", tmp_path / str(weight))
        losses.append({name: value for name, (value, _) in trainer.storage.latest().items()})
        saved = torch.load(tmp_path / str(weight) / "model_final.pth", weights_only=True)
        assert saved["model"].keys() == trainer.model.state_dict().keys()
    for name in ("loss_distill_features", "loss_distill_classes"):
        assert losses[0][name] > 0.01
        assert losses[1][name] == pytest.approx(3 * losses[0][name])
    assert losses[0]["loss_cls"] == losses[1]["loss_cls"]
    assert not torch.equal(
        *(
            torch.load(tmp_path / weight / "model_final.pth", weights_only=True)["model"][
                "backbone.fpn_output2.weight"
            ]
            for weight in ("1.0", "3.0")
        )
    )


def test_micro_batches_add_up(config: Config, teacher: Path) -> None:
    cfg = config("MODEL.DISTILLATION.TEACHER", teacher, "SOLVER.IMS_PER_BATCH", 4)
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "FrozenBN"
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    batch = next(iter(trainer.build_train_loader(cfg)))
    losses = []
    for parts in (1, 2):
        trainer._trainer.accumulate = parts
        with EventStorage():
            of_batch, _ = trainer._trainer.compute_gradients(trainer.model, batch)
        losses.append(of_batch["loss_distill_features"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class StockModels(Trainer):
    """Builds models as Detectron2's trainer does."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return DefaultTrainer.build_model.__func__(cls, cfg)


@pytest.mark.parametrize("kind", [Trainer, StockModels])
def test_model_and_teacher_pool_at_exact_boxes(
    config: Config, teacher: Path, kind: type[Trainer]
) -> None:
    """In bfloat16, Detectron2's own poolers round boxes at the right border to 8 pixels."""
    keys = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.DISTILLATION.TEACHER", teacher]
    cfg = config(*keys)
    cfg.freeze()
    trainer = kind(cfg)
    assert trainer._trainer.distillation is not None
    generator = torch.Generator().manual_seed(4)
    levels = [
        torch.rand(1, 8, 64 >> level, 512 >> level, generator=generator).bfloat16()
        for level in range(4)
    ]
    boxes = [Boxes(torch.tensor([[2003.3, 101.7, 2041.9, 187.2], [1500.1, 9.9, 1790.6, 250.0]]))]
    for model in (trainer.model, trainer._trainer.distillation._teacher):
        pooler = model.roi_heads.box_pooler
        assert type(pooler) is ROIPooler
        exact = pooler([level.float() for level in levels], boxes)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(pooler(levels, boxes), exact)


def test_the_teacher_has_been_seen_too(train: Train, tmp_path: Path) -> None:
    val = "('cityscapes_instance_val',)"
    train(*QUICK, "DATASETS.TRAIN", val, "OUTPUT_DIR", tmp_path / "teacher")
    path = tmp_path / "teacher" / "model_final.pth"
    keys = [*QUICK, "MODEL.DISTILLATION.TEACHER", path, "OUTPUT_DIR"]
    trainer = train(*keys, tmp_path / "student")
    seen = [each.dataset for each in trainer.checkpointer.history]
    assert seen == ["cityscapes_instance_val", "cityscapes_instance_train"]
    with pytest.raises(InputError, match="6 of the 6 images of cityscapes_instance_val were train"):
        train(*keys, tmp_path / "refused", "DATASETS.TEST", val)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["MODEL.DISTILLATION.TEACHER", "none.pth"], "^MODEL.DISTILLATION.TEACHER: none.pth: no"),
        (["MODEL.RESNETS.WIDTH_PER_GROUP", 4], "^MODEL.DISTILLATION.TEACHER: .*weights of another"),
        (["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "^MODEL.DISTILLATION.TEACHER: only a Gener"),
    ],
)
def test_bad_teachers(config: Config, teacher: Path, options: list[Any], problem: str) -> None:
    if "CascadeROIHeads" in options:
        options += ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    cfg = config("MODEL.DISTILLATION.TEACHER", teacher, *options)
    cfg.freeze()
    with pytest.raises(InputError, match=problem):
        Trainer(cfg)


def test_a_negative_weight(config: Config) -> None:
    with pytest.raises(InputError, match=r"MODEL.DISTILLATION.WEIGHT -1.0: it must be 0 or more"):
        config("MODEL.DISTILLATION.WEIGHT", -1.0)


def test_only_levels_that_heads_read_are_imitated(train: Train, teacher: Path) -> None:
    levels = ["MODEL.RPN.IN_FEATURES", "['p2','p3']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2']"]
    levels += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16],[32]]"]
    keys = [*levels, "MODEL.WEIGHTS", teacher, "MODEL.DISTILLATION.TEACHER", teacher, *QUICK]
    trainer = train(*keys)
    # p4 is the output of this layer alone.
    layers: Any = trainer.model.backbone
    assert layers.fpn_output4.weight.grad is None
    assert layers.fpn_output3.weight.grad.abs().sum() > 0


def test_standard_heads_imitate_too(train: Train, teacher: Path) -> None:
    keys = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.DISTILLATION.TEACHER", teacher]
    trainer = train(*keys, *QUICK)
    assert isinstance(trainer._trainer.distillation, Distillation)
    assert trainer.storage.latest()["loss_distill_classes"][0] > 0.01
