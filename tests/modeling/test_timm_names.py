"""timm's ConvNeXts, built by timm with random weights, as the start of this project's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import Tensor, nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.modeling.deeplab_weights import convnext_shapes, translate
from cityscapes_maskrcnn.modeling.drift import WHOLE, measure_drift
from cityscapes_maskrcnn.utils.errors import InputError

PREFIX = "backbone.bottom_up."
NAME = "convnext_tiny.in12k_ft_in1k"


def build() -> nn.Module:
    cfg = build_config("configs/convnext_t/stage_1_heads.yaml", ["MODEL.DEVICE", "cpu"])
    return build_model(cfg)


def zeros(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        state = timm.create_model(name, pretrained=False).state_dict()
    return {name: torch.zeros(value.shape) for name, value in state.items()}


@pytest.fixture(scope="module")
def theirs(randomised_convnext: Callable[[nn.Module], None]) -> nn.Module:
    """timm's own convnext_tiny."""
    torch.manual_seed(0)
    network = timm.create_model("convnext_tiny", pretrained=False)
    randomised_convnext(network)
    return network.eval()


@pytest.fixture(scope="module")
def ours(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """A detector that names weights of the hub, which a download has put into the cache."""
    home = tmp_path_factory.mktemp("torch")
    path = home / "hub" / "checkpoints" / f"{NAME}.safetensors"
    path.parent.mkdir(parents=True)
    save_file(theirs.state_dict(), path)
    model = build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        SafeCheckpointer(model).load(f"timm://{NAME}", checkpointables=[])
    path.unlink()
    yield model.eval()


def test_features_equal_timms(theirs: nn.Module, ours: nn.Module) -> None:
    images = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = ours.backbone.bottom_up(images)
        expected = theirs.forward_intermediates(images, intermediates_only=True)
    for name, x in zip(("res2", "res3", "res4", "res5"), expected, strict=True):
        assert x.std() > 0.1
        assert features[name].shape == x.shape
        assert (features[name] - x).abs().max() < 1e-5 * x.abs().max(), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_under_any_name_loads(theirs: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    state = theirs.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    model = build()
    SafeCheckpointer(model).load(str(path), checkpointables=[])
    path.unlink()
    loaded = model.backbone.bottom_up.state_dict()
    gamma = state["stages.2.blocks.8.gamma"]
    assert torch.equal(loaded["res4.8.layer_scale"], gamma.reshape(384, 1, 1))
    assert torch.equal(loaded["res3.downsample.1.bias"], state["stages.1.downsample.1.bias"])


def test_every_tensor_is_reported(theirs: nn.Module, ours: nn.Module) -> None:
    state = theirs.state_dict()
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    tensors, report = translate(state, "file", shapes)
    # As many as of torchvision's, see test_convnext.py.
    assert len(report.backbone) == len(tensors) == 178
    assert {*report.used.values()} | {*report.skipped} == {*state}
    assert report.skipped == {
        f"head.{layer}.{kind}": f"of head.{layer}, which this model does not have"
        for layer in ("norm", "fc")
        for kind in ("weight", "bias")
    }
    assert {*report.missing} == {name for name in shapes if not name.startswith(PREFIX)}
    assert report.used[f"{PREFIX}res2.1.block.5.bias"] == "stages.0.blocks.1.mlp.fc2.bias"


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_all_sizes_are_converted(size: str) -> None:
    state = {f"net.{name}": value for name, value in zeros(f"convnext_{size}").items()}
    tensors, report = translate(state, "file")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == convnext_shapes(size)
    assert report.missing == ()
    assert len(report.skipped) == 4


@pytest.mark.parametrize("target", [convnext_shapes(), None])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        # 18 blocks, each with a weight and a bias of the GRN instead of a layer scale.
        (
            "convnextv2_tiny",
            r"it lacks 18, such as res2\.0\.layer_scale, and it adds 36, such as res2\.0\.mlp\.grn",
        ),
        # Linear layers as convolutions.
        (
            "convnext_tiny_hnf",
            r"stages\.0\.blocks\.0\.mlp\.fc1\.weight is \(384, 96, 1, 1\) in the file",
        ),
        ("convnext_nano_ols", r"it lacks 36, such as \S+, and it adds 2, such as stem\.2\.bias$"),
        ("convnext_atto", r"it lacks 54, such as res2\.2\.block\.0\.bias$"),
        ("convnext_pico", r"it lacks 54, such as res2\.2\.block\.0\.bias$"),
        ("convnext_zepto_rms", r"it lacks \d+, such as "),
        # Another family, with some of the names.
        ("edgenext_small", r"it lacks "),
    ],
)
def test_other_networks_are_refused(name: str, message: str, target: dict | None) -> None:
    with pytest.raises(InputError, match=rf"^file: .*{message}") as caught:
        translate(zeros(name), "file", target)
    assert "\n" not in str(caught.value)


def test_a_missing_layer_scale_is_named(theirs: nn.Module) -> None:
    state = theirs.state_dict()
    del state["stages.2.blocks.8.gamma"]
    with pytest.raises(InputError, match=r"it lacks 1, such as res4\.8\.layer_scale$"):
        translate(state, "file")
    state["stages.2.blocks.8.gamma"] = torch.ones(384, 2)
    with pytest.raises(InputError, match=r"stages\.2\.blocks\.8\.gamma is \(384, 2\) in the file"):
        translate(state, "file")


def test_drift_from_timms_names_to_the_models(theirs: nn.Module, ours: nn.Module) -> None:
    end = ours.state_dict()
    rows = {row.group: row for row in measure_drift(theirs.state_dict(), end)}
    assert rows[WHOLE].parameters == 0
    end[f"{PREFIX}res3.0.layer_scale"] = end[f"{PREFIX}res3.0.layer_scale"] * 2
    rows = {row.group: row for row in measure_drift(theirs.state_dict(), end)}
    assert rows["res3"].convolutions > 0
    assert rows["res4"].parameters == 0
