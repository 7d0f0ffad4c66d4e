"""A model and its datasets that do not have the same classes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.class_check import check_classes, class_names
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

PERSON_AND_CAR = ["DATASETS.CLASSES", "('car','person')"]


@pytest.fixture(autouse=True)
def all_classes_again() -> Iterator[None]:
    yield
    register_all()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            "stage_1_heads",
            ["MODEL.ROI_HEADS.NUM_CLASSES", "1"],
            "is 1, but cityscapes_instance_trai",
        ),
        (
            "stage_1_heads",
            ["MODEL.ROI_HEADS.NUM_CLASSES", "80"],
            "has 8 classes: person, rider, car, truck, bus, train, motorcycle, bicycle; set "
            "MODEL.ROI_HEADS.NUM_CLASSES 8, or choose classes with DATASETS.CLASSES",
        ),
        (
            "stage_1_heads",
            PERSON_AND_CAR,
            "is 8, but cityscapes_instance_train has 2 classes: pers",
        ),
        (
            "stage_0_backbone",
            ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54"],
            "NUM_CLASSES is 54, but cityscapes_coarse_semantic_pretrain has 19 classes",
        ),
        (
            "stage_1_heads",
            ["DATASETS.TEST", "('coco_2017_val',)"],
            "cityscapes_instance_train and coco_2017_val have different classes: person, rider,",
        ),
        (
            "stage_1_heads",
            [*PERSON_AND_CAR, "DATASETS.TEST", "('coco_2017_val',)"],
            "coco_2017_val is not in the layout of Cityscapes",
        ),
    ],
)
def test_other_classes_get_one_line(config: str, options: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_config(f"configs/{config}.yaml", options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("stage_1_heads", [*PERSON_AND_CAR, "MODEL.ROI_HEADS.NUM_CLASSES", "2"]),
        ("stage_0_backbone", PERSON_AND_CAR),
        ("stage_0_backbone", ["MODEL.ROI_HEADS.NUM_CLASSES", "80"]),
    ],
)
def test_matching_classes_pass(config: str, options: list[str]) -> None:
    build_config(f"configs/{config}.yaml", options)


def test_class_names_are_those_that_were_chosen() -> None:
    two = [*PERSON_AND_CAR, "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    assert class_names(build_config("configs/stage_1_heads.yaml", two)) == ["person", "car"]
    assert class_names(build_config("configs/stage_0_backbone.yaml", [])) == []


def test_detectron2s_configs_pass() -> None:
    # RetinaNet's yaml computes its anchor sizes.
    cfg = build_config("model_zoo://COCO-Detection/retinanet_R_50_FPN_1x.yaml", [])
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == [32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    with pytest.raises(InputError, match=r"MODEL\.RETINANET\.NUM_CLASSES is 80, but citys"):
        build_config(
            "model_zoo://COCO-Detection/retinanet_R_50_FPN_1x.yaml",
            ["DATASETS.TRAIN", "('cityscapes_instance_train',)", "DATASETS.TEST", "()"],
        )


def test_own_datasets_of_a_script() -> None:
    """Which build their config without the tools, and meet the check in the trainer."""
    for name in ("balloons", "unnamed_classes"):
        DatasetCatalog.register(name, list)
    MetadataCatalog.get("balloons").thing_classes = ["balloon"]
    cfg: CfgNode = build_config("configs/stage_1_heads.yaml", [])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("balloons",), ("unnamed_classes",)
    try:
        with pytest.raises(
            InputError, match="is 8, but balloons has 1 classes: balloon; set MODEL"
        ):
            Trainer(cfg)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
        check_classes(cfg)
    finally:
        MetadataCatalog.pop("balloons")
        for name in ("balloons", "unnamed_classes"):
            DatasetCatalog.remove(name)
        MetadataCatalog.pop("unnamed_classes", None)
