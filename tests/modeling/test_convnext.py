"""ConvNeXt against torchvision's own, with the same random weights, and as a part of a detector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.models import convnext_base, convnext_small, convnext_tiny
from torchvision.ops import StochasticDepth

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.modeling.activation_checkpointing import checkpoint_activations
from cityscapes_maskrcnn.modeling.deeplab_weights import (
    convnext_shapes,
    deeplab_shapes,
    translate,
)
from cityscapes_maskrcnn.modeling.drift import format_drift, measure_drift
from cityscapes_maskrcnn.modeling.freezing import parameter_table
from cityscapes_maskrcnn.utils.errors import InputError

PREFIX = "backbone.bottom_up."
TINY = """
MODEL.CONVNEXT.CHANNELS 8 MODEL.CONVNEXT.DEPTHS [1,1,2,1] MODEL.FPN.OUT_CHANNELS 8
MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
"""


def build(*options: object) -> nn.Module:
    words = ["MODEL.DEVICE", "cpu", *map(str, options)]
    return build_model(build_config("configs/convnext_t/stage_1_heads.yaml", words))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def theirs(randomised_convnext: Callable[[nn.Module], None]) -> nn.Module:
    """torchvision's own convnext_tiny."""
    torch.manual_seed(0)
    network = convnext_tiny(weights=None)
    randomised_convnext(network)
    return network.eval()


@pytest.fixture(scope="module")
def ours(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    path = tmp_path_factory.mktemp("convnext") / "convnext_tiny.pth"
    torch.save(theirs.state_dict(), path)
    model = build()
    SafeCheckpointer(model).load(str(path), checkpointables=[])
    path.unlink()
    yield model.eval()


def test_features_equal_torchvisions(theirs: nn.Module, ours: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((2, 3, 64, 96), generator=generator)
    with torch.no_grad():
        features = ours.backbone.bottom_up(images)
        x = images
        for index, layer in enumerate(theirs.features):
            x = layer(x)
            if index % 2:
                name = f"res{2 + index // 2}"
                assert x.std() > 0.1
                assert (features[name] - x).abs().max() < 1e-5 * x.abs().max(), name
                assert features[name].shape[2:] == (
                    64 // 2 ** (2 + index // 2),
                    96 // 2 ** (2 + index // 2),
                )
    pyramid = ours.backbone.output_shape()
    assert {name: each.stride for name, each in pyramid.items()} == {
        "p2": 4,
        "p3": 8,
        "p4": 16,
        "p5": 32,
        "p6": 64,
    }


def test_every_tensor_is_reported(theirs: nn.Module, ours: nn.Module) -> None:
    tensors, report = translate(theirs.state_dict(), "file", shapes(ours))
    # Stem: convolution and norm. 3 downsamplings: the same. 18 blocks: layer scale, norm, and three
    # layers with a bias each.
    assert len(report.backbone) == len(tensors) == 4 + 3 * 4 + 18 * 9
    assert {*report.used.values()} | {*report.skipped} == {*theirs.state_dict()}
    assert sorted(report.skipped) == [
        f"classifier.{number}.{kind}" for number in (0, 2) for kind in ("bias", "weight")
    ]
    assert {*report.missing} == {name for name in shapes(ours) if not name.startswith(PREFIX)}
    # A checkpoint of the detector goes on as it is.
    state = ours.state_dict()
    again, report = translate(state, "own", shapes(ours))
    assert (again.keys(), report.skipped, report.missing) == (state.keys(), {}, ())


def test_it_is_converted_as_it_is(theirs: nn.Module) -> None:
    state = {f"net.{name}": value for name, value in theirs.state_dict().items()}
    tensors, report = translate(state, "file")
    assert len(tensors) == len(report.backbone) == 178
    assert tensors["res4.8.block.0.weight"] is state["net.features.5.8.block.0.weight"]
    assert tensors["res3.downsample.1.bias"] is state["net.features.2.1.bias"]
    assert report.missing == ()
    with torch.device("meta"):
        others = [network(weights=None).state_dict() for network in (convnext_small, convnext_base)]
    for other in others:
        # 18 blocks more, of 9 tensors each.
        assert len(convnext_shapes("small")) == 178 + 162
        values = {name: torch.zeros(value.shape) for name, value in other.items()}
        assert len(translate(values, "file")[0]) == 178 + 162
    del state["net.features.5.8.layer_scale"]
    with pytest.raises(InputError, match=r"of 178 tensors: it lacks 1, such as res4\.8\.layer_sc"):
        translate(state, "file")


def test_other_networks_are_refused(theirs: nn.Module, ours: nn.Module) -> None:
    with torch.device("meta"):
        small = convnext_small(weights=None).state_dict()
    # 18 blocks more, of 9 tensors each.
    with pytest.raises(InputError, match="of 178 tensors: it adds 162, such as res4"):
        translate(small, "file", shapes(ours))
    resnet = {name: torch.zeros(shape) for name, shape in deeplab_shapes().items()}
    with pytest.raises(InputError, match="of 178 tensors: it lacks 178, such as res2"):
        translate(resnet, "file", shapes(ours))
    with pytest.raises(InputError, match="of 265 tensors: it lacks 265, such as res2"):
        translate(theirs.state_dict(), "file", deeplab_shapes())


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, []),
        (1, ["stem"]),
        (3, ["stem", "res2", "res3"]),
        (5, ["stem", "res2", "res3", "res4", "res5"]),
    ],
)
def test_freezing_by_stage(freeze_at: int, frozen: list[str]) -> None:
    model = build(*TINY.split(), "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    stages = ("stem", "res2", "res3", "res4", "res5")
    for name in stages:
        part = getattr(model.backbone.bottom_up, name)
        assert {each.requires_grad for each in part.parameters()} == {name not in frozen}
    # The last block would be left out for a tenth of the images.
    drops = [each.p for each in model.modules() if isinstance(each, StochasticDepth)]
    assert drops == pytest.approx(
        {
            0: [0, 0.025, 0.05, 0.075, 0.1],
            1: [0, 0.025, 0.05, 0.075, 0.1],
            3: [0, 0, 0.05, 0.075, 0.1],
            5: [0, 0, 0, 0, 0],
        }[freeze_at]
    )
    rows = {line.split("|")[1].strip(): line for line in parameter_table(model).splitlines()}
    assert {*stages, "FPN", "RPN"} <= rows.keys()
    assert [name for name in stages if rows[name].split("|")[3].strip() == "0"] == frozen


def test_drift_by_stage() -> None:
    model = build(*TINY.split())
    start = {name: torch.full(value.shape, 2.0) for name, value in model.state_dict().items()}
    end = dict(start)
    end[f"{PREFIX}res3.0.layer_scale"] = start[f"{PREFIX}res3.0.layer_scale"] + 1
    end[f"{PREFIX}res4.downsample.0.weight"] = start[f"{PREFIX}res4.downsample.0.weight"] + 1
    rows = {row.group: row for row in measure_drift(start, end)}
    # 16 of the 3,472 values that are no norm's: 8 x 16 x 4 + 16 of the downsampling; of the block
    # 16 x 49 + 16, 2 x 16 x 64 + 64 + 16 and 16. Norms: 2 x 8 and 2 x 16.
    assert rows["res3"].num_parameters == 528 + 800 + 2128 + 16 + 48
    assert rows["res3"].convolutions == pytest.approx(math.sqrt(16 / (4 * 3472)))
    assert rows["res3"].norms == 0
    assert rows["res4"].convolutions == 0
    # 16 of the 2 x 16 of the downsampling and 2 blocks with 2 x 32.
    assert rows["res4"].norms == pytest.approx(math.sqrt(16 / (4 * 160)))
    assert rows["stem"].parameters == rows["res2"].parameters == rows["res5"].parameters == 0
    # LayerNorm has none.
    assert all(math.isnan(row.statistics) for row in rows.values())
    assert {
        line.split("|")[-2].strip() for line in format_drift([*rows.values()]).splitlines()[2:]
    } == {"-"}


def features_and_gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(4)
    features = model.backbone(torch.ones(2, 3, 64, 64))
    sum(each.square().sum() for each in features.values()).backward()
    gradients = [each.grad for each in model.backbone.bottom_up.parameters()]
    return [*features.values(), *gradients]


def test_activations_computed_anew_and_compilation_change_nothing() -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(3)
        options = ("MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.CONVNEXT.DROP_PATH", 0.5)
        return build(*TINY.split(), *options).train()

    expected = features_and_gradients(fresh())
    anew = checkpoint_activations(fresh(), ["stem", "res2", "res3", "res4", "res5", "fpn"])
    assert all(map(torch.equal, features_and_gradients(anew), expected))
    model = fresh()
    backbone = type(model.backbone).forward
    compiled = torch.compile(backbone, fullgraph=True, dynamic=False, backend="aot_eager")
    model.backbone.forward = lambda images: compiled(model.backbone, images)
    assert all(map(torch.equal, features_and_gradients(model), expected))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("MODEL.CONVNEXT.DEPTHS [3,3,9]", r"^MODEL\.CONVNEXT: DEPTHS \[3, 3, 9\], .* 4 numbers"),
        ("MODEL.CONVNEXT.DROP_PATH 1.0", r"DROP_PATH 1\.0 are no network"),
        ("MODEL.FPN.IN_FEATURES ['res2','res6']", r"^MODEL\.FPN\.IN_FEATURES: .* not res6$"),
        ("MODEL.PIXEL_MEAN [1.0] MODEL.PIXEL_STD [1.0]", "must have 3 values"),
    ],
)
def test_bad_configs(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(*TINY.split(), *options.split())
