from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d, vgg11
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.segmentation import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet101,
    fcn_resnet50,
)

from cityscapes_maskrcnn.modeling.deeplab_weights import deeplab_shapes, find_backbone, translate
from cityscapes_maskrcnn.utils.errors import InputError

State = dict[str, Tensor]
PREDICTOR = "sem_seg_head.predictor."


@pytest.fixture(scope="module")
def state(deeplab: nn.Module) -> State:
    return deeplab.state_dict()


def zeros(build: Callable[..., nn.Module], **arguments: Any) -> State:
    """The state of a network, all zeros: nothing is drawn."""
    with torch.device("meta"):
        shapes = build(weights=None, **arguments).state_dict()
    return {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}


def instance_model() -> dict[str, tuple[int, ...]]:
    """Some of what a Mask R-CNN on a ResNet-50 FPN holds."""
    backbone = {f"backbone.bottom_up.{name}": shape for name, shape in deeplab_shapes().items()}
    return {
        **backbone,
        "backbone.fpn_lateral2.weight": (256, 256, 1, 1),
        "backbone.fpn_lateral3.weight": (256, 512, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": (9, 1024),
    }


def semantic_model(classes: int = 19) -> dict[str, tuple[int, ...]]:
    return {
        name if name.startswith("sem_seg_head.") else f"backbone.{name}": shape
        for name, shape in deeplab_shapes(classes).items()
    }


def test_every_tensor_is_reported(state: State) -> None:
    tensors, report = translate({**state, "epoch": 3}, "weights.pth", semantic_model())
    assert {*report.used.values()} | {*report.skipped} == {*state, "epoch"}
    assert {*report.used.values()}.isdisjoint(report.skipped)
    assert report.missing == ()
    assert all(tensors[new] is state[old] for new, old in report.used.items())
    # 53 convolutions and 53 x 4 of BatchNorm. Head: 5 branches, the projection and the 3x3
    # convolution with 1 + 4 each; the classifier with 2. Skipped: a counter of each of the
    # 53 + 7 + 1 BatchNorms, and the auxiliary classifier's 2 convolutions, one with a bias, and 4
    # of BatchNorm.
    assert report.summary().splitlines() == [
        "weights.pth:",
        "  used     265  of the backbone",
        "  used      30  of sem_seg_head.aspp",
        "  used       5  of sem_seg_head.conv",
        "  used       2  of sem_seg_head.predictor",
        "  skipped    1  not tensors",
        "  skipped   61  BatchNorm's counters, which this model does not keep",
        "  skipped    7  of the auxiliary classifier, which serves torchvision's training only",
    ]
    # That all names are right is held by test_deeplab_network, which compares the features.
    assert report.used["backbone.res2.0.shortcut.norm.bias"] == (
        "backbone.layer1.0.downsample.1.bias"
    )
    assert report.used["sem_seg_head.aspp.convs.4.norm.bias"] == "classifier.0.convs.4.2.bias"


def test_counters_go_where_the_model_keeps_them(state: State) -> None:
    model = semantic_model()
    model |= {f"backbone.res2.{block}.conv1.norm.num_batches_tracked": () for block in (0, 1)}
    tensors, report = translate(state, "file", model)
    assert tensors["backbone.res2.0.conv1.norm.num_batches_tracked"] == 7
    assert len(report.used) == 265 + 37 + 2
    assert len(report.backbone) == 265


def test_a_classifier_of_other_classes_starts_anew(state: State) -> None:
    tensors, report = translate(state, "file", semantic_model(7), [PREDICTOR])
    assert f"{PREDICTOR}weight" not in tensors
    assert report.missing == (f"{PREDICTOR}weight", f"{PREDICTOR}bias")
    assert report.skipped["classifier.4.weight"] == (
        "of sem_seg_head.predictor: (19, 256, 1, 1) here, (7, 256, 1, 1) in the model"
    )
    assert "missing    2  of sem_seg_head.predictor: start from scratch" in report.summary()


def test_an_instance_model_takes_the_backbone(state: State) -> None:
    tensors, report = translate(state, "file", instance_model())
    assert sorted(tensors) == sorted(name for name in instance_model() if "bottom_up" in name)
    assert "skipped   30  of sem_seg_head.aspp, which this model does not have" in report.summary()
    assert "missing    2  of backbone.fpn_lateral*: start from scratch" in report.summary()
    assert "missing    1  of roi_heads.box_predictor: start from scratch" in report.summary()


def test_torchvisions_mask_rcnn_gives_what_the_model_has() -> None:
    with torch.device("meta"):
        shapes = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=9)
    state = {f"module.{n}": torch.zeros(v.shape) for n, v in shapes.state_dict().items()}
    assert state["module.roi_heads.box_predictor.cls_score.weight"].shape == (9, 1024)
    tensors, report = translate(state, "file", instance_model())
    assert len(tensors) == len(instance_model())
    assert "skipped   12  of roi_heads.mask_head, which this" in report.summary()


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.module._orig_mod."])
def test_prefixes(state: State, prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in state.items()}
    tensors, report = translate(wrapped, "file", semantic_model())
    assert len(report.used) == 302
    assert tensors["backbone.stem.conv1.weight"] is state["backbone.conv1.weight"]


def test_a_backbone_and_an_image_classifier(deeplab: nn.Module) -> None:
    for file in (deeplab.backbone.state_dict(), zeros(resnet50)):
        _, report = translate(file, "file", semantic_model())
        assert len(report.used) == 265
        assert len(report.missing) == 37


def test_detectron2s_names_stay(state: State) -> None:
    """Stage 0's output into stage 0, into stage 1, and stage 1's into stage 2."""
    stage_0, _ = translate(state, "file", semantic_model())
    again, report = translate(stage_0, "stage_0.pth", semantic_model())
    assert again == stage_0
    assert report.skipped == {}
    stage_1, report = translate(stage_0, "stage_0.pth", instance_model())
    assert (len(stage_1), len(report.skipped)) == (265, 37)
    stage_1["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(9, 1024)
    assert translate(stage_1, "stage_1.pth", instance_model())[0] == stage_1


def test_the_same_other_resnet_in_file_and_model_fits() -> None:
    """Detectron2's configs of other ResNets go on working: the model says what is expected."""
    file = zeros(deeplabv3_resnet101, weights_backbone=None)
    target = {f"backbone.{name}": shape for name, shape in deeplab_shapes().items()}
    for name, shape in deeplab_shapes().items():
        if name.startswith("res4.5."):
            for block in range(6, 23):
                target["backbone." + name.replace("res4.5.", f"res4.{block}.")] = shape
    _, report = translate(file, "file", target)
    # 17 blocks more, each of 3 convolutions with 1 + 4 tensors.
    assert len(report.backbone) == 265 + 17 * 15
    assert report.missing == ()


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        # 17 blocks more, of 15 tensors each.
        (deeplabv3_resnet101, {"weights_backbone": None}, "of 265 tensors: it adds 255, such as"),
        (resnet18, {}, "of 265 tensors: it lacks"),
        (resnext50_32x4d, {}, r"conv1\.weight is \(128, 64, 1, 1\) in the file"),
        (fcn_resnet50, {"weights_backbone": None}, r"classifier\.1\.weight is \(512,\) in the"),
        (deeplabv3_mobilenet_v3_large, {"weights_backbone": None}, "holds no ResNets"),
        (vgg11, {}, r"holds no ResNets or ConvNeXts \(22 tensors, such as features\.0\.weight"),
    ],
)
def test_another_network_is_refused(build: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^weights\.pth: .*{message}"):
        translate(zeros(build, **arguments), "weights.pth", semantic_model())


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("backbone.layer2.1.bn3.running_mean", r"lacks 1, such as res3\.1\.conv3\.norm\.running_m"),
        ("backbone.layer4.2.", r"lacks 15, such as res5\.2\.conv1\.norm\.bias"),
        ("classifier.4.bias", r"of 37 tensors: it lacks 1, such as sem_seg_head\.predictor\.bias"),
    ],
)
def test_missing_tensors(state: State, dropped: str, message: str) -> None:
    rest = {name: value for name, value in state.items() if not name.startswith(dropped)}
    with pytest.raises(InputError, match=message):
        translate(rest, "file", semantic_model())


def test_wrong_tensors(state: State) -> None:
    small = {**state, "backbone.layer1.0.conv2.weight": torch.zeros(64, 64, 1, 1)}
    ill = {**state, "backbone.conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    two = {f"{who}.{name}": value for who in ("one", "two") for name, value in state.items()}
    for file, target, message in [
        (
            small,
            semantic_model(),
            r"backbone\.layer1\.0\.conv2\.weight is \(64, 64, 1, 1\) in the file, "
            r"backbone\.res2\.0\.conv2\.weight is \(64, 64, 3, 3\) in the model",
        ),
        (state, semantic_model(7), r"classifier\.4\.weight is \(19, .* is \(7, 256, 1, 1\) in"),
        (ill, semantic_model(), r"backbone\.conv1\.weight holds values that are not finite"),
        (two, semantic_model(), "holds 2 ResNets"),
        ({"epoch": 3}, semantic_model(), "holds no ResNets"),
        (state, {"weight": (3, 3)}, "the model has no ResNet"),
    ]:
        with pytest.raises(InputError, match=message):
            translate(file, "file", target)


def test_finding_the_backbone() -> None:
    assert find_backbone(semantic_model()) == "backbone."
    assert find_backbone(instance_model()) == "backbone.bottom_up."
    assert find_backbone(["a.weight"]) is None
    with_group_norm = [name for name in semantic_model() if "running" not in name]
    assert find_backbone(with_group_norm) is None
