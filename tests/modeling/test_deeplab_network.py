"""The network and the loader against torchvision's own network, with the same random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import deeplabv3_resnet101

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.modeling import backbone, semantic_head  # noqa: F401
from cityscapes_maskrcnn.modeling.deeplab_weights import translate
from cityscapes_maskrcnn.utils.errors import InputError

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def config(file: str, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.merge_from_file(f"configs/{file}", allow_unsafe=False)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


def build(cfg: CfgNode, state: dict[str, Tensor]) -> nn.Module:
    model = build_model(cfg)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors, _ = translate(state, "torchvision's network", shapes)
    model.load_state_dict(tensors, strict=False)
    return model


@pytest.fixture(scope="module")
def ours(deeplab: nn.Module) -> nn.Module:
    return build(config("stage_0_backbone.yaml"), deeplab.state_dict()).eval()


def image(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random image, uint8 RGB: neighbours are alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, height // 8 + 2, width // 8 + 2), generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return (smooth * 255).clamp(0, 255).byte()


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (7, 9)])
def test_logits_equal_torchvisions(
    deeplab: nn.Module, ours: nn.Module, size: tuple[int, int]
) -> None:
    picture = image(*size)
    with torch.no_grad():
        expected = deeplab(((picture - MEAN) / STD)[None])["out"][0]
        logits = ours([{"image": picture}])[0]["sem_seg"]
    assert logits.shape == (19, *size)
    assert expected.std() > 0.1  # the comparison is of something
    assert (logits - expected).abs().max() < 1e-4


def test_resnet_101_equals_torchvisions(randomised: Callable[..., None]) -> None:
    theirs = deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=19, aux_loss=True)
    randomised(theirs)
    theirs.eval()
    picture = image(40, 56)
    batch = ((picture - MEAN) / STD)[None]
    ours = build(config("r101/stage_0_backbone.yaml"), theirs.state_dict()).eval()
    with torch.no_grad():
        expected = theirs(batch)["out"][0]
        logits = ours([{"image": picture}])[0]["sem_seg"]
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    # 104 convolutions with 4 of BatchNorm each.
    report = translate(theirs.state_dict(), "file")[1]
    assert len(report.backbone) == 104 * 5


def test_one_training_steps_gradients_equal_torchvisions(deeplab: nn.Module) -> None:
    """BatchNorm on batch statistics, the same dropout mask, ignored pixels; in double precision."""
    theirs = copy.deepcopy(deeplab).double().train()
    theirs.aux_classifier = None
    ours = build(config("stage_0_backbone.yaml"), theirs.state_dict()).double().train()
    pictures = [image(41, 57, seed) for seed in (1, 2)]
    targets = torch.randint(0, 19, (2, 41, 57), generator=torch.Generator().manual_seed(3))
    targets[:, :12] = 255

    torch.manual_seed(5)
    batch = torch.stack([(each - MEAN.double()) / STD.double() for each in pictures])
    expected = F.cross_entropy(theirs(batch)["out"], targets, ignore_index=255)
    expected.backward()
    torch.manual_seed(5)
    pairs = zip(pictures, targets, strict=True)
    loss = ours([{"image": picture, "sem_seg": target} for picture, target in pairs])[
        "loss_sem_seg"
    ]
    loss.backward()

    assert abs(loss.item() - expected.item()) < 1e-6  # our logits are float32 from upsampling on
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    renamed, _ = translate({**theirs.state_dict(), **gradients}, "gradients")
    parameters = [*ours.named_parameters()]
    # 53 convolutions and 53 x 2 of BatchNorm; 7 and 7 x 2 in the head, 2 of the classifier.
    assert len(parameters) == 53 * 3 + 7 * 3 + 2
    for name, parameter in parameters:
        gradient = renamed[name.removeprefix("backbone.")]
        assert gradient.norm() > 0, name
        assert (parameter.grad - gradient).norm() < 1e-5 * gradient.norm(), name
    # The step also moved BatchNorm's statistics alike.
    moved, _ = translate(theirs.state_dict(), "statistics")
    for name, value in ours.state_dict().items():
        if "running" in name:
            reference = moved[name.removeprefix("backbone.")]
            assert torch.allclose(value, reference, rtol=1e-6, atol=1e-9), name


def test_the_frozen_backbone_gives_torchvisions_undilated_features(deeplab: nn.Module) -> None:
    plain = resnet50(weights=None)
    plain.load_state_dict(deeplab.backbone.state_dict(), strict=False)
    layers = {f"layer{number}": f"res{number + 1}" for number in (1, 2, 3, 4)}
    theirs = IntermediateLayerGetter(plain, layers).eval()
    instance_model = build(config("stage_1_heads.yaml"), deeplab.state_dict())
    bottom_up = instance_model.backbone.bottom_up
    assert not any(parameter.requires_grad for parameter in bottom_up.parameters())
    for size in [(64, 96), (65, 97)]:
        batch = ((image(*size) - MEAN) / STD)[None]
        with torch.no_grad():
            expected, features = theirs(batch), bottom_up(batch)
        assert set(features) == {"res2", "res3", "res4", "res5"}
        for name, feature in features.items():
            assert expected[name].std() > 0.1
            assert (feature - expected[name]).abs().max() < 1e-4, name


def test_freezing_stops_where_the_config_says(deeplab: nn.Module) -> None:
    cfg = config("stage_0_backbone.yaml", "MODEL.BACKBONE.FREEZE_AT", 2)
    model = build(cfg, deeplab.state_dict())
    live = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert live.isdisjoint({"stem", "res2"})
    assert {"res3", "res4", "res5", "predictor"} <= live


def test_an_unlabelled_batch_has_loss_zero(ours: nn.Module) -> None:
    head = copy.deepcopy(ours.sem_seg_head).train()
    features = {"res5": torch.rand(2, 2048, 2, 3), "image": torch.rand(2, 3, 16, 24)}
    _, losses = head(features, torch.full((2, 16, 24), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"] == 0
    assert all(p.grad.abs().max() == 0 for p in head.parameters())


def test_bad_configs_and_batches_get_one_line(ours: nn.Module) -> None:
    file = "stage_0_backbone.yaml"
    with pytest.raises(InputError, match=r"MODEL\.RESNETS\.DEPTH 152: .* the depths 50 and 101"):
        build_model(config(file, "MODEL.RESNETS.DEPTH", 152))
    with pytest.raises(InputError, match="needs the feature 'image'"):
        build_model(config(file, "MODEL.BACKBONE.NAME", "build_resnet_backbone"))
    with pytest.raises(InputError, match="classifies one feature"):
        build_model(config(file, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res4', 'res5']"))
    training = copy.deepcopy(ours).train()
    with pytest.raises(InputError, match="at least 2 training images in every process"):
        training([{"image": image(16, 16), "sem_seg": torch.zeros(16, 16, dtype=torch.int64)}])
    with pytest.raises(InputError, match="without semantic labels"):
        training([{"image": image(16, 16)}] * 2)


def test_the_head_on_a_pyramid_is_detectron2s_where_there_are_labels() -> None:
    words = "MODEL.DEVICE cpu MODEL.CONVNEXT.CHANNELS 8 MODEL.CONVNEXT.DEPTHS [1,1,1,1]"
    words += " MODEL.FPN.OUT_CHANNELS 8 MODEL.SEM_SEG_HEAD.CONVS_DIM 32"
    cfg = build_config("configs/convnext_t/stage_0_backbone.yaml", words.split())
    torch.manual_seed(0)
    model = build_model(cfg).train()
    # No multiple of 32: the images are padded, and their labels with what is ignored.
    labels = torch.randint(19, (2, 72, 100))
    labels[:, 40:] = 255
    batch = [
        {"image": torch.randint(256, (3, 72, 100)), "sem_seg": each, "height": 72, "width": 100}
        for each in labels
    ]
    loss = model(batch)["loss_sem_seg"]
    theirs = copy.deepcopy(model)
    theirs.sem_seg_head.__class__ = SemSegFPNHead
    assert loss.isclose(theirs(batch)["loss_sem_seg"], rtol=1e-6)
    (prediction,) = model.eval()(batch[:1])
    assert prediction["sem_seg"].shape == (19, 72, 100)
    for each in batch:
        each["sem_seg"] = torch.full_like(labels[0], 255)
    loss = model.train()(batch)["loss_sem_seg"]
    loss.backward()
    assert loss == 0
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)
    assert theirs(batch)["loss_sem_seg"].isnan()
    for each in batch:
        del each["sem_seg"]
    with pytest.raises(InputError, match="images without semantic labels"):
        model(batch)
