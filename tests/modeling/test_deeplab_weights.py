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


def shapes_only(build: Callable[..., nn.Module], **arguments: Any) -> State:
    """The state of a network without its values: nothing is drawn or stored."""
    with torch.device("meta"):
        return build(weights=None, **arguments).state_dict()


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


def test_the_tables_count() -> None:
    # 53 convolutions and 53 x 4 of BatchNorm.
    assert len(resnet50_shapes()) == 53 + 53 * 4 == 265
    # 5 branches, the projection and the 3x3 convolution with 1 + 4 each; the classifier with 2.
    assert len(head_shapes(19)) == 7 * 5 + 2 == 37


def test_known_names(state: State) -> None:
    _, account = translate(state, "file", semantic_model(19))
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
        assert account.used[ours] == theirs


def test_every_tensor_is_accounted_for(state: State) -> None:
    tensors, account = translate(state, "weights.pth", semantic_model(19))
    assert {*account.used.values()} | {*account.left} == {*state}
    assert {*account.used.values()}.isdisjoint(account.left)
    assert len(account.used) == 265 + 37
    assert account.missing == ()
    assert all(tensors[new] is state[old] for new, old in account.used.items())
    # Left: a counter of each of the 53 + 7 + 1 BatchNorms (one is the auxiliary classifier's), and
    # the auxiliary classifier's 2 convolutions, one of them with a bias, and 4 of BatchNorm.
    counters = [name for name in account.left if name.endswith("num_batches_tracked")]
    auxiliary = [name for name in account.left if name.startswith("aux_classifier.")]
    assert len(counters) == 61
    assert len(auxiliary) == 3 + 4 + 1
    assert len(account.left) == 61 + 8 - 1
    assert account.summary().splitlines() == [
        "weights.pth: DeepLabv3 with a ResNet-50, 19 classes",
        "  used     265  of the backbone",
        "  used      30  of sem_seg_head.aspp",
        "  used       5  of sem_seg_head.conv",
        "  used       2  of sem_seg_head.predictor",
        "  left      61  BatchNorm's counters, which this model does not keep",
        "  left       7  of the auxiliary classifier, which serves torchvision's training only",
    ]
    assert len(account.listing().splitlines()) == len(state)


def test_counters_go_where_the_model_keeps_them(state: State) -> None:
    model = semantic_model(19)
    model |= {f"backbone.res2.{block}.conv1.norm.num_batches_tracked": () for block in (0, 1)}
    tensors, account = translate(state, "file", model)
    assert tensors["backbone.res2.0.conv1.norm.num_batches_tracked"] == 7
    assert len(account.used) == 265 + 37 + 2
    assert len(account.backbone) == 265


def test_a_classifier_of_other_classes_starts_anew(state: State) -> None:
    tensors, account = translate(state, "file", semantic_model(7), ["sem_seg_head.predictor."])
    assert "sem_seg_head.predictor.weight" not in tensors
    assert account.missing == ("sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias")
    why = account.left["classifier.4.weight"]
    assert why == "of sem_seg_head.predictor: (19, 256, 1, 1) here, (7, 256, 1, 1) in the model"
    assert "missing    2  of sem_seg_head.predictor: start anew" in account.summary()


def test_an_instance_model_takes_the_backbone(state: State) -> None:
    tensors, account = translate(state, "file", instance_model())
    assert sorted(tensors) == sorted(name for name in instance_model() if "bottom_up" in name)
    assert account.backbone[0] == "backbone.bottom_up.stem.conv1.weight"
    left = {reason for name, reason in account.left.items() if name.startswith("classifier.0.")}
    assert "of sem_seg_head.aspp, which this model does not have" in left
    assert "missing    2  of backbone.fpn_lateral*: start anew" in account.summary()
    assert "missing    1  of roi_heads.box_predictor: start anew" in account.summary()


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.module._orig_mod."])
def test_prefixes(state: State, prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in state.items()}
    tensors, account = translate(wrapped, "file", semantic_model(19))
    assert len(account.used) == 302
    assert tensors["backbone.stem.conv1.weight"] is state["backbone.conv1.weight"]
    assert (
        account.summary().splitlines()[1:]
        == translate(state, "file", semantic_model(19))[1].summary().splitlines()[1:]
    )


def test_a_backbone_on_its_own(state: State) -> None:
    part = {
        name.removeprefix("backbone."): value
        for name, value in state.items()
        if name.startswith("backbone.")
    }
    _, account = translate(part, "file", semantic_model(19))
    assert account.kind == "a ResNet-50 backbone"
    assert len(account.used) == 265
    assert account.missing == tuple(head_shapes(19))


def test_detectron2s_names_stay(state: State) -> None:
    """Stage 0's output into stage 0, into stage 1, and stage 1's into stage 2."""
    stage_0, _ = translate(state, "file", semantic_model(19))
    again, account = translate(stage_0, "stage_0.pth", semantic_model(19))
    assert again == stage_0
    assert account.left == {}
    stage_1, account = translate(stage_0, "stage_0.pth", instance_model())
    assert len(stage_1) == 265
    assert len(account.left) == 37
    stage_1["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(9, 1024)
    stage_2, account = translate(stage_1, "stage_1.pth", instance_model())
    assert stage_2 == stage_1
    assert account.kind == "a model on a ResNet-50"


def test_the_same_other_resnet_in_file_and_model_fits() -> None:
    """Detectron2's configs of other ResNets go on working: the model says what is expected."""
    state = shapes_only(deeplabv3_resnet101, weights_backbone=None)
    bare = {name: value.new_zeros(value.shape, device="cpu") for name, value in state.items()}
    target = {f"backbone.{name}": shape for name, shape in resnet50_shapes().items()}
    for block in range(6, 23):
        for name, shape in resnet50_shapes().items():
            if name.startswith("res4.5."):
                target[f"backbone.res4.{block}." + name.removeprefix("res4.5.")] = shape
    _, account = translate(bare, "file", target)
    # 17 blocks more, each of 3 convolutions with 1 + 4 tensors.
    assert len(account.backbone) == 265 + 17 * 15
    assert account.missing == ()


WRONG_NETWORKS = {
    "DeepLabv3 with a ResNet-101, 19 classes": (
        deeplabv3_resnet101,
        {"weights_backbone": None, "num_classes": 19},
    ),
    "a network on a MobileNet": (deeplabv3_mobilenet_v3_large, {"weights_backbone": None}),
    "a semantic model on a ResNet-50, with another head": (
        fcn_resnet50,
        {"weights_backbone": None},
    ),
    "an image classifier, a ResNet-50 with 1000 classes": (resnet50, {}),
    "an image classifier, a ResNet-18 with 10 classes": (resnet18, {"num_classes": 10}),
    "an image classifier, a ResNeXt-50 with 1000": (resnext50_32x4d, {}),
    "torchvision's detection model on a ResNet-50": (
        maskrcnn_resnet50_fpn,
        {"weights_backbone": None},
    ),
    r"22 tensors without a ResNet among them, such as features.0.weight \(64, 3, 3, 3\)": (
        vgg11,
        {},
    ),
}


@pytest.mark.parametrize("what", WRONG_NETWORKS)
def test_another_network_is_named(what: str) -> None:
    build, arguments = WRONG_NETWORKS[what]
    with pytest.raises(InputError) as caught:
        translate(shapes_only(build, **arguments), "weights.pth", semantic_model(19))
    message = str(caught.value)
    assert message.startswith(f"weights.pth: {what}".replace("\\", ""))
    assert "expected the weights of torchvision's deeplabv3_resnet50" in message
    assert "265 tensors" in message
    assert ("detectron2://ImageNetPretrained/torchvision/R-50.pkl" in message) == (
        build is resnet50
    )


@pytest.mark.parametrize("stem", ["conv1.{}.weight", "stem.{}.weight"])
def test_a_deep_stem_is_named(state: State, stem: str) -> None:
    """Three 3x3 convolutions instead of one of 7x7: timm's ResNet-50-D and MMSegmentation's V1c."""
    deep = {name: value for name, value in state.items() if name != "backbone.conv1.weight"}
    for number, channels in enumerate((3, 32, 32)):
        deep["backbone." + stem.format(3 * number)] = torch.zeros(32, channels, 3, 3)
    with pytest.raises(InputError, match="DeepLabv3 with a ResNet-50 with a deep stem, 19 classes"):
        translate(deep, "weights.pth", semantic_model(19))


def test_missing_and_surplus_tensors(state: State) -> None:
    def without(*names: str) -> State:
        return {name: value for name, value in state.items() if name not in names}

    first = "backbone.layer2.1.bn3.running_mean"
    with pytest.raises(
        InputError,
        match=r"of the 265 tensors of its backbone 1 are missing, such"
        r" as res3\.1\.conv3\.norm\.running_mean",
    ):
        translate(without(first), "file", semantic_model(19))
    with pytest.raises(
        InputError,
        match=r"of the 37 tensors of its head 1 are missing, such as "
        r"sem_seg_head\.predictor\.bias",
    ):
        translate(without("classifier.4.bias"), "file", semantic_model(19))
    more = {**state, "backbone.layer2.1.se.weight": torch.zeros(3)}
    with pytest.raises(
        InputError,
        match=r"265 tensors of its backbone 1 too many are there, such "
        r"as res3\.1\.se\.weight",
    ):
        translate(more, "file", semantic_model(19))
    # BatchNorm folded into the convolutions: 53 x 4 are gone.
    folded = {name: value for name, value in state.items() if ".bn" not in name}
    with pytest.raises(InputError, match=r"of the 265 tensors of its backbone \d+ are missing"):
        translate(folded, "file", semantic_model(19))
    # The last block of a stage is cut off, as in a file that was pruned.
    short = {name: value for name, value in state.items() if "layer4.2." not in name}
    with pytest.raises(InputError, match=r"a ResNet-\? of \(3, 4, 6, 2\) blocks"):
        translate(short, "file", semantic_model(19))


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
    with pytest.raises(InputError, match=r"backbone\.conv1\.weight holds values that are not fini"):
        translate(ill, "file", semantic_model(19))
    two = {
        f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()
    }
    with pytest.raises(InputError, match=r"several ResNets, named student\.backbone\. and teacher"):
        translate(two, "file", semantic_model(19))
    twice = {**state, "sem_seg_head.predictor.bias": state["classifier.4.bias"]}
    with pytest.raises(InputError, match="the same tensor of the network"):
        translate(twice, "file", semantic_model(19))
    with pytest.raises(InputError, match="the model has no ResNet"):
        translate(state, "file", {"weight": (3, 3)})
    with pytest.raises(InputError, match="0 tensors without a ResNet"):
        translate({"epoch": 3}, "file", semantic_model(19))


def test_values_that_are_no_tensors_are_left(state: State) -> None:
    _, account = translate({**state, "epoch": 3}, "file", semantic_model(19))
    assert account.left["epoch"] == "not tensors"


def test_the_real_file_has_the_tensors_assumed_here() -> None:
    """What torchvision builds for its weights: 21 classes and the auxiliary classifier."""
    state = shapes_only(deeplabv3_resnet50, weights_backbone=None, num_classes=21, aux_loss=True)
    real = {name: value.new_zeros(value.shape, device="cpu") for name, value in state.items()}
    _, account = translate(real, "file")
    assert account.kind == "DeepLabv3 with a ResNet-50, 21 classes"
    assert len(account.used) == 302
    assert (
        sum(
            real[name].numel()
            for name in real
            if not name.endswith(("num_batches_tracked", "running_mean", "running_var"))
        )
        == 42004074
    )  # as torchvision says


def test_finding_the_resnet() -> None:
    assert find_resnet(semantic_model(19)) == "backbone."
    assert find_resnet(instance_model()) == "backbone.bottom_up."
    assert find_resnet(["a.weight"]) is None
    assert find_resnet([]) is None
    with_group_norm = [name for name in semantic_model(19) if "running" not in name]
    assert find_resnet(with_group_norm) is None
