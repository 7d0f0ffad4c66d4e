from __future__ import annotations

import itertools
import math

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.precision import build_step_trainer
from cityscapes_maskrcnn.engine.solver import match_memory_format
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

NARROW = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"),
]


def test_channels_last_computes_the_same() -> None:
    config_file = "configs/stage_0_backbone.yaml"
    models = []
    for value in ("False", "True"):
        torch.manual_seed(3)
        cfg = build_config(config_file, [*NARROW, "MODEL.CHANNELS_LAST", value])
        models.append(Trainer.build_model(cfg))
    plain, channels_last = models
    conv = plain.backbone.res3[0].conv2.weight, channels_last.backbone.res3[0].conv2.weight
    assert torch.equal(*conv)
    assert [weight.is_contiguous() for weight in conv] == [True, False]
    inputs = [
        {
            "image": torch.randint(256, (3, 65, 97), dtype=torch.uint8),
            "sem_seg": torch.randint(19, (65, 97)),
        }
        for _ in range(4)
    ]
    losses = []
    for model in models:
        model.sem_seg_head.aspp.dropout.p = 0.0
        losses.append(model.train()(inputs)["loss_sem_seg"])
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    ours, theirs = (model.sem_seg_head.conv.weight.grad for model in models)
    # Rounding grows from layer to layer, so the gradient as a whole is compared.
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


PRECISIONS = [("float16", torch.float16, True), ("bfloat16", torch.bfloat16, False)]


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(("name", "precision", "scales"), PRECISIONS)
def test_mixed_precision_takes_the_type_that_the_config_names(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: torch.dtype, scales: bool
) -> None:
    asked: list[bool] = []

    class Scaler(torch.amp.GradScaler):
        """Without a GPU torch switches every scaler off, so what was asked for is noted."""

        def __init__(self, device: str, enabled: bool) -> None:
            asked.append(enabled)
            super().__init__(device, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    cfg = build_config("", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", name])
    model = torch.nn.Linear(1, 1)
    step = build_step_trainer(cfg, model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert isinstance(step, AMPTrainer)
    assert step.precision is precision
    assert asked == [scales]
    assert isinstance(step.grad_scaler, Scaler)


def test_full_precision_is_the_default() -> None:
    model = torch.nn.Linear(1, 1)
    step = build_step_trainer(build_config("", []), model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert type(step) is SimpleTrainer


def test_mixed_precision_needs_a_gpu() -> None:
    cfg = build_config("configs/stage_1_heads.yaml", ["SOLVER.AMP.ENABLED", "True"])
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(InputError, match=r"SOLVER\.AMP\.ENABLED: needs a GPU"):
        Trainer(cfg)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "precision", "scales"), PRECISIONS)
def test_a_step_on_a_gpu(name: str, precision: torch.dtype, scales: bool) -> None:
    options = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", name]
    cfg = build_config("configs/stage_0_backbone.yaml", [*NARROW, *options])
    cfg.MODEL.DEVICE = "cuda"
    model = Trainer.build_model(cfg).train()
    seen: set[torch.dtype] = set()
    conv = model.backbone.res3[0].conv2
    conv.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    batch = [{"image": image, "sem_seg": torch.ones(64, 64, dtype=torch.long)}] * 2
    step = build_step_trainer(cfg, model, itertools.repeat(batch), Trainer.build_optimizer(cfg, model))
    assert step.grad_scaler.is_enabled() == scales
    before = conv.weight.detach().clone()
    with EventStorage() as storage:
        # A scaled gradient may be infinite at first: then the scale is halved, and nothing moves.
        for step.iter in range(20):
            step.run_step()
            assert math.isfinite(storage.latest()["total_loss"][0])
    assert seen == {precision}
    assert conv.weight.dtype is torch.float32
    assert torch.isfinite(conv.weight).all()
    assert not torch.equal(conv.weight, before)


def test_an_unknown_precision_is_named() -> None:
    cfg = build_config("", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "fp16"])
    with pytest.raises(InputError, match="'fp16': it must be float16 or bfloat16"):
        build_step_trainer(cfg, torch.nn.Linear(1, 1), [], None)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_regions_are_cut_at_exact_boxes() -> None:
    cfg = build_config("", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"])
    pooler = ROIPooler(7, [1 / 4, 1 / 8], sampling_ratio=0, pooler_type="ROIAlignV2")
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), pooler)
    generator = torch.Generator().manual_seed(4)
    features = [
        torch.rand(1, 3, *size, generator=generator).bfloat16() for size in ((64, 512), (32, 256))
    ]
    # As far right as in an image of Cityscapes, where bfloat16 knows multiples of 8 only.
    boxes = [Boxes(torch.tensor([[2003.3, 101.7, 2041.9, 187.2], [1500.1, 9.9, 1790.6, 250.0]]))]
    exact = pooler([feature.float() for feature in features], boxes)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pooler(features, boxes).float()
    assert (rounded - exact).abs().max() > 0.1  # how Detectron2 does it
    build_step_trainer(cfg, model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pooler(features, boxes), exact)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_run_in_full_precision_goes_on_in_mixed_precision() -> None:
    steps = []
    for enabled in ("False", "True"):
        model = torch.nn.Linear(1, 1)
        cfg = build_config("", ["SOLVER.AMP.ENABLED", enabled])
        steps.append(build_step_trainer(cfg, model, [], torch.optim.SGD(model.parameters(), lr=0.1)))
    steps[0].iter = 7
    state = steps[0].state_dict()
    assert "grad_scaler" not in state
    steps[1].load_state_dict(state)
    assert steps[1].iter == 7
    assert "grad_scaler" not in state


def test_a_resumed_optimizer_fits_the_memory_format() -> None:
    """Steps of the same numbers, one of them from a checkpoint of the other memory format."""
    moved = []
    for channels_last in (False, True):
        torch.manual_seed(2)
        conv = torch.nn.Conv2d(3, 4, 3)
        optimizer = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
        for gradient in (torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)):
            conv.weight.grad = gradient
            optimizer.step()
        if channels_last:
            saved = optimizer.state_dict()
            conv = conv.to(memory_format=torch.channels_last)
            optimizer = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
            optimizer.load_state_dict(saved)
            assert optimizer.state[conv.weight]["exp_avg"].stride() != conv.weight.stride()
            match_memory_format(optimizer)
        gradient = torch.randn(4, 3, 3, 3)
        if channels_last:
            gradient = gradient.to(memory_format=torch.channels_last)
        conv.weight.grad = gradient
        optimizer.step()
        moved.append(conv.weight.detach())
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-6)
