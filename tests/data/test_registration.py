from __future__ import annotations

import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from cityscapes_maskrcnn.data.registration import (
    check_dataset_names,
    dataset_root,
    register_all,
    register_subset,
)
from cityscapes_maskrcnn.utils.errors import InputError

SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]
INSTANCE_NAMES = [
    *(f"cityscapes_instance_{split}" for split in ["train", "val", "test"]),
    *(f"cityscapes_instance_train_part{part}of8" for part in range(1, 9)),
    *(f"cityscapes_instance_val_part{part}of4" for part in range(1, 5)),
    *(f"cityscapes_fine_instance_seg_{split}" for split in ["train", "val", "test"]),
]
SEMANTIC_NAMES = [
    *(f"cityscapes_coarse_semantic_{part}" for part in ["pretrain", "pretrain_val", "train_extra"]),
    *(f"cityscapes_fine_semantic_{split}" for split in ["train", "val"]),
    *(f"cityscapes_fine_sem_seg_{split}" for split in ["train", "val", "test"]),
]
COARSE_CITIES = ["augsburg", "bremen", "dortmund", "dresden", "wuppertal", "erlangen", "bayreuth"]


@pytest.fixture
def root(tmp_path: Path, write_scene) -> str:
    for number in range(9):
        write_scene(tmp_path, "train", ["aachen", "ulm"][number % 2], number, [("car", SQUARE)])
    for number in range(5):
        write_scene(tmp_path, "val", "lindau", number, [("bus", SQUARE)] * (number % 2))
    write_scene(tmp_path, "test", "berlin", 0, [])
    for city in COARSE_CITIES:
        write_scene(tmp_path, "train_extra", city, 0, [], "gtCoarse")
    register_all(str(tmp_path))
    return str(tmp_path)


def ids(name: str) -> list[str]:
    return [image["image_id"] for image in DatasetCatalog.get(name)]


@pytest.mark.usefixtures("root")
def test_every_name_loads():
    sizes = {name: len(DatasetCatalog.get(name)) for name in INSTANCE_NAMES[:-3] + SEMANTIC_NAMES}
    assert sizes == {
        "cityscapes_instance_train": 9,
        "cityscapes_instance_val": 5,
        "cityscapes_instance_test": 1,
        "cityscapes_instance_train_part1of8": 2,  # 9 images in 8 parts
        **{f"cityscapes_instance_train_part{part}of8": 1 for part in range(2, 9)},
        "cityscapes_instance_val_part1of4": 2,  # 5 images in 4 parts
        **{f"cityscapes_instance_val_part{part}of4": 1 for part in range(2, 5)},
        "cityscapes_coarse_semantic_pretrain": 5,
        "cityscapes_coarse_semantic_pretrain_val": 1,
        "cityscapes_coarse_semantic_train_extra": 7,
        "cityscapes_fine_semantic_train": 9,
        "cityscapes_fine_semantic_val": 5,
        "cityscapes_fine_sem_seg_train": 9,
        "cityscapes_fine_sem_seg_val": 5,
        "cityscapes_fine_sem_seg_test": 1,
    }


@pytest.mark.usefixtures("root")
def test_parts_make_up_the_split():
    for split, parts in [("train", 8), ("val", 4)]:
        whole = ids(f"cityscapes_instance_{split}")
        found = [ids(f"cityscapes_instance_{split}_part{k}of{parts}") for k in range(1, parts + 1)]
        assert sorted(name for part in found for name in part) == whole
    # 5 images of one city in 4 parts: 2 1 1 1.
    val = DatasetCatalog.get("cityscapes_instance_val")
    assert DatasetCatalog.get("cityscapes_instance_val_part1of4") == val[:2]
    assert DatasetCatalog.get("cityscapes_instance_val_part3and4of4") == val[3:]


@pytest.mark.usefixtures("root")
def test_detectron2_names_load_through_this_project():
    for split in ["train", "val", "test"]:
        ours = DatasetCatalog.get(f"cityscapes_instance_{split}")
        assert DatasetCatalog.get(f"cityscapes_fine_instance_seg_{split}") == ours
    (annotation,) = DatasetCatalog.get("cityscapes_fine_instance_seg_train")[0]["annotations"]
    assert annotation["bbox_mode"] == BoxMode.XYXY_ABS
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
    assert box == (10, 10, 11, 11)


def test_test_split_has_images_and_no_labels(root):
    for name in ["cityscapes_instance_test", "cityscapes_fine_sem_seg_test"]:
        (image,) = DatasetCatalog.get(name)
        assert set(image) == {"file_name", "image_id", "height", "width"}
        assert MetadataCatalog.get(name).get("gt_dir") is None
        assert MetadataCatalog.get(name).image_dir == f"{root}/cityscapes/leftImg8bit/test"


def test_metadata(root):
    for name in INSTANCE_NAMES:
        metadata = MetadataCatalog.get(name)
        split = next(word for word in ["train", "val", "test"] if word in name)
        assert metadata.evaluator_type == "cityscapes_instance"
        assert metadata.image_dir == f"{root}/cityscapes/leftImg8bit/{split}"
        gt_dir = None if split == "test" else f"{root}/cityscapes/gtFine/{split}"
        assert metadata.get("gt_dir") == gt_dir
        assert metadata.thing_classes[2] == "car" and len(metadata.thing_classes) == 8
        assert metadata.thing_colors[0] == (220, 20, 60)
        assert metadata.thing_dataset_id_to_contiguous_id[33] == 7
    for name in SEMANTIC_NAMES:
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "cityscapes_sem_seg"
        assert metadata.ignore_label == 255
        assert metadata.stuff_classes[13] == "car" and len(metadata.stuff_classes) == 19
        assert metadata.stuff_colors[0] == (128, 64, 128)
    coarse = MetadataCatalog.get("cityscapes_coarse_semantic_pretrain")
    assert coarse.gt_dir == f"{root}/cityscapes/gtCoarse/train_extra"


def test_a_city_of_train_is_found_there(tmp_path: Path, write_scene):
    # As in the official release, where Bremen is in train and the other four are in train_extra.
    for city in ["augsburg", "dortmund", "dresden", "wuppertal"]:
        write_scene(tmp_path, "train_extra", city, 0, [], "gtCoarse")
    write_scene(tmp_path, "train", "bremen", 0, [], "gtCoarse")
    register_all(str(tmp_path))
    found = ids("cityscapes_coarse_semantic_pretrain")
    assert sorted(name.split("_")[0] for name in found) == COARSE_CITIES[:5]
    assert ids("cityscapes_coarse_semantic_dresden") == ["dresden_000000_000019_leftImg8bit.png"]


def test_registering_again_and_elsewhere(root, tmp_path, write_scene):
    register_all(root)
    assert len(DatasetCatalog.get("cityscapes_instance_val")) == 5
    other = tmp_path / "other"
    write_scene(other, "val", "munster", 7, [])
    register_all(str(other))
    assert ids("cityscapes_instance_val") == ["munster_000007_000019_leftImg8bit.png"]
    for name in ["cityscapes_instance_val", "cityscapes_fine_instance_seg_val"]:
        assert MetadataCatalog.get(name).gt_dir == f"{other}/cityscapes/gtFine/val"


def test_registering_reads_nothing(tmp_path):
    register_all(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: no such folder, on the way to"):
        DatasetCatalog.get("cityscapes_instance_val")


def test_empty_part_is_named(tmp_path, write_scene):
    write_scene(tmp_path, "val", "lindau", 0, [])
    register_all(str(tmp_path))
    with pytest.raises(
        InputError, match=r"^cityscapes_instance_val_part2of4: part 2 of 4 is empty.* in .*/val$"
    ):
        DatasetCatalog.get("cityscapes_instance_val_part2of4")


@pytest.mark.usefixtures("root")
def test_subsets():
    name = "cityscapes_instance_train_sample"
    try:
        for size in [4, 3]:
            register_subset(name, "cityscapes_instance_train", size, seed=1)
            images = DatasetCatalog.get(name)
            assert len(images) == size
            whole = DatasetCatalog.get("cityscapes_instance_train")
            assert [image for image in whole if image in images] == images
        base = MetadataCatalog.get("cityscapes_instance_train").as_dict()
        assert MetadataCatalog.get(name).as_dict() == {**base, "name": name}
        register_subset(name, "cityscapes_instance_train", 10)
        with pytest.raises(InputError, match=f"{name}: a subset of 10 images cannot be taken from"):
            DatasetCatalog.get(name)
        with pytest.raises(InputError, match="needs a name of its own"):
            register_subset(name, name, 3)
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


@pytest.mark.usefixtures("root")
def test_unknown_names():
    check_dataset_names([])
    check_dataset_names(["cityscapes_instance_val", "coco_2017_val"])
    with pytest.raises(
        InputError, match=r"'cityscapes_instance_vall'; did you mean cityscapes_ins"
    ):
        check_dataset_names(["cityscapes_instance_val", "cityscapes_instance_vall"])
    with pytest.raises(InputError, match=r"^unknown dataset 'x'; \(datasets/README.md"):
        check_dataset_names(["x"])


def test_dataset_root(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert dataset_root() == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert dataset_root() == os.path.expanduser("~/data")  # noqa: PTH111
