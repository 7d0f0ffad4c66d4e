from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.provenance import (
    SEEN_IMAGES_KEY,
    UsedData,
    read_history,
    to_plain,
)
from cityscapes_maskrcnn.engine.weight_conventions import check_conventions, conventions_of
from cityscapes_maskrcnn.utils.errors import InputError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def convert(tool: Run) -> Run:
    return partial(tool, "tools/convert_weights.py")


@pytest.fixture(scope="module")
def weights(deeplab: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("weights") / "deeplab.pth"
    torch.save({"model": deeplab.state_dict(), "epoch": 30}, path)
    yield path
    path.unlink()  # 160 MB; pytest would keep those of three runs


def test_plain_detectron2_loads_the_output(
    convert: Run, weights: Path, deeplab: nn.Module, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "converted.pth"
    done = convert(weights, out, "--list")
    assert done.returncode == 0, done.stderr
    assert "  used     265  of the backbone" in done.stdout
    assert "used     backbone.layer4.2.bn3.bias -> res5.2.conv3.norm.bias" in done.stdout
    assert "skipped  aux_classifier.4.bias: of the auxiliary classifier" in done.stdout
    assert done.stdout.splitlines()[-1] == f"302 tensors are in {out}"

    # Detectron2's own configuration, backbone and checkpointer; nothing of this project.
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model = nn.Module()
    model.backbone = build_backbone(cfg)
    DetectionCheckpointer(model).load(str(out))
    loaded = model.backbone.bottom_up.state_dict()
    assert len(loaded) == 265
    theirs = deeplab.backbone.state_dict()
    for ours, name in [
        ("stem.conv1.norm.running_var", "bn1.running_var"),
        ("res2.0.shortcut.weight", "layer1.0.downsample.0.weight"),
        ("res4.5.conv2.norm.bias", "layer3.5.bn2.bias"),
        ("res5.2.conv3.weight", "layer4.2.conv3.weight"),
    ]:
        assert torch.equal(loaded[ours], theirs[name])
    sums = {each.double().sum().item() for each in theirs.values()}
    assert sums.issuperset(each.double().sum().item() for each in loaded.values())
    out.unlink()


def test_what_torchvisions_weights_expect_of_images_goes_along(
    convert: Run, weights: Path, tmp_path: Path
) -> None:
    theirs, out = tmp_path / "deeplabv3_resnet50_coco-cd0a2569.pth", tmp_path / "mine.pth"
    theirs.symlink_to(weights)
    assert convert(theirs, out).returncode == 0
    content = torch.load(out, weights_only=True, mmap=True)
    zoos = conventions_of(build_config("configs/coco_mask_rcnn_R_50_FPN.yaml", []))
    with pytest.raises(
        InputError, match=r"^mine\.pth: was trained with INPUT\.FORMAT RGB, not BGR"
    ):
        check_conventions("mine.pth", content, zoos)
    check_conventions(
        "mine.pth", content, conventions_of(build_config("configs/stage_1_heads.yaml", []))
    )
    # Of a file with another name nothing is known.
    assert convert(weights, out).returncode == 0
    check_conventions("mine.pth", torch.load(out, weights_only=True, mmap=True), zoos)
    out.unlink()


def test_the_list_of_seen_images_is_kept(convert: Run, deeplab: nn.Module, tmp_path: Path) -> None:
    seen = (UsedData("cityscapes_coarse_semantic_pretrain", "trained", frozenset({"0" * 12})),)
    path, out = tmp_path / "model_final.pth", tmp_path / "out.pth"
    torch.save({"model": deeplab.state_dict(), SEEN_IMAGES_KEY: to_plain(seen)}, path)
    assert convert(path, out).returncode == 0
    assert read_history(torch.load(out, weights_only=True), "out.pth") == seen
    path.unlink()
    out.unlink()


def test_objects_beside_the_tensors_are_left_out(
    convert: Run, deeplab: nn.Module, tmp_path: Path
) -> None:
    """A Mask R-CNN trained with PyTorch Lightning, the way its names of a ResNet are."""
    path, out = tmp_path / "last.ckpt", tmp_path / "out.pth"
    backbone = {f"model.backbone.{name}": v for name, v in deeplab.backbone.state_dict().items()}
    content = {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**backbone, "model.rpn.head.weight": torch.ones(2)},
        "hyper_parameters": {"root": PurePosixPath("data")},
    }
    torch.save(content, path)
    done = convert(path, out)
    assert done.returncode == 0, done.stderr
    assert "  used     265  of the backbone" in done.stdout
    assert "  skipped    1  of rpn.head, which this model does not have" in done.stdout
    assert torch.load(out, weights_only=True)["model"].keys() >= {"res2.0.conv1.weight"}
    done = convert("--keep-names", path, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"319 tensors are in {out}"
    kept = torch.load(out, weights_only=True)
    assert kept.keys() == {"model"}
    for name, value in content["state_dict"].items():
        assert torch.equal(kept["model"][name], value)
    path.unlink()
    out.unlink()


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_bad_input_is_one_line(convert: Run, weights: Path, tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "random.pth")
    out = tmp_path / "out.pth"
    (tmp_path / "link.pth").symlink_to(weights)
    before = weights.read_bytes()
    for arguments, message in [
        ((tmp_path / "absent.pth", out), "absent.pth: cannot be read"),
        (
            (tmp_path / "random.pth", out),
            "random.pth: holds no ResNets or ConvNeXts (1 tensors, such as",
        ),
        (("torchvision://resnet50", out), "torchvision://resnet50: unknown; the names of"),
        ((weights, tmp_path / "out.pkl"), "out.pkl: OUT must end in .pth"),
        (("--keep-names", weights, tmp_path / "link.pth"), "link.pth: is the input; name another"),
    ]:
        assert_one_line(convert(*arguments), message)
    assert weights.read_bytes() == before
    assert not out.exists()
    assert not (tmp_path / "out.pkl").exists()


def test_the_mean_of_checkpoints(convert: Run, tmp_path: Path) -> None:
    inputs = [tmp_path / f"model_{number}.pth" for number in range(2)]
    for number, path in enumerate(inputs):
        torch.save({"model": {"a.weight": torch.tensor([1.0 + number])}, "iteration": number}, path)
    out = tmp_path / "averaged.pth"
    assert_one_line(convert(*inputs, out), "model_1.pth: only one file is converted at a time, exc")
    # The last one is not taken for OUT.
    before = inputs[1].read_bytes()
    assert_one_line(convert("--average", *inputs), "model_1.pth: exists; name a new file, OUT, aft")
    assert inputs[1].read_bytes() == before
    done = convert("--average", *inputs, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"1 tensors are in {out}"
    assert torch.load(out, weights_only=True)["model"] == {"a.weight": torch.tensor([1.5])}


def test_a_full_disk_is_one_line(
    convert: Run, full_disk: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"a.weight": torch.zeros(300, 300)}, source)
    with full_disk(100_000):
        done = convert("--keep-names", source, out)
    assert_one_line(done, f"{out}: cannot be written; the disk is probably full")
    assert list(tmp_path.iterdir()) == [source]


def test_help(tool: Run) -> None:
    done = tool("tools/convert_weights.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_in_a_process_of_its_own(tool_process: Run, tmp_path: Path) -> None:
    arguments = (tmp_path / "absent.pth", tmp_path / "out.pth")
    assert_one_line(tool_process("tools/convert_weights.py", *arguments), "cannot be read")
