"""The benchmark of stage 0: a step of each system, on a network that is narrow inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabV3

from cityscapes_maskrcnn.benchmarks import stage_0
from cityscapes_maskrcnn.benchmarks.stage_0 import OURS, PLAIN, benchmark_stage_0
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.deeplab_weights import translate
from cityscapes_maskrcnn.utils.errors import InputError

CONFIG = "configs/stage_0_backbone.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "SOLVER.IMS_PER_BATCH", "2"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.CROP.SIZE", "[64,128]", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"),
]


def narrow_deeplab(num_classes: int, **_: Any) -> DeepLabV3:
    """torchvision's, an eighth as wide inside its blocks and in its head, as the config above."""
    backbone = resnet50(width_per_group=8, replace_stride_with_dilation=[False, True, True])
    head = nn.Sequential(
        ASPP(2048, [12, 24, 36], 32),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Conv2d(32, num_classes, 1),
    )
    return DeepLabV3(IntermediateLayerGetter(backbone, {"layer4": "out"}), head)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every network that the benchmark makes; all are narrow."""
    torch.set_num_threads(1)  # so little work is slower when shared
    made: list[nn.Module] = []

    def keep(build: Any) -> Any:
        return lambda *arguments, **options: made.append(build(*arguments, **options)) or made[-1]

    monkeypatch.setattr(stage_0.segmentation, "deeplabv3_resnet50", keep(narrow_deeplab))
    monkeypatch.setattr(Trainer, "build_model", keep(Trainer.build_model))
    return made


@pytest.mark.usefixtures("models")
def test_a_step_of_each_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process instead of one of its own, which would import everything anew.
    monkeypatch.setattr(stage_0, "_peak_bytes", stage_0._measure_memory)
    title, _, *lines = benchmark_stage_0(CONFIG, SMALL, steps=1).splitlines()
    assert "stage 0, batch 2 of 64x128" in title
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in rows] == [OURS, PLAIN]
    speeds = [float(row[1]) for row in rows]
    assert min(speeds) > 0
    # How many times as fast as the other; the numbers are rounded to three digits.
    ratios = [float(row[2].removesuffix("x")) for row in rows]
    assert ratios == pytest.approx([speeds[0] / speeds[1], 1.0], abs=0.02)
    assert all(float(row[3].removesuffix(" GB")) > 0.1 for row in rows)


def test_both_do_the_same_step(models: list[nn.Module]) -> None:
    """The same gradient from the same weights and images: what is timed is the same work."""
    ours, plain = (stage_0._build(name, CONFIG, SMALL) for name in (OURS, PLAIN))
    # Ours starts from a torchvision network of its own, the first.
    _, our_model, their_model = models
    batch = [
        {"image": torch.randint(256, (3, 64, 128), dtype=torch.uint8), "sem_seg": labels}
        for labels in torch.randint(19, (2, 64, 128))
    ]
    for step in (ours, plain):
        torch.manual_seed(3)  # the same values are dropped
        step(batch)
    theirs = {
        **their_model.state_dict(),
        **{name: parameter.grad for name, parameter in their_model.named_parameters()},
    }
    shapes = {name: tuple(value.shape) for name, value in our_model.state_dict().items()}
    expected, _ = translate(theirs, "torchvision", shapes)
    for name, parameter in our_model.named_parameters():
        # Rounding grows from layer to layer, so the gradient of a tensor as a whole is compared.
        difference = (parameter.grad - expected[name]).norm()
        assert difference <= 0.01 * expected[name].norm() + 1e-7, name


def test_numbers_below_one() -> None:
    with pytest.raises(InputError, match=r"^--steps must be 1 or more$"):
        benchmark_stage_0(CONFIG, SMALL, 0)
    with pytest.raises(InputError, match=r"^SOLVER\.IMS_PER_BATCH 0: it must be 1 to 65,536$"):
        benchmark_stage_0(CONFIG, [*SMALL, "SOLVER.IMS_PER_BATCH", "0"], 1)
