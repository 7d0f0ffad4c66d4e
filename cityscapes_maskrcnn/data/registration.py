"""The names under which Detectron2 finds the Cityscapes splits and their parts.

Detectron2's own ``cityscapes_fine_*`` names lead to functions that cannot run outside Meta; they
are registered again here, so that existing configs work.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from cityscapes_maskrcnn.data.annotations import (
    DatasetDict,
    Selection,
    load_images,
    load_instances,
    load_semantic,
    map_categories,
)
from cityscapes_maskrcnn.data.labels import (
    ID_TO_CONTIGUOUS,
    IGNORE_TRAIN_ID,
    SEMANTIC_LABELS,
    THING_CLASSES,
    THING_COLORS,
)
from cityscapes_maskrcnn.data.partitions import partition, subset
from cityscapes_maskrcnn.data.tree import (
    CITIES,
    IMAGE_SUFFIX,
    check_distinct,
    dataset_root,
    image_name,
    is_generated,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable


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
    # The other half, by which checkpoints are chosen.
    "cityscapes_instance_val_part1and2of4": _Dataset(
        "instance", "val", "gtFine", parts=(1, 2), num_parts=VAL_PARTS
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


def is_of_cityscapes(name: str) -> bool:
    """Whether a name is one of :func:`register_all`."""
    return name in _DATASETS


def register_all(root: str | None = None) -> None:
    """Register every Cityscapes dataset with Detectron2, without reading any file.

    It may be called again, also with another root; earlier registrations are replaced. The metadata
    are Detectron2's, plus the official colours (RGB). A split without labels has no ``gt_dir``.

    Args:
        root: the folder that contains ``cityscapes/``; None: :func:`dataset_root`.
    """
    root = dataset_root() if root is None else root
    for name, dataset in _DATASETS.items():
        gt_dir = f"{root}/cityscapes/{dataset.annotations}/{dataset.split}"
        metadata = _metadata(
            image_dir=f"{root}/cityscapes/leftImg8bit/{dataset.split}",
            gt_dir=None if dataset.annotations is None else gt_dir,
            task=dataset.task,
        )
        _register(name, partial(_load, name, dataset, root), metadata)


def register_dataset(
    name: str,
    image_dir: str,
    gt_dir: str | None = None,
    *,
    task: str = "instance",
    image_suffix: str = IMAGE_SUFFIX,
    gt_kind: str = "gtFine",
) -> None:
    """Register images and annotations with a layout and names similar to those of Cityscapes.

    ``image_dir/CITY/NAME<image_suffix>`` is annotated by ``gt_dir/CITY/NAME_<gt_kind>_...``: for
    instances ``polygons.json``, which training reads, and ``instanceIds.png``, which scoring reads;
    for semantic segmentation ``labelIds.png`` and, for the instance-weighted score,
    ``instanceIds.png``. No file is read.

    Args:
        name: name of the dataset; an earlier one with this name is replaced.
        image_dir: folder that contains the city folders; relative to :func:`.tree.dataset_root`.
        gt_dir: the same for the annotations; None: images without labels.
        task: ``"instance"`` or ``"semantic"``.
        image_suffix: end of the image names, such as ``"_leftImg8bit_foggy_beta_0.02.png"``,
            ``"_rgb_anon.png"``, ``".JPG"``.
        gt_kind: the part of the annotation names before their kind: ``"gtFine"``, ``"gt"``, ...

    Raises:
        InputError: the name is one of :func:`register_all`, or there is no such task.
    """
    if name in _DATASETS:
        raise InputError(f"dataset {name} is one of this project's; choose another name")
    if task not in ("instance", "semantic"):
        raise InputError(f"dataset {name}: task is instance or semantic, not {task!r}")
    root = Path(dataset_root())
    image_dir = str(root / image_dir)
    gt_dir = gt_dir and str(root / gt_dir)
    load = partial(
        _load_folder,
        image_dir=image_dir,
        gt_dir=gt_dir,
        task=task,
        kind=gt_kind,
        image_suffix=image_suffix,
    )
    metadata = _metadata(image_dir=image_dir, gt_dir=gt_dir, task=task)
    _register(name, load, {**metadata, "image_suffix": image_suffix, "gt_kind": gt_kind})


def register_datasets_of(cfg: CfgNode) -> None:
    """Register a config's ``DATASETS.OWN``, and reduce datasets to its ``DATASETS.CLASSES``.

    If the config names a dataset of :func:`register_all` that is not registered, that function is
    called first. The tools, the trainer and the predictor call this function themselves. It may be
    called again, also with another config: the classes that one config selects do not limit the
    next, unlike those of :func:`select_classes`. No file is read.

    Args:
        cfg: the config; only ``DATASETS`` is used. Besides the datasets that it names, all other
            Cityscapes instance datasets are reduced to the classes too.

    Raises:
        InputError: an argument in ``DATASETS.OWN`` is unknown, missing or not a string, or a
            dataset is not registered; see also :func:`register_dataset` and
            :func:`select_classes`.
    """
    _register_own_datasets(cfg.DATASETS.OWN)
    keys = ("TRAIN", "VAL", "TEST", "TUNED_ON")
    names = [name for key in keys for name in cfg.DATASETS[key]]
    if any(name in _DATASETS and name not in DatasetCatalog for name in names):
        register_all()
    check_dataset_names(names)
    _restore_classes(DatasetCatalog.list())
    classes = cfg.DATASETS.CLASSES
    if classes:
        names += [
            name
            for name in DatasetCatalog.list()
            if MetadataCatalog.get(name).get("evaluator_type") == "cityscapes_instance"
            and set(classes) <= set(MetadataCatalog.get(name).get("thing_classes", ()))
        ]
        _select_classes(dict.fromkeys(names), classes, of_config=True)


def _register_own_datasets(datasets: Mapping[str, Any]) -> None:
    """Register datasets by the arguments of :func:`register_dataset`, in capitals."""
    keys = ("IMAGE_DIR", "GT_DIR", "TASK", "IMAGE_SUFFIX", "GT_KIND")
    for name, options in datasets.items():
        where = f"DATASETS.OWN.{name}"
        if not isinstance(options, Mapping) or "IMAGE_DIR" not in options:
            raise InputError(f"{where}: IMAGE_DIR is missing, the folder of its city folders")
        for key, value in options.items():
            if key not in keys:
                raise InputError(f"{where}: there is no key {key}, only {', '.join(keys)}")
            if not isinstance(value, str):
                raise InputError(f"{where}.{key} must be a string, not {value!r}")
        register_dataset(name, **{key.lower(): value for key, value in options.items()})


def image_names(dataset_name: str) -> list[str]:
    """Name the images of a registered dataset, in its order; see :func:`.tree.image_name`.

    Raises:
        InputError: a name does not end in the dataset's image suffix, or two images have one name.
    """
    suffix = image_suffix_of(dataset_name)
    names = [image_name(image["file_name"], suffix) for image in DatasetCatalog.get(dataset_name)]
    check_distinct(names, dataset_name)
    return names


def image_suffix_of(dataset_name: str) -> str:
    """Return the end of the names of a dataset's images: ``image_suffix`` of its metadata."""
    suffix: str = MetadataCatalog.get(dataset_name).get("image_suffix", IMAGE_SUFFIX)
    return suffix


def is_generated_dataset(name: str) -> bool:
    """Whether a dataset is of generated scenes; one whose folder is not known counts as real."""
    image_dir = MetadataCatalog.get(name).get("image_dir")
    return image_dir is not None and is_generated(image_dir)


def register_subset(name: str, base: str, size: int, seed: int = 0) -> None:
    """Register a deterministic sample of a registered dataset.

    Call it again after :func:`register_all` with another root.

    Args:
        name: name of the new dataset; an earlier one with this name is replaced.
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
    # The function and not its name, under which select_classes may put another one.
    load_base = DatasetCatalog[base]
    chosen = load_base if isinstance(load_base, _SomeClasses) and load_base.of_config else None
    load = partial(
        _load_subset,
        name=name,
        load_base=chosen.load if chosen else load_base,
        base=base,
        size=size,
        seed=seed,
    )
    _register(name, replace(chosen, load=load) if chosen else load, metadata)


def select_classes(names: Iterable[str], classes: Sequence[str]) -> None:
    """Reduce registered datasets to some of their instance classes.

    Afterwards their metadata contain only these classes, in the original order, with contiguous ids
    from 0. Objects of other classes are removed and so become background. The annotated outlines do
    not change: the part of an object that an object of another class hides stays hidden.

    Args:
        names: names of registered datasets in the Cityscapes layout.
        classes: class names, such as ``("person", "car")``.

    Raises:
        InputError: a dataset is not registered, is in another layout, or lacks a class.
    """
    names = list(names)
    check_dataset_names(names)
    _restore_classes(names)
    _select_classes(names, classes, of_config=False)


def check_dataset_names(names: Iterable[str]) -> None:
    """Verify that datasets are registered.

    Raises:
        InputError: one is not; the message suggests similar names.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=3)
            proposal = f"did you mean {' or '.join(similar)}? " if similar else ""
            raise InputError(
                f"unknown dataset {name!r}; {proposal}(datasets/README.md lists the names)"
            )


@dataclass(frozen=True)
class _SomeClasses:
    """Loads a dataset with some of its classes.

    Attributes:
        load: loads all classes.
        metadata: of all classes.
        new_ids: contiguous ids of the classes that are kept, by those that they had.
        of_config: whether a config chose them.
    """

    load: Callable[[], list[DatasetDict]]
    metadata: dict[str, Any]
    new_ids: dict[int, int]
    of_config: bool

    def __call__(self) -> list[DatasetDict]:
        """Load the images; those without labels as they are."""
        return [
            map_categories(image, self.new_ids) if "annotations" in image else image
            for image in self.load()
        ]


def _restore_classes(names: Iterable[str]) -> None:
    """Give datasets back the classes that a config did not choose."""
    for name in names:
        load = DatasetCatalog[name]
        if isinstance(load, _SomeClasses) and load.of_config:
            _register(name, load.load, load.metadata)


def _select_classes(names: Iterable[str], classes: Sequence[str], *, of_config: bool) -> None:
    """Do what :func:`select_classes` does, of registered datasets."""
    for name in names:
        all_metadata = MetadataCatalog.get(name).as_dict()
        if all_metadata.get("evaluator_type") not in ("cityscapes_instance", "cityscapes_sem_seg"):
            raise InputError(
                f"DATASETS.CLASSES {tuple(classes)}: {name} is not in the layout of Cityscapes; "
                "register it with the classes that it is to have"
            )
        known = all_metadata.get("thing_classes", [])
        for each in classes:
            if each not in known:
                raise InputError(f"DATASETS.CLASSES: {name} has no class {each!r}, only {known}")
        kept = [index for index, each in enumerate(known) if each in classes]
        if len(kept) == len(known):
            continue
        del all_metadata["name"]
        new_ids = {index: new for new, index in enumerate(kept)}
        metadata = {**all_metadata, "thing_classes": [known[index] for index in kept]}
        # Detectron2's COCOEvaluator notes here where it wrote the annotations of all classes.
        metadata.pop("json_file", None)
        if "thing_colors" in metadata:
            metadata["thing_colors"] = [metadata["thing_colors"][index] for index in kept]
        ids = "thing_dataset_id_to_contiguous_id"
        if ids in metadata:
            metadata[ids] = {
                label_id: new_ids[index]
                for label_id, index in metadata[ids].items()
                if index in new_ids
            }
        load = _SomeClasses(DatasetCatalog[name], all_metadata, new_ids, of_config)
        _register(name, load, metadata)


def _metadata(*, image_dir: str, gt_dir: str | None, task: str) -> dict[str, Any]:
    metadata = {
        "thing_classes": list(THING_CLASSES),
        "thing_colors": list(THING_COLORS),
        "thing_dataset_id_to_contiguous_id": dict(ID_TO_CONTIGUOUS),
        "stuff_classes": [label.name for label in SEMANTIC_LABELS],
        "stuff_colors": [label.color for label in SEMANTIC_LABELS],
        "image_dir": image_dir,
    }
    if gt_dir is not None:
        metadata["gt_dir"] = gt_dir
    if task == "instance":
        return {**metadata, "evaluator_type": "cityscapes_instance"}
    return {**metadata, "evaluator_type": "cityscapes_sem_seg", "ignore_label": IGNORE_TRAIN_ID}


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
    kind = dataset.annotations
    gt_dir = None if kind is None else f"{root}/cityscapes/{kind}/{dataset.split}"
    cities = dataset.cities
    elsewhere: list[DatasetDict] = []
    if cities is not None and dataset.else_split is not None:
        moved = tuple(city for city in cities if not Path(image_dir, city).is_dir())
        if 0 < len(moved) < len(cities):
            cities = tuple(city for city in cities if city not in moved)
            row = dataset._replace(split=dataset.else_split, cities=moved, else_split=None)
            elsewhere = _load(name, row, root)

    def select(images: Sequence[str]) -> Sequence[str]:
        if gt_dir is not None:
            ending = "polygons.json" if dataset.task == "instance" else "labelIds.png"
            _warn_of_lost_images(name, images, gt_dir, f"_{kind}_{ending}", cities)
        try:
            chosen = [partition(images, part, dataset.num_parts) for part in dataset.parts]
        except InputError as error:
            raise InputError(f"{name}: {error} in {image_dir}") from error
        return sorted(chain(*chosen)) if chosen else images

    own = _load_folder(
        image_dir=image_dir,
        gt_dir=gt_dir,
        task=dataset.task,
        kind=kind or "",
        cities=cities,
        select=select,
    )
    return own + elsewhere


def _warn_of_lost_images(
    name: str, images: Sequence[str], gt_dir: str, suffix: str, cities: Sequence[str] | None
) -> None:
    """Warn of annotations whose images are missing: an archive may have been unpacked in part."""
    annotated = {
        f"{file.parent.name}/{file.name.removesuffix(suffix)}"
        for file in Path(gt_dir).glob(f"[!.]*/[!.]*{suffix}")
        if cities is None or file.parent.name in cities
    }
    lost = sorted(annotated - {image.removesuffix(IMAGE_SUFFIX) for image in images})
    if lost:
        # Datasets are loaded several times in a run.
        log_first_n(
            logging.WARNING,
            f"{name}: {len(images)} images, but {len(lost)} more are annotated in {gt_dir}, such "
            f"as {printable(lost[0])}: the dataset, and scores on it, are of a part of the split",
            key="message",
        )


def _load_folder(
    *,
    image_dir: str,
    gt_dir: str | None,
    task: str,
    kind: str,
    cities: Sequence[str] | None = None,
    select: Selection | None = None,
    image_suffix: str = IMAGE_SUFFIX,
) -> list[DatasetDict]:
    """Load images with annotations of a task, or without."""
    if gt_dir is None:
        return load_images(image_dir, cities, select, image_suffix)
    load = load_instances if task == "instance" else load_semantic
    return load(image_dir, gt_dir, kind, cities, select, image_suffix)


def _load_subset(
    *, name: str, load_base: Callable[[], list[DatasetDict]], base: str, size: int, seed: int
) -> list[DatasetDict]:
    """Load a sample of another dataset."""
    images = load_base()
    # Not image_id: datasets of other programs may have none, or several that are equal.
    files = [Path(image["file_name"]).name for image in images]
    check_distinct(files, base)
    try:
        chosen = set(subset(files, size, seed))
    except InputError as error:
        raise InputError(f"{name}: {error} of {base}") from error
    return [image for image, file in zip(images, files, strict=True) if file in chosen]
