"""Weights and configs that do not agree on how images are given to the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY
from cityscapes_maskrcnn.engine.weight_conventions import check_conventions, conventions_of
from cityscapes_maskrcnn.utils.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
NOTHING: dict = {"model": {}}
ZOO = "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/"
X_101 = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
POINTREND = "https://dl.fbaipublicfiles.com/detectron2/PointRend/InstanceSegmentation/"


def config(name: str, *options: object) -> CfgNode:
    return build_config(str(CONFIGS / f"{name}.yaml"), [str(each) for each in options])


def test_every_config_fits_the_weights_that_it_names() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        cfg = build_config(str(path), [])
        check_conventions(cfg.MODEL.WEIGHTS, NOTHING, conventions_of(cfg))


def test_so_do_those_of_detectron2() -> None:
    """Whose weights are of all kinds: MSRA's, FAIR's with other deviations, detectors."""
    folder = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*_*.yaml")]
    assert len(names) > 60
    for name in names:
        cfg = model_zoo.get_config(name)
        check_conventions(cfg.MODEL.WEIGHTS, NOTHING, conventions_of(cfg))


COLOURS = r"INPUT\.FORMAT BGR, not RGB; MODEL\.PIXEL_MEAN \[103\.53, 116\.28, 123\.675\], not \[123"
STRIDE = r"MODEL\.RESNETS\.STRIDE_IN_1X1 True, not False; set what it was trained with"


@pytest.mark.parametrize(
    ("weights", "name", "message"),
    [
        (f"{ZOO}model_final_f10217.pkl", "stage_1_heads", f"{COLOURS}.*{STRIDE}"),
        ("/my/model_final_f10217.pkl", "stage_1_heads", f"{COLOURS}.*{STRIDE}"),
        ("new_baselines/model_final_14d201.pkl", "stage_1_heads", f"{COLOURS}.*{STRIDE}"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "stage_1_heads", f"{COLOURS}.*{STRIDE}"),
        (X_101, "coco_mask_rcnn_R_50_FPN", r"PIXEL_STD \[57.*IN_1X1 False, not True"),
        (
            "torchvision://deeplabv3_resnet50",
            "coco_mask_rcnn_R_50_FPN",
            r"FORMAT RGB, not BGR; .*PIXEL_STD \[58\.395, 57\.12, 57\.375\], not \[1\.0, 1",
        ),
        ("/my/resnet50-0676ba61.pth", "coco_mask_rcnn_R_50_FPN", "RGB, not BGR"),
        ("/my/convnext_tiny-983f1562.pth", "coco_mask_rcnn_R_50_FPN", "RGB, not BGR"),
        (
            "timm://convnext_tiny.in12k_ft_in1k",
            "coco_mask_rcnn_R_50_FPN",
            r"FORMAT RGB, not BGR; .*PIXEL_STD \[58\.395, 57\.12, 57\.375\], not \[1\.0, 1",
        ),
        ("timm://convnext_small", "coco_mask_rcnn_R_50_FPN", "RGB, not BGR"),
        ("/my/convnext_base.fb_in1k.safetensors", "coco_mask_rcnn_R_50_FPN", "RGB, not BGR"),
        (
            "timm://convnext_base.clip_laion2b_augreg_ft_in12k_in1k",
            "convnext_t/stage_1_heads",
            r"with MODEL\.PIXEL_STD \[68\.501, 66\.632, 70\.323\], not \[58\.395, ",
        ),
        (
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
            "coco_staged_1_heads",
            "RGB, not BGR",
        ),
        (f"{POINTREND}pointrend_rcnn_R_50_FPN_3x_coco/164955410/a.pkl", "stage_1_heads", STRIDE),
        # Of another normalisation, with the same names.
        (
            "detectron2://Misc/mask_rcnn_R_50_FPN_3x_gn/138602888/model_final_dc5d9e.pkl",
            "coco_mask_rcnn_R_50_FPN",
            r"with MODEL\.RESNETS\.STRIDE_IN_1X1 False, not True; MODEL\.RESNETS\.NORM GN, not Fro",
        ),
    ],
)
def test_other_conventions_get_one_line(weights: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_conventions(weights, NOTHING, conventions_of(config(name)))
    assert str(caught.value).startswith(f"{weights}: was trained with ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("torchvision://resnet101", "r101/stage_1_heads"),
        ("torchvision://maskrcnn_resnet50_fpn_v2", "coco_torchvision_R_50_FPN_v2"),
        ("detectron2://ImageNetPretrained/torchvision/R-50.pkl", "stage_1_heads"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "coco_mask_rcnn_R_50_FPN"),
        ("new_baselines/model_final_f96b26.pkl", "coco_strongest"),
    ],
)
def test_group_normalisation_does_not_take_the_weights_of_batch_normalisation(
    weights: str, name: str
) -> None:
    """GroupNorm has a weight and a bias of the same names."""
    with pytest.raises(InputError, match=r"was trained with MODEL\.RESNETS\.NORM BN, not GN; set"):
        check_conventions(
            weights, NOTHING, conventions_of(config(name, "MODEL.RESNETS.NORM", "GN"))
        )


def test_timms_weights_get_the_images_that_timm_names() -> None:
    names = [
        name
        for size in ("tiny", "small", "base")
        for name in timm.list_pretrained(f"convnext_{size}.*")
    ]
    assert len(names) > 20
    for name in names:
        published = timm.get_pretrained_cfg(name)
        theirs = {
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [255 * each for each in published.mean],
            "MODEL.PIXEL_STD": [255 * each for each in published.std],
        }
        check_conventions(f"timm://{name}", NOTHING, theirs)


def test_signs_in_the_file() -> None:
    ours = conventions_of(config("coco_mask_rcnn_R_50_FPN"))
    torchvisions = {"model": {}, "__author__": "torchvision"}
    with pytest.raises(InputError, match="RGB, not BGR"):
        check_conventions("/my/R-50.pkl", torchvisions, ours)
    check_conventions("/my/R-50.pkl", NOTHING, ours)
    of_caffe2 = {"model": {"res2_0_branch2a_w": torch.zeros(1)}}
    check_conventions("/my/R-50.pkl", of_caffe2, ours)
    with pytest.raises(InputError, match="BGR, not RGB"):
        check_conventions("/my/R-50.pkl", of_caffe2, conventions_of(config("stage_1_heads")))
    of_timm = {"model": {"stages.0.blocks.0.gamma": torch.zeros(1)}}
    with pytest.raises(InputError, match=r"with INPUT\.FORMAT RGB, not BGR; set"):
        check_conventions("/my/model.safetensors", of_timm, ours)
    converted = {"model": {}, "__author__": "timm, CLIP"}
    with pytest.raises(InputError, match=r"with MODEL\.PIXEL_STD \[68\.501"):
        check_conventions("/my/x.pth", converted, conventions_of(config("stage_1_heads")))


def test_own_checkpoints_carry_theirs() -> None:
    trained = config("stage_0_backbone")
    content = {"model": {}, ORIGIN_KEY: {"config": trained.dump()}}
    # Live BatchNorm there and frozen here are of one kind; so are 123.675 and 123.68.
    here = config("stage_1_heads", "MODEL.PIXEL_MEAN", "(123.68, 116.28, 103.53)")
    check_conventions("output/model_final.pth", content, conventions_of(here))
    here = config("stage_1_heads", "INPUT.FORMAT", "BGR")
    with pytest.raises(
        InputError, match=r"model_final\.pth: was trained with INPUT\.FORMAT RGB, n"
    ):
        check_conventions("output/model_final.pth", content, conventions_of(here))
    for text in ("MODEL: {PIXEL_MEAN: 5, RESNETS: []}", "a: [", "5", "INPUT: {FORMAT: RGB}"):
        content = {"model": {}, ORIGIN_KEY: {"config": text}}
        check_conventions("a.pth", {**content}, {"INPUT.FORMAT": "RGB"})
    content[ORIGIN_KEY]["config"] = f"MODEL: {{PIXEL_STD: [1, {10**90}, x]}}"
    with pytest.raises(InputError, match=r"a\.pth: was trained with MODEL\.PIXEL_STD"):
        check_conventions("a.pth", content, conventions_of(here))


NARROW = [
    *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 8),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ["MODEL.FPN.NORM", "BN"],
            r"backbone\.fpn has other layers, .* lacks backbone\.fpn_lateral2\.norm\.bias and adds "
            r"backbone\.fpn_lateral2\.bias; ",
        ),
        (
            ["MODEL.RPN.CONV_DIMS", "[-1, -1]"],
            r"proposal_generator\.rpn_head has .* lacks \S+\.conv0\.bias and adds \S+conv\.bias",
        ),
        (["MODEL.ROI_BOX_HEAD.NUM_FC", "1"], r"it adds roi_heads\.box_head\.fc2\.bias; set"),
        (["MODEL.ROI_MASK_HEAD.NORM", "BN"], r"roi_heads\.mask_head has .* lacks \S+1\.norm\.bias"),
    ],
)
def test_half_a_part_is_refused(option: list[str], message: str, tmp_path: Path) -> None:
    """Its other half would be random, and nothing but a long list in the log would show it."""
    path = tmp_path / "model.pth"
    source = build_model(config("stage_1_heads", *NARROW))
    torch.save({"model": source.state_dict()}, path)
    cfg = config("stage_1_heads", *NARROW, *option)
    model = build_model(cfg)
    with pytest.raises(InputError, match=message):
        SafeCheckpointer(model, may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER).load(str(path))
    parts = ("backbone.fpn_", "proposal_generator.", "roi_heads.")
    SafeCheckpointer(model, may_differ=parts).load(str(path))


def test_the_checkpointer_checks_before_it_loads(tmp_path: Path) -> None:
    cfg = config("stage_1_heads", *NARROW)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    torch.save({name: value + 1 for name, value in before.items()}, path)
    ours = {**conventions_of(cfg), "INPUT.FORMAT": "BGR"}
    with pytest.raises(InputError, match="RGB, not BGR"):
        SafeCheckpointer(model, conventions=ours).load(str(path))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
