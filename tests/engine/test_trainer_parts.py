"""What Trainer builds from a config: optimizer, learning rate schedule and hooks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cityscapes_maskrcnn.engine.solver import resolve_epochs
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

NARROW = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"),
    *("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
]


class Small(nn.Module):
    """A layer that is frozen, one that is not, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(1, 1)
        self.frozen.requires_grad_(False)
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)


def optimizer_of(config_file: str, *options: str) -> tuple[torch.optim.Optimizer, Small]:
    model = Small()
    return Trainer.build_optimizer(build_config(config_file, list(options)), model), model


@pytest.mark.parametrize(
    ("stage", "kind", "rate", "decay"),
    [
        ("stage_0_backbone", torch.optim.Adam, 1e-6, 0.0),
        ("stage_1_heads", torch.optim.AdamW, 1e-4, 1e-4),
        ("stage_2_search", torch.optim.AdamW, 4e-5, 1e-4),
        ("stage_2_tuned", torch.optim.AdamW, 1e-4, 1e-4),
        ("stage_3_refine", torch.optim.AdamW, 1e-5, 1e-4),
        ("", torch.optim.SGD, 1e-3, 1e-4),  # Detectron2's defaults
    ],
)
def test_the_optimizer_of_each_stage(
    stage: str, kind: type[torch.optim.Optimizer], rate: float, decay: float
) -> None:
    optimizer, model = optimizer_of(f"configs/{stage}.yaml" if stage else "")
    assert type(optimizer) is kind
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    # What is frozen is left out; norms are not decayed.
    assert found == {
        id(model.linear.weight): (rate, decay),
        id(model.linear.bias): (rate, decay),
        id(model.norm.weight): (rate, 0.0),
        id(model.norm.bias): (rate, 0.0),
    }
    if kind is torch.optim.SGD:
        assert optimizer.defaults["momentum"] == 0.9
    else:
        assert optimizer.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_every_optimizer_reads_the_keys_of_the_solver(name: str) -> None:
    optimizer, model = optimizer_of(
        "",
        *("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", "0.01", "SOLVER.WEIGHT_DECAY", "0.02"),
        *("SOLVER.WEIGHT_DECAY_NORM", "0.03", "SOLVER.BIAS_LR_FACTOR", "2.0"),
        *("SOLVER.WEIGHT_DECAY_BIAS", "0.04", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5"),
    )
    assert isinstance(optimizer, getattr(torch.optim, name))
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        id(model.linear.weight): (0.01, 0.02),
        id(model.linear.bias): (0.02, 0.04),
        id(model.norm.weight): (0.01, 0.03),
        id(model.norm.bias): (0.02, 0.04),
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 7.0)
    optimizer.step()
    assert model.linear.weight.grad.tolist() == [[0.5]]


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(InputError, match="'Adagrad': it must be SGD, Adam or AdamW"):
        optimizer_of("", "SOLVER.OPTIMIZER", "Adagrad")


def test_the_plateau_schedule_reads_its_keys() -> None:
    cfg = build_config("configs/stage_0_backbone.yaml", ["SOLVER.BASE_LR", "1.0"])
    for factor, patience in ((0.1, 3), (0.25, 1)):
        cfg.SOLVER.PLATEAU.FACTOR, cfg.SOLVER.PLATEAU.PATIENCE = factor, patience
        optimizer = Trainer.build_optimizer(cfg, Small())
        scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
        assert type(scheduler) is ReduceLROnPlateau
        assert scheduler.optimizer is optimizer
        rates = []
        for loss in [5.0, 4.0, *[4.5] * (patience + 2)]:
            scheduler.step(loss)
            rates.append(optimizer.param_groups[0]["lr"])
        # Two new minima, then as many measurements without one as patience allows, and one more.
        assert rates == [1.0] * (2 + patience) + [factor] * 2


@pytest.mark.parametrize(
    ("stage", "rate", "end", "warm_up"),
    [
        ("stage_1_heads", 1e-4, 1e-5, 200),
        ("stage_2_search", 4e-5, 1e-5, 46),
        ("stage_2_tuned", 1e-4, 1e-5, 200),
        ("stage_3_refine", 1e-5, 1e-6, 12),
        ("demo/stage_1_heads", 2e-3, 0.0, 20),
    ],
)
def test_the_cosine_ends_where_the_config_says(
    stage: str, rate: float, end: float, warm_up: int
) -> None:
    cfg = build_config(f"configs/{stage}.yaml", ["SOLVER.MAX_ITER", "1000"])
    optimizer = Trainer.build_optimizer(cfg, Small())
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(1000):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])

    def cosine(step: int) -> float:
        return end + (rate - end) * (1 + math.cos(math.pi * step / 1000)) / 2

    # From a thousandth of the rate in a straight line to the cosine, which ends at the floor.
    assert rates[0] == pytest.approx(rate / 1000)
    assert rates[warm_up // 2] == pytest.approx((rate / 1000 + cosine(warm_up)) / 2)
    assert rates[warm_up] == pytest.approx(cosine(warm_up))
    assert rates[500] == pytest.approx((rate + end) / 2)
    # The last iteration, the thousandth, is a step before the end.
    assert rates[999] == pytest.approx(end, abs=rate * 3e-6)
    assert rates[1000] == pytest.approx(end, abs=1e-15)


def build_trainer(root: Path, folder: Path, stage: str, *options: str) -> Trainer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        words = [*NARROW, "OUTPUT_DIR", str(folder), *options]
        cfg = build_config(f"configs/{stage}.yaml", words)
    resolve_epochs(cfg)
    cfg.freeze()
    return Trainer(cfg)


FIRST = ["SeedEveryStep", "CheckFrozen", "IterationTimer", "AverageNormStatistics"]
LAST = ["RunSummary", "StopOnSignal"]
COARSE = (
    *("DATASETS.TRAIN", "('cityscapes_coarse_semantic_train_extra',)"),
    *("DATASETS.TEST", "('cityscapes_coarse_semantic_val',)"),
)
# What is measured comes before what acts on it, that before the checkpoint that keeps its state,
# and writing after all that produces numbers.
CASES = {
    "stage_0": (
        ("stage_0_backbone", *COARSE),
        [
            *("ValidationLoss", "PlateauSchedule", "EarlyStopping"),
            *("PeriodicCheckpointer", "EvalHook", "WriteEvents", "DriftReport"),
        ],
    ),
    "stage_0 without early stopping": (
        ("stage_0_backbone", *COARSE, "SOLVER.EARLY_STOPPING.ENABLED", "False"),
        [
            *("ValidationLoss", "PlateauSchedule"),
            *("PeriodicCheckpointer", "EvalHook", "WriteEvents", "DriftReport"),
        ],
    ),
    "stage_1": (
        ("stage_1_heads",),
        ["ValidationLoss", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "WriteEvents"],
    ),
    "stage_1 with early stopping": (
        ("stage_1_heads", "SOLVER.EARLY_STOPPING.ENABLED", "True"),
        [
            *("ValidationLoss", "LRScheduler", "EarlyStopping"),
            *("PeriodicCheckpointer", "EvalHook", "WriteEvents"),
        ],
    ),
    "search": (
        ("stage_2_search",),
        ["LRScheduler", "PeriodicCheckpointer", "EvalHook", "WriteEvents"],
    ),
    "nothing to score on": (
        ("stage_2_search", "DATASETS.TEST", "()"),
        ["LRScheduler", "PeriodicCheckpointer", "WriteEvents"],
    ),
    "test-time augmentation": (
        ("stage_2_search", "TEST.AUG.ENABLED", "True"),
        ["LRScheduler", "PeriodicCheckpointer", "EvalHook", "EvalHook", "WriteEvents"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hooks_are_those_of_the_config_in_order(
    small_root: Path, tmp_path: Path, case: str
) -> None:
    (stage, *options), between = CASES[case]
    trainer = build_trainer(small_root, tmp_path, stage, *options)
    assert [type(hook).__name__ for hook in trainer._hooks] == [*FIRST, *between, *LAST]


def test_hooks_get_what_the_config_says(small_root: Path, tmp_path: Path) -> None:
    trainer = build_trainer(
        *(small_root, tmp_path, "stage_0_backbone", *COARSE),
        *("SOLVER.EARLY_STOPPING.PATIENCE", "5", "SOLVER.PLATEAU.PATIENCE", "4"),
        *("SOLVER.CHECKPOINT_EPOCHS", "2", "TEST.EVAL_EPOCHS", "3"),
    )
    hooks = {type(hook).__name__: hook for hook in trainer._hooks}
    assert hooks["SeedEveryStep"].seed == 42
    assert hooks["PlateauSchedule"]._scheduler is trainer.scheduler
    assert trainer.scheduler.optimizer is trainer.optimizer
    assert (trainer.scheduler.factor, trainer.scheduler.patience) == (0.1, 4)
    assert hooks["EarlyStopping"]._patience == 5
    # 6 images, 4 a batch: an epoch is 2 iterations; 12, 2 and 3 epochs.
    assert trainer.max_iter == 24
    assert hooks["PeriodicCheckpointer"].period == 4
    periods = [hooks[name] for name in ("ValidationLoss", "EvalHook")]
    assert [hook._period for hook in periods] == [6, 6]
    assert hooks["WriteEvents"]._eval_period == 6
    assert hooks["AverageNormStatistics"]._periods == [4, 6]
