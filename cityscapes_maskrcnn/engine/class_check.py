"""Check that a model and its datasets have the same classes."""

from __future__ import annotations

from typing import Final

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from cityscapes_maskrcnn.utils.errors import InputError

# The keys with the number of classes of Detectron2's architectures, by the metadata that name them.
_KEYS: Final = {
    "thing_classes": {
        "GeneralizedRCNN": "ROI_HEADS",
        "PanopticFPN": "ROI_HEADS",
        "RetinaNet": "RETINANET",
    },
    "stuff_classes": {"SemanticSegmentor": "SEM_SEG_HEAD", "PanopticFPN": "SEM_SEG_HEAD"},
}


def class_names(cfg: CfgNode) -> list[str]:
    """Name the instance classes of a model, by contiguous id: those of its first dataset.

    Args:
        cfg: reads ``MODEL.META_ARCHITECTURE`` and ``DATASETS``. ``DATASETS.CLASSES`` counts whether
            or not the datasets in the catalog have been reduced to them.

    Returns:
        Empty for a model without instances, and where no dataset has class names.
    """
    if cfg.MODEL.META_ARCHITECTURE not in _KEYS["thing_classes"]:
        return []
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    found = (list(MetadataCatalog.get(name).get("thing_classes", ())) for name in names)
    chosen = cfg.DATASETS.CLASSES
    return [each for each in next(filter(None, found), []) if not chosen or each in chosen]


def coco_classes(count: int) -> list[str]:
    """Name COCO's 80 instance classes, in the order of a model's rows.

    Args:
        count: how many classes the model has. 90: a row for each of COCO's ids 1 to 90, ten of
            which name nothing (``"N/A"``), as torchvision has them; else the 80 in their order.
    """
    metadata = MetadataCatalog.get("coco_2017_val")
    names = list(metadata.thing_classes)
    if count != 90:
        return names
    ids = metadata.thing_dataset_id_to_contiguous_id
    return [names[ids[number]] if number in ids else "N/A" for number in range(1, 91)]


def check_classes(cfg: CfgNode) -> None:
    """Verify that a model predicts as many classes as its datasets have, and that these agree.

    Detectron2 notices neither before the first object of a class that the model lacks, or never.

    Args:
        cfg: reads ``MODEL`` and ``DATASETS``. Datasets without class names in their metadata, and
            architectures that are not Detectron2's, are not looked at.

    Raises:
        InputError: the numbers differ, or the datasets have different classes.
    """
    for kind, sections in _KEYS.items():
        section = sections.get(cfg.MODEL.META_ARCHITECTURE)
        if section is None or section not in cfg.MODEL:
            continue
        hint = ", or choose classes with DATASETS.CLASSES" if kind == "thing_classes" else ""
        expected: tuple[str, list[str]] | None = None
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST):
            classes = list(MetadataCatalog.get(name).get(kind, ()))
            if not classes:
                continue
            first, those = expected or (name, classes)
            if classes != those:
                raise InputError(
                    f"{first} and {name} have different classes: {', '.join(those)}; "
                    f"{', '.join(classes)}"
                )
            expected = first, those
            count = cfg.MODEL[section].NUM_CLASSES
            if count != len(classes):
                raise InputError(
                    f"MODEL.{section}.NUM_CLASSES is {count}, but {name} has {len(classes)} "
                    f"classes: {', '.join(classes)}; set MODEL.{section}.NUM_CLASSES {len(classes)}"
                    f"{hint}"
                )
