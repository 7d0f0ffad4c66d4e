"""SafeCheckpointer on models with a ResNet: every way in which the weights of stage 0 may come."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer, load_for_inference
from cityscapes_maskrcnn.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("remove_files")

CONFIGS = Path(__file__).parents[2] / "configs"


def config(file: str, *options: object) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / file), allow_unsafe=False)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


@pytest.fixture(scope="module")
def stage_0() -> nn.Module:
    torch.set_num_threads(1)
    return build_model(config("stage_0_backbone.yaml"))


@pytest.fixture(scope="module")
def stage_1() -> nn.Module:
    return build_model(config("stage_1_heads.yaml"))


def detectron2_name(name: str) -> str:
    """``layer1.0.downsample.1.bias`` is ``res2.0.shortcut.norm.bias``."""
    layer, _, rest = name.partition(".")
    if not layer.startswith("layer"):
        return {"conv1": "stem.conv1.", "bn1": "stem.conv1.norm."}[layer] + rest
    for old, new in (
        *(("downsample.0.", "shortcut."), ("downsample.1.", "shortcut.norm.")),
        *((f"bn{number}.", f"conv{number}.norm.") for number in (1, 2, 3)),
    ):
        rest = rest.replace(old, new)
    return f"res{int(layer[-1]) + 1}.{rest}"


def bit_equal_backbone(model: nn.Module, prefix: str, deeplab: nn.Module) -> int:
    """How many tensors of torchvision's backbone the model has in their places, bit for bit."""
    ours = model.state_dict()
    theirs = {
        prefix + detectron2_name(name): value
        for name, value in deeplab.backbone.state_dict().items()
        if "num_batches" not in name
    }
    return sum(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("kind", ["plain", "nested", "wrapped", "safetensors"])
def test_stage_0_takes_backbone_and_head(
    kind: str, stage_0: nn.Module, deeplab: nn.Module, tmp_path: Path
) -> None:
    state = deeplab.state_dict()
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{name}": each for name, each in state.items()}}, path)
    else:
        torch.save({"model": state, "epoch": 3} if kind == "nested" else state, path)
    for parameter in stage_0.parameters():
        nn.init.zeros_(parameter)
    SafeCheckpointer(stage_0).load(str(path), checkpointables=[])
    assert bit_equal_backbone(stage_0, "backbone.", deeplab) == 265
    assert torch.equal(stage_0.sem_seg_head.predictor.bias, deeplab.classifier[4].bias)
    branch = deeplab.classifier[0].convs[2]
    assert torch.equal(stage_0.sem_seg_head.aspp.convs[2].weight, branch[0].weight)
    assert torch.equal(stage_0.sem_seg_head.aspp.convs[2].norm.running_var, branch[1].running_var)


def test_from_stage_0_to_stage_1(
    stage_0: nn.Module,
    stage_1: nn.Module,
    deeplab: nn.Module,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.save(deeplab.state_dict(), tmp_path / "weights.pth")
    SafeCheckpointer(stage_0, str(tmp_path)).load(str(tmp_path / "weights.pth"))
    SafeCheckpointer(stage_0, str(tmp_path)).save("model_final", iteration=9)
    heads = copy.deepcopy(stage_1.roi_heads.state_dict())
    with caplog.at_level(logging.INFO, "cityscapes_maskrcnn.engine.checkpoint"):
        SafeCheckpointer(stage_1).load(str(tmp_path / "model_final.pth"), checkpointables=[])
    assert bit_equal_backbone(stage_1, "backbone.bottom_up.", deeplab) == 265
    assert all(
        torch.equal(heads[name], each) for name, each in stage_1.roi_heads.state_dict().items()
    )
    assert "265 of the 265 backbone tensors in the model are bit-equal to the file's" in caplog.text
    assert "skipped   30  of sem_seg_head.aspp, which this model does not have" in caplog.text
    assert "of roi_heads.box_head: start from scratch" in caplog.text


def test_inference_needs_the_heads(
    stage_0: nn.Module, stage_1: nn.Module, deeplab: nn.Module, tmp_path: Path
) -> None:
    """Training starts from these files, see above; scoring them would score random heads."""
    path = tmp_path / "model_final.pth"
    cfg = config("stage_1_heads.yaml", "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path))
    # 4 lateral and 4 output convolutions with bias; 3 layers of the RPN; 2 of the box head, its 2
    # predictors, 4 convolutions, 1 deconvolution and 1 predictor of masks.
    missing = (
        rf"{path}: lacks 16 tensors of backbone, 6 tensors of proposal_generator, "
        r"20 tensors of roi_heads \(first backbone\.fpn_lateral2\.weight\), which would stay"
    )
    for weights in (deeplab.state_dict(), stage_0.state_dict()):
        torch.save({"model": weights}, path)
        with pytest.raises(InputError, match=missing):
            load_for_inference(stage_1, cfg)
    whole = stage_1.state_dict()
    torch.save({"model": whole}, path)
    assert load_for_inference(stage_1, cfg).path == str(path)
    name = "roi_heads.box_predictor.cls_score.weight"
    torch.save({"model": {**whole, name: torch.zeros(81, 1024)}}, path)
    with pytest.raises(InputError, match=rf"{name} is .*81, 1024\).*\(9, 1024\)"):
        load_for_inference(stage_1, cfg)
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS is empty"):
        load_for_inference(stage_1, config("stage_1_heads.yaml", "MODEL.WEIGHTS", ""))


def test_a_wrong_file_leaves_the_model_alone(
    stage_1: nn.Module, deeplab: nn.Module, tmp_path: Path
) -> None:
    before = copy.deepcopy(stage_1.state_dict())
    path = tmp_path / "weights.pth"
    state = {**deeplab.state_dict(), "backbone.layer1.0.conv1.weight": torch.zeros(64, 256, 1, 1)}
    for content, message in (
        (state, r"res2\.0\.conv1\.weight is \(64, 64, 1, 1\) in the model"),
        ({"a.weight": torch.zeros(3)}, r"no ResNets or ConvNeXts \(1 tensors, such as a\.weight\)"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            SafeCheckpointer(stage_1).load(str(path))
    assert all(torch.equal(before[name], each) for name, each in stage_1.state_dict().items())


def test_torchvisions_name_is_fetched(stage_0: nn.Module) -> None:
    with pytest.raises(InputError, match="torchvision://resnet18: unknown; the names of"):
        SafeCheckpointer(stage_0).load("torchvision://resnet18")


def zoo_file(path: Path, blocks_in_res4: int) -> None:
    """An ImageNet ResNet as Detectron2's zoo has them: arrays, names without a prefix."""
    shapes = {
        name.removeprefix("backbone."): value.shape
        for name, value in build_model(config("stage_0_backbone.yaml")).state_dict().items()
        if name.startswith("backbone.")
    }
    for name in [name for name in shapes if name.startswith("res4.5.")]:
        for block in range(6, blocks_in_res4):
            shapes[name.replace("res4.5.", f"res4.{block}.")] = shapes[name]
    arrays = {name: torch.full(shape, 0.5).numpy() for name, shape in shapes.items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=2))


def test_pickle_files_only_by_name(stage_1: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    zoo_file(path, blocks_in_res4=6)
    with pytest.raises(InputError, match=r"add the name to MODEL\.WEIGHTS_ALLOW_PICKLE"):
        SafeCheckpointer(stage_1).load(str(path))
    SafeCheckpointer(stage_1, allow_pickle=[str(tmp_path / "R-*.pkl")]).load(str(path))
    assert (stage_1.backbone.bottom_up.res5[2].conv3.weight == 0.5).all()


def test_a_shallower_resnet_of_the_zoo_is_refused(stage_1: nn.Module, tmp_path: Path) -> None:
    """Its first layer fits, and so would be loaded; the rest would stay random and frozen."""
    path = tmp_path / "R-18.pkl"
    arrays = {name: value.numpy() for name, value in resnet18().state_dict().items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"R-18\.pkl: weights of another backbone"):
        SafeCheckpointer(stage_1, allow_pickle=["*"]).load(str(path))
    torch.save(resnet18().state_dict(), tmp_path / "R-18.pth")
    with pytest.raises(InputError, match=r"R-18\.pth: its backbone is not the expected one"):
        SafeCheckpointer(stage_1).load(str(tmp_path / "R-18.pth"))


def test_a_deeper_resnet_of_the_zoo_is_refused(stage_1: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "R-101.pkl"
    zoo_file(path, blocks_in_res4=23)
    # 17 blocks more, each of 3 convolutions with 1 + 4 tensors.
    with pytest.raises(InputError, match=r"another backbone than the model's: 255 of its tensors"):
        SafeCheckpointer(stage_1, allow_pickle=["*"]).load(str(path))
