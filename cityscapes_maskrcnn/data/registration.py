"""The names under which Detectron2 finds the Cityscapes splits and their parts.

Detectron2's own ``cityscapes_fine_*`` names lead to functions that cannot run outside Meta; they
are registered again here, so that existing configs work.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from cityscapes_maskrcnn.data.annotations import (
    DatasetDict,
    load_images,
    load_instances,
    load_semantic,
)
from cityscapes_maskrcnn.data.labels import (
    ID_TO_CONTIGUOUS,
    IGNORE_TRAIN_ID,
    SEMANTIC_LABELS,
    THING_CLASSES,
    THING_COLORS,
)
from cityscapes_maskrcnn.data.partitions import partition, subset
from cityscapes_maskrcnn.data.tree import CITIES, dataset_root
from cityscapes_maskrcnn.utils.errors import InputError


class _Dataset(NamedTuple):
    """A row of the table of names.

    Attributes:
        task: ``"instance"`` or ``"semantic"``.
        split: folder below ``leftImg8bit`` and the annotations.
        annotations: ``"gtFine"``, ``"gtCoarse"``, or None for images without labels.
        parts: the parts of the split that belong to it; empty for the whole split.
        num_parts: into how many parts the split is cut.
        cities: the cities to load, or None for all.
        else_split: where to find a city that ``split`` does not have.
    """

    task: str
    split: str
    annotations: str | None
    parts: tuple[int, ...] = ()
    num_parts: int = 1
    cities: tuple[str, ...] | None = None
    else_split: str | None = None


TRAIN_PARTS: Final = 8
VAL_PARTS: Final = 4
# In the official release Bremen is a city of train, whose images have coarse annotations as well.
PRETRAIN_CITIES: Final = ("augsburg", "bremen", "dortmund", "dresden", "wuppertal")
PRETRAIN_VAL_CITIES: Final = ("erlangen",)

_DATASETS: Final[dict[str, _Dataset]] = {
    "cityscapes_instance_train": _Dataset("instance", "train", "gtFine"),
    "cityscapes_instance_val": _Dataset("instance", "val", "gtFine"),
    "cityscapes_instance_test": _Dataset("instance", "test", None),
    **{
        f"cityscapes_instance_{split}_part{part}of{parts}": _Dataset(
            "instance", split, "gtFine", parts=(part,), num_parts=parts
        )
        for split, parts in [("train", TRAIN_PARTS), ("val", VAL_PARTS)]
        for part in range(1, parts + 1)
    },
    # What no stage trains on or is tuned on; two names would be scored one by one.
    "cityscapes_instance_val_part3and4of4": _Dataset(
        "instance", "val", "gtFine", parts=(3, 4), num_parts=VAL_PARTS
    ),
    "cityscapes_coarse_semantic_pretrain": _Dataset(
        "semantic", "train_extra", "gtCoarse", cities=PRETRAIN_CITIES, else_split="train"
    ),
    "cityscapes_coarse_semantic_pretrain_val": _Dataset(
        "semantic", "train_extra", "gtCoarse", cities=PRETRAIN_VAL_CITIES
    ),
    "cityscapes_coarse_semantic_train_extra": _Dataset("semantic", "train_extra", "gtCoarse"),
    # Coarse annotations of the images that have fine ones too.
    "cityscapes_coarse_semantic_train": _Dataset("semantic", "train", "gtCoarse"),
    "cityscapes_coarse_semantic_val": _Dataset("semantic", "val", "gtCoarse"),
    # One name a city, for other choices: DATASETS.TRAIN takes any number of names.
    **{
        f"cityscapes_coarse_semantic_{city}": _Dataset(
            "semantic", "train_extra", "gtCoarse", cities=(city,)
        )
        for city in CITIES["train_extra"]
    },
    "cityscapes_fine_semantic_train": _Dataset("semantic", "train", "gtFine"),
    "cityscapes_fine_semantic_val": _Dataset("semantic", "val", "gtFine"),
    # Detectron2's names. The test split's annotations are placeholders: nothing is read from them.
    "cityscapes_fine_instance_seg_train": _Dataset("instance", "train", "gtFine"),
    "cityscapes_fine_instance_seg_val": _Dataset("instance", "val", "gtFine"),
    "cityscapes_fine_instance_seg_test": _Dataset("instance", "test", None),
    "cityscapes_fine_sem_seg_train": _Dataset("semantic", "train", "gtFine"),
    "cityscapes_fine_sem_seg_val": _Dataset("semantic", "val", "gtFine"),
    "cityscapes_fine_sem_seg_test": _Dataset("semantic", "test", None),
}


def register_all(root: str | None = None) -> None:
    """Register every Cityscapes dataset with Detectron2, without reading any file.

    May be called again, also with another root: earlier registrations are replaced. The metadata
    are Detectron2's, and the official colours (RGB) in addition. A split without labels has no
    ``gt_dir``.

    Args:
        root: the folder that holds ``cityscapes/``; None: :func:`dataset_root`.
    """
    root = dataset_root() if root is None else root
    for name, dataset in _DATASETS.items():
        image_dir = f"{root}/cityscapes/leftImg8bit/{dataset.split}"
        metadata = {
            "thing_classes": list(THING_CLASSES),
            "thing_colors": list(THING_COLORS),
            "thing_dataset_id_to_contiguous_id": dict(ID_TO_CONTIGUOUS),
            "stuff_classes": [label.name for label in SEMANTIC_LABELS],
            "stuff_colors": [label.color for label in SEMANTIC_LABELS],
            "image_dir": image_dir,
        }
        if dataset.annotations is not None:
            metadata["gt_dir"] = f"{root}/cityscapes/{dataset.annotations}/{dataset.split}"
        if dataset.task == "instance":
            metadata["evaluator_type"] = "cityscapes_instance"
        else:
            metadata["evaluator_type"] = "cityscapes_sem_seg"
            metadata["ignore_label"] = IGNORE_TRAIN_ID
        _register(name, partial(_load, name, dataset, root), metadata)


def register_subset(name: str, base: str, size: int, seed: int = 0) -> None:
    """Register a deterministic sample of a registered dataset.

    Call it again after :func:`register_all` with another root.

    Args:
        name: of the new dataset; an earlier one of this name is replaced.
        base: name of the dataset to sample from.
        size: number of images.
        seed: see :func:`.partitions.subset`.

    Raises:
        InputError: ``base`` is not registered, or ``name`` is ``base``.
    """
    check_dataset_names([base])
    if name == base:
        raise InputError(f"a subset of {base} needs a name of its own")
    metadata = MetadataCatalog.get(base).as_dict()
    del metadata["name"]
    load = partial(_load_subset, name=name, base=base, size=size, seed=seed)
    _register(name, load, metadata)


def check_dataset_names(names: Iterable[str]) -> None:
    """Verify that datasets are registered.

    Raises:
        InputError: one is not; the message proposes similar names.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=3)
            proposal = f"did you mean {' or '.join(similar)}? " if similar else ""
            raise InputError(
                f"unknown dataset {name!r}; {proposal}(datasets/README.md lists the names)"
            )


def _register(name: str, load: Callable[[], list[DatasetDict]], metadata: dict[str, Any]) -> None:
    """Put a dataset into Detectron2's catalogs, in the place of an earlier one."""
    DatasetCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    # The catalog refuses to change a value that was set once.
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(**metadata)


def _load(name: str, dataset: _Dataset, root: str) -> list[DatasetDict]:
    """Load one row of the table."""
    image_dir = f"{root}/cityscapes/leftImg8bit/{dataset.split}"
    gt_dir = f"{root}/cityscapes/{dataset.annotations}/{dataset.split}"
    cities = dataset.cities
    elsewhere: list[DatasetDict] = []
    if cities is not None and dataset.else_split is not None:
        moved = tuple(city for city in cities if not Path(image_dir, city).is_dir())
        if 0 < len(moved) < len(cities):
            cities = tuple(city for city in cities if city not in moved)
            row = dataset._replace(split=dataset.else_split, cities=moved, else_split=None)
            elsewhere = _load(name, row, root)

    def select(image_ids: Sequence[str]) -> Sequence[str]:
        try:
            chosen = [partition(image_ids, part, dataset.num_parts) for part in dataset.parts]
        except InputError as error:
            raise InputError(f"{name}: {error} in {image_dir}") from error
        return sorted(chain(*chosen)) if chosen else image_ids

    if dataset.annotations is None:
        return load_images(image_dir, cities=cities, select=select)
    if dataset.task == "instance":
        return load_instances(image_dir, gt_dir, cities=cities, select=select)
    images = load_semantic(
        image_dir, gt_dir, kind=dataset.annotations, cities=cities, select=select
    )
    return images + elsewhere


def _load_subset(*, name: str, base: str, size: int, seed: int) -> list[DatasetDict]:
    """Load a sample of another dataset."""
    images = DatasetCatalog.get(base)
    try:
        chosen = set(subset([image["image_id"] for image in images], size, seed))
    except InputError as error:
        raise InputError(f"{name}: {error} of {base}") from error
    return [image for image in images if image["image_id"] in chosen]
