from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling import compiling
from cityscapes_maskrcnn.modeling.compiling import CompiledPart, compile_parts
from cityscapes_maskrcnn.modeling.folding import fold_frozen_norms
from cityscapes_maskrcnn.utils.errors import InputError

TINY = """
MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 2
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.FPN.OUT_CHANNELS 8
MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_MASK_HEAD.NUM_CONV 1
MODEL.RPN.BATCH_SIZE_PER_IMAGE 8 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
TEST.DETECTIONS_PER_IMAGE 5
"""
Build = Callable[..., nn.Module]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Build]:
    """Build a small Mask R-CNN, the same each time, that is compiled by a quick compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def build(*options: object, mode: str = "on", backend: Any = "aot_eager") -> nn.Module:
        torch.manual_seed(0)
        words = [*TINY.split(), *map(str, options)]
        model = Trainer.build_model(build_config("configs/stage_1_heads.yaml", words))
        return compile_parts(model, mode, tmp_path, backend)

    torch._dynamo.reset()
    yield build
    torch._dynamo.reset()


def images(height: int = 64, width: int = 96, number: int = 2) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(height)
    batch = []
    for _ in range(number):
        objects = Instances((height, width))
        objects.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 44.0], [30.0, 10.0, 60.0, 50.0]]))
        objects.gt_classes = torch.tensor([1, 2])
        objects.gt_masks = PolygonMasks(
            [[[4, 4, 40, 4, 40, 44, 4, 44]], [[30, 10, 60, 10, 60, 50, 30, 50]]]
        )
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        batch.append({"image": pixels, "instances": objects, "height": height, "width": width})
    return batch


def train_step(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Compute losses and, under the names of the parameters, gradients."""
    torch.manual_seed(1)
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return {**losses, **gradients}


def detect(model: nn.Module, batch: list[dict[str, Any]]) -> list[Instances]:
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


def compiled_parts(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    start = "MODEL.COMPILE: compiled the "
    return [each.removeprefix(start).partition(" in ")[0] for each in messages if start in each]


@pytest.mark.parametrize(
    ("norm", "fold", "backend"), [("FrozenBN", True, "aot_eager"), ("BN", False, "eager")]
)
def test_no_part_breaks_and_results_are_the_same(build, caplog, norm, fold, backend):
    options = ["MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm, "MODEL.FOLD_FROZEN_NORM", fold]
    plain, ours = build(*options, mode="off"), build(*options, backend=backend)
    assert list(ours.state_dict()) == list(plain.state_dict())
    caplog.set_level(logging.INFO)
    # "on" makes a break an error.
    expected, found = (train_step(model, images()) for model in (plain, ours))
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    # 64 x 96 is a multiple of 32 already; p2 to p6. Regions: 2 x 16 sampled ones; foreground is
    # what they are.
    compiled = compiled_parts(caplog)
    assert compiled[:3] == [
        "backbone for 2x3x64x96",
        "RPN head for 2x8x16x24, 2x8x8x12, 2x8x4x6, 2x8x2x3, 2x8x1x2",
        "box head for 32x8x7x7",
    ]
    assert compiled[3].startswith("mask head for ")
    assert len(compiled) == 4
    for theirs, mine in zip(detect(plain, images()), detect(ours, images()), strict=True):
        assert len(mine) == len(theirs) == 5
        assert torch.equal(mine.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(mine.pred_masks, theirs.pred_masks)
    # Evaluation computes otherwise.
    assert len(compiled_parts(caplog)) == 8
    for _ in range(2):
        train_step(ours, images())
        detect(ours, images())
    assert len(compiled_parts(caplog)) == 8


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "aot_eager"), pytest.param("cuda", "inductor", marks=pytest.mark.gpu)],
)
def test_results_of_inference_outlive_the_next_calls(
    build: Build, device: str, backend: str, precision: torch.dtype
) -> None:
    """On a GPU the first calls of a size compile and record a CUDA graph, the others replay it."""
    models = [
        build("MODEL.DEVICE", device, mode=mode, backend=backend).eval() for mode in ("off", "on")
    ]

    def predict(pixels: Tensor) -> list[dict[str, Tensor]]:
        with torch.no_grad(), torch.autocast(device, precision, precision is torch.bfloat16):
            return [model.backbone(pixels) for model in models]

    inputs = [
        (turn + 1) * torch.rand(number, 3, height, 96, device=device)
        for turn in range(5)
        for height, number in ((64, 1), (128, 3))
    ]
    kept = [predict(pixels) for pixels in inputs]
    # Weights that change reach what was recorded.
    with torch.no_grad():
        for model in models:
            model.backbone.fpn_output2.weight.mul_(3)
            model.backbone.bottom_up.res2[0].conv1.weight.mul_(2)
    kept.append(predict(inputs[0]))
    assert relative_error(kept[-1][0]["p2"], kept[0][0]["p2"]) > 0.5
    # cuDNN computes in TensorFloat-32.
    tolerance = 0.01 if precision is torch.float32 else 0.05
    for expected, found in kept:
        for name, each in expected.items():
            assert found[name].dtype == each.dtype
            assert relative_error(found[name], each) < tolerance


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def rpn_head(model: nn.Module, width: int) -> Tensor:
    with torch.no_grad():
        logits, _ = model.proposal_generator.rpn_head([torch.ones(1, 8, 4, width)])
    return logits[0]


def test_each_shape_is_compiled_once_beyond_torchs_limit(build, caplog):
    counter = CompileCounterWithBackend("aot_eager")
    model = build(backend=counter)
    caplog.set_level(logging.INFO)
    before = counter.frame_count
    widths = range(2, 14)
    assert len(widths) > torch._dynamo.config.recompile_limit
    for width in [*widths, *widths]:
        rpn_head(model, width)
    assert compiled_parts(caplog) == [f"RPN head for 1x8x4x{width}" for width in widths]
    assert counter.frame_count - before == len(widths)
    # What a compiled graph depends on besides shapes. Beyond its limit torch would not compile.
    model.proposal_generator.rpn_head.requires_grad_(False)
    torch.testing.assert_close(rpn_head(model, 5), rpn_head(build(mode="off"), 5))
    assert compiled_parts(caplog)[len(widths) :] == ["RPN head for 1x8x4x5"]
    assert counter.frame_count - before == len(widths) + 1


def test_of_too_many_shapes_the_log_says_that_they_are_not_compiled(build, caplog, monkeypatch):
    monkeypatch.setattr(compiling, "_MAX_SHAPES", 2)
    plain, model = build(mode="off"), build()
    caplog.set_level(logging.INFO)
    for width in (2, 3, 4, 5, 2):
        torch.testing.assert_close(rpn_head(model, width), rpn_head(plain, width))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "MODEL.COMPILE: the RPN head is given inputs of more than 2 shapes; it is not compiled for"
        " further ones"
    ]
    assert compiled_parts(caplog) == ["RPN head for 1x8x4x2", "RPN head for 1x8x4x3"]


@pytest.mark.parametrize("training", [False, True])
def test_the_number_of_regions_is_left_open(build, training):
    counter = CompileCounterWithBackend("aot_eager")
    plain, model = build(mode="off"), build(backend=counter)
    heads, expected = model.roi_heads.train(training), plain.roi_heads.train(training)
    before = counter.frame_count
    with torch.set_grad_enabled(training):
        # On CPUs convolutions of 16 and more are other kernels.
        for number in (7, 2, 1, 0, 15, 3):
            regions = torch.randn(number, 8, 14, 14)
            torch.testing.assert_close(
                heads.mask_head.layers(regions), expected.mask_head.layers(regions)
            )
            regions = torch.randn(number, 8, 7, 7)
            torch.testing.assert_close(heads.box_head(regions), expected.box_head(regions))
    assert counter.frame_count - before == 2


def test_patch_dct_is_one_graph_for_any_number_of_regions(build):
    options = ["MODEL.ROI_MASK_HEAD.NAME", "PatchDCTHead", "MODEL.ROI_MASK_HEAD.FC_DIM", 8]
    options += ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
    counter = CompileCounterWithBackend("aot_eager")
    plain, model = build(*options, mode="off"), build(*options, backend=counter)
    before = counter.frame_count
    for number in (7, 2, 1, 0, 3):
        regions = [torch.randn(number, 8, side, side) for side in (14, 42)]
        found, expected = (each.roi_heads.mask_head.layers(regions) for each in (model, plain))
        torch.testing.assert_close(found, expected)
    assert counter.frame_count - before == 1


def stem(compiled: bool) -> BasicStem:
    """A convolution with a frozen norm, folded and compiled."""
    torch.manual_seed(0)
    module = fold_frozen_norms(BasicStem(norm="FrozenBN").requires_grad_(False))
    if compiled:
        part = CompiledPart("stem", module, backend="aot_eager", required=True)
        vars(module)["forward"] = part
    return module


def load(module: nn.Module) -> None:
    module.load_state_dict({name: each * 0.9 for name, each in module.state_dict().items()})


def replace_weight(module: BasicStem) -> None:
    module.conv1.weight.data = module.conv1.weight.data * 0.9


@pytest.mark.parametrize(
    "change",
    [
        load,
        replace_weight,
        lambda module: module.conv1.norm.running_mean.add_(1),
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module.double(),
        lambda module: module.requires_grad_(True),
    ],
)
def test_weights_that_change_later_count(change):
    plain, module = stem(compiled=False), stem(compiled=True)
    image = torch.randn(1, 3, 32, 32)
    # The second one is that of the product, which is kept.
    for _ in range(2):
        torch.testing.assert_close(module(image), plain(image))
    assert module.conv1.folded_by_caller
    for each in (plain, module):
        change(each)
    image = image.to(plain.conv1.weight.dtype)
    found, expected = module(image), plain(image)
    torch.testing.assert_close(found, expected)
    if expected.requires_grad:
        for each in (plain, module):
            each(image).square().sum().backward()
        torch.testing.assert_close(module.conv1.weight.grad, plain.conv1.weight.grad)


def test_a_copy_computes_with_its_own_weights():
    module = stem(compiled=True)
    image = torch.randn(1, 3, 32, 32)
    before = module(image)
    other = copy.deepcopy(module)
    load(module)
    torch.testing.assert_close(other(image), before)
    assert other.forward.module is other
    assert not torch.allclose(module(image), before)


def test_auto_says_why_it_leaves_a_cpu_alone(build, caplog):
    caplog.set_level(logging.INFO)
    model = build(mode="auto")
    assert "MODEL.COMPILE auto: nothing is compiled: the model is on the CPU; that is for GPUs" in (
        caplog.text
    )
    assert "forward" not in vars(model.backbone)


def broken_backend(*_: object) -> None:
    raise OSError("no C++ compiler\nand more")


def test_what_cannot_be_compiled(build):
    message = r"^MODEL\.COMPILE on: torch\.compile does not work here: .*no C\+\+ compiler"
    with pytest.raises(InputError, match=message):
        build(backend=broken_backend)
    with pytest.raises(InputError, match=r"MODEL\.COMPILE 'yes': it must be one of off, auto, on"):
        build(mode="yes")


def test_a_part_with_a_graph_break_is_an_error_or_runs_as_it_is(build, caplog, monkeypatch):
    forward = StandardRPNHead.forward

    def forward_in_two(self: nn.Module, features: list[Tensor]) -> Any:
        torch._dynamo.graph_break()
        return forward(self, features)

    monkeypatch.setattr(StandardRPNHead, "forward", forward_in_two)
    plain, model = build(mode="off"), build()
    message = r"^MODEL\.COMPILE on: the RPN head cannot be compiled for 1x8x4x5: Unsupported"
    with pytest.raises(InputError, match=message):
        rpn_head(model, 5)
    head = model.proposal_generator.rpn_head
    part = CompiledPart("RPN head", head, backend="aot_eager", required=False)
    vars(head)["forward"] = part
    assert torch.equal(rpn_head(model, 5), rpn_head(plain, 5))
    assert "MODEL.COMPILE auto: the RPN head cannot be compiled for 1x8x4x5: " in caplog.text
    assert "; it runs without compilation" in caplog.text


def test_the_compilers_files_are_the_users_own(monkeypatch, tmp_path):
    """They are code, which nobody else must be able to write."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", "shared by many")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Trainer.build_model(
        build_config("configs/stage_1_heads.yaml", [*TINY.split(), "MODEL.COMPILE", "auto"])
    )
    expected = str(tmp_path / "cityscapes_maskrcnn" / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == expected
