from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d, vgg11
from torchvision.models.segmentation import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    fcn_resnet50,
)

from cityscapes_maskrcnn.modeling.deeplab_weights import (
    find_resnet,
    head_shapes,
    resnet50_shapes,
    translate,
)
from cityscapes_maskrcnn.utils.errors import InputError

State = dict[str, Tensor]


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
    backbone = {f"backbone.bottom_up.{name}": shape for name, shape in resnet50_shapes().items()}
    return {
        **backbone,
        "backbone.fpn_lateral2.weight": (256, 256, 1, 1),
        "backbone.fpn_lateral3.weight": (256, 512, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": (9, 1024),
    }


def semantic_model(classes: int) -> dict[str, tuple[int, ...]]:
    backbone = {f"backbone.{name}": shape for name, shape in resnet50_shapes().items()}
    return {**backbone, **head_shapes(classes)}


def test_known_names(state: State) -> None:
    _, report = translate(state, "file", semantic_model(19))
    for theirs, ours in [
        ("backbone.conv1.weight", "backbone.stem.conv1.weight"),
        ("backbone.bn1.running_var", "backbone.stem.conv1.norm.running_var"),
        ("backbone.layer1.0.downsample.0.weight", "backbone.res2.0.shortcut.weight"),
        ("backbone.layer1.0.downsample.1.bias", "backbone.res2.0.shortcut.norm.bias"),
        ("backbone.layer4.2.conv3.weight", "backbone.res5.2.conv3.weight"),
        ("backbone.layer3.5.bn2.running_mean", "backbone.res4.5.conv2.norm.running_mean"),
        ("classifier.0.convs.0.0.weight", "sem_seg_head.aspp.convs.0.weight"),
        ("classifier.0.convs.3.1.weight", "sem_seg_head.aspp.convs.3.norm.weight"),
        ("classifier.0.convs.4.1.weight", "sem_seg_head.aspp.convs.4.weight"),
        ("classifier.0.convs.4.2.bias", "sem_seg_head.aspp.convs.4.norm.bias"),
        ("classifier.0.project.0.weight", "sem_seg_head.aspp.project.weight"),
        ("classifier.2.running_var", "sem_seg_head.conv.norm.running_var"),
        ("classifier.4.bias", "sem_seg_head.predictor.bias"),
    ]:
        assert report.used[ours] == theirs


def test_every_tensor_is_reported(state: State) -> None:
    tensors, report = translate({**state, "epoch": 3}, "weights.pth", semantic_model(19))
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
    assert len(report.listing().splitlines()) == len(state) + 1


def test_counters_go_where_the_model_keeps_them(state: State) -> None:
    model = semantic_model(19)
    model |= {f"backbone.res2.{block}.conv1.norm.num_batches_tracked": () for block in (0, 1)}
    tensors, report = translate(state, "file", model)
    assert tensors["backbone.res2.0.conv1.norm.num_batches_tracked"] == 7
    assert len(report.used) == 265 + 37 + 2
    assert len(report.backbone) == 265


def test_a_classifier_of_other_classes_starts_anew(state: State) -> None:
    tensors, report = translate(state, "file", semantic_model(7), ["sem_seg_head.predictor."])
    assert "sem_seg_head.predictor.weight" not in tensors
    assert report.missing == ("sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias")
    why = report.skipped["classifier.4.weight"]
    assert why == "of sem_seg_head.predictor: (19, 256, 1, 1) here, (7, 256, 1, 1) in the model"
    assert "missing    2  of sem_seg_head.predictor: start anew" in report.summary()


def test_an_instance_model_takes_the_backbone(state: State) -> None:
    tensors, report = translate(state, "file", instance_model())
    assert sorted(tensors) == sorted(name for name in instance_model() if "bottom_up" in name)
    assert report.skipped["classifier.0.project.0.weight"] == (
        "of sem_seg_head.aspp, which this model does not have"
    )
    assert "missing    2  of backbone.fpn_lateral*: start anew" in report.summary()
    assert "missing    1  of roi_heads.box_predictor: start anew" in report.summary()


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.module._orig_mod."])
def test_prefixes(state: State, prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in state.items()}
    tensors, report = translate(wrapped, "file", semantic_model(19))
    assert len(report.used) == 302
    assert tensors["backbone.stem.conv1.weight"] is state["backbone.conv1.weight"]


def test_a_backbone_and_an_image_classifier(state: State) -> None:
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in state.items()
        if name.startswith("backbone.")
    }
    for file in (backbone, zeros(resnet50)):
        _, report = translate(file, "file", semantic_model(19))
        assert len(report.used) == 265
        assert report.missing == tuple(head_shapes(19))


def test_detectron2s_names_stay(state: State) -> None:
    """Stage 0's output into stage 0, into stage 1, and stage 1's into stage 2."""
    stage_0, _ = translate(state, "file", semantic_model(19))
    again, report = translate(stage_0, "stage_0.pth", semantic_model(19))
    assert again == stage_0
    assert report.skipped == {}
    stage_1, report = translate(stage_0, "stage_0.pth", instance_model())
    assert (len(stage_1), len(report.skipped)) == (265, 37)
    stage_1["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(9, 1024)
    assert translate(stage_1, "stage_1.pth", instance_model())[0] == stage_1


def test_the_same_other_resnet_in_file_and_model_fits() -> None:
    """Detectron2's configs of other ResNets go on working: the model says what is expected."""
    target = {f"backbone.{name}": shape for name, shape in resnet50_shapes().items()}
    for block in range(6, 23):
        for name, shape in resnet50_shapes().items():
            if name.startswith("res4.5."):
                target[f"backbone.res4.{block}." + name.removeprefix("res4.5.")] = shape
    _, report = translate(zeros(deeplabv3_resnet101, weights_backbone=None), "file", target)
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
        (vgg11, {}, r"holds no ResNets \(22 tensors, such as features\.0\.weight"),
    ],
)
def test_another_network_is_refused(build: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^weights\.pth: .*{message}"):
        translate(zeros(build, **arguments), "weights.pth", semantic_model(19))


def test_missing_tensors(state: State) -> None:
    for dropped, message in [
        ("backbone.layer2.1.bn3.running_mean", r"lacks 1, such as res3\.1\.conv3\.norm\.running_m"),
        ("classifier.4.bias", r"of 37 tensors: it lacks 1, such as sem_seg_head\.predictor\.bias"),
        ("backbone.layer4.2.", r"lacks 15, such as res5\.2\.conv1\.norm\.bias"),
    ]:
        rest = {name: value for name, value in state.items() if not name.startswith(dropped)}
        with pytest.raises(InputError, match=message):
            translate(rest, "file", semantic_model(19))


def test_a_wrong_shape_names_both_tensors(state: State) -> None:
    changed = {**state, "backbone.layer1.0.conv2.weight": torch.zeros(64, 64, 1, 1)}
    with pytest.raises(
        InputError,
        match=r"backbone\.layer1\.0\.conv2\.weight is \(64, 64, 1, 1\) in the file, "
        r"backbone\.res2\.0\.conv2\.weight is \(64, 64, 3, 3\) in the model",
    ):
        translate(changed, "file", semantic_model(19), ["sem_seg_head.predictor."])
    with pytest.raises(
        InputError, match=r"classifier\.4\.weight is \(19, 256, 1, 1\) .* is \(7, 256, 1, 1\) in"
    ):
        translate(state, "file", semantic_model(7))


def test_other_bad_files(state: State) -> None:
    ill = {**state, "backbone.conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    two = {f"{who}.{name}": value for who in ("one", "two") for name, value in state.items()}
    for file, message in [
        (ill, r"backbone\.conv1\.weight holds values that are not finite"),
        (two, "holds 2 ResNets"),
        ({"epoch": 3}, "holds no ResNets"),
    ]:
        with pytest.raises(InputError, match=message):
            translate(file, "file", semantic_model(19))
    with pytest.raises(InputError, match="the model has no ResNet"):
        translate(state, "file", {"weight": (3, 3)})


def test_the_real_file_has_the_tensors_assumed_here() -> None:
    """What torchvision builds for its weights: 21 classes and the auxiliary classifier."""
    real = zeros(deeplabv3_resnet50, weights_backbone=None, num_classes=21, aux_loss=True)
    tensors, report = translate(real, "file")
    assert tensors["sem_seg_head.predictor.weight"].shape == (21, 256, 1, 1)
    assert len(report.used) == 302
    parameters = [name for name in real if not name.endswith(("_tracked", "_mean", "_var"))]
    assert sum(real[name].numel() for name in parameters) == 42004074  # as torchvision says


def test_finding_the_resnet() -> None:
    assert find_resnet(semantic_model(19)) == "backbone."
    assert find_resnet(instance_model()) == "backbone.bottom_up."
    assert find_resnet(["a.weight"]) is None
    with_group_norm = [name for name in semantic_model(19) if "running" not in name]
    assert find_resnet(with_group_norm) is None
