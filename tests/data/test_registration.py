from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.data.registration import (
    check_dataset_names,
    register_all,
    register_datasets_of,
    register_subset,
    select_classes,
)
from cityscapes_maskrcnn.utils.errors import InputError

SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]
TRAIN_EXTRA = ["augsburg", "dortmund", "dresden", "wuppertal", "erlangen", "bayreuth"]


@pytest.fixture
def root(tmp_path: Path, write_scene) -> str:
    for number in range(9):
        write_scene(tmp_path, "train", ["aachen", "ulm"][number % 2], number, [("car", SQUARE)])
    for number in range(5):
        write_scene(tmp_path, "val", "lindau", number, [("bus", SQUARE)] * (number % 2))
    write_scene(tmp_path, "test", "berlin", 0, [])
    for city in TRAIN_EXTRA:
        write_scene(tmp_path, "train_extra", city, 0, [], "gtCoarse")
    # As in the official release, where Bremen is in train.
    write_scene(tmp_path, "train", "bremen", 0, [], "gtCoarse")
    write_scene(tmp_path, "train", "bremen", 0, [("car", SQUARE)])
    register_all(str(tmp_path))
    return str(tmp_path)


def ids(name: str) -> list[str]:
    return [image["image_id"] for image in DatasetCatalog.get(name)]


@pytest.mark.parametrize(
    ("prefix", "sizes", "folder"),
    [
        ("cityscapes_instance_", {"train": 10}, "gtFine/train"),
        (
            "cityscapes_instance_",
            {"val": 5, "val_part1and2of4": 3, "val_part3and4of4": 2},
            "gtFine/val",
        ),
        # 10 images in 8 parts, 5 images in 4 parts
        (
            "cityscapes_instance_train_part",
            {f"{part}of8": 2 if part <= 2 else 1 for part in range(1, 9)},
            "gtFine/train",
        ),
        (
            "cityscapes_instance_val_part",
            {f"{part}of4": 2 if part <= 1 else 1 for part in range(1, 5)},
            "gtFine/val",
        ),
        ("cityscapes_fine_instance_seg_", {"train": 10}, "gtFine/train"),
        ("cityscapes_fine_instance_seg_", {"val": 5}, "gtFine/val"),
        (
            "cityscapes_coarse_semantic_",
            {"pretrain": 5, "pretrain_val": 1, "train_extra": 6, "bayreuth": 1},
            "gtCoarse/train_extra",
        ),
        ("cityscapes_fine_semantic_", {"train": 10}, "gtFine/train"),
        ("cityscapes_fine_semantic_", {"val": 5}, "gtFine/val"),
        ("cityscapes_fine_sem_seg_", {"train": 10}, "gtFine/train"),
        ("cityscapes_fine_sem_seg_", {"val": 5}, "gtFine/val"),
    ],
)
def test_names_load_with_their_metadata(root, prefix, sizes, folder):
    for name, size in sizes.items():
        images = DatasetCatalog.get(prefix + name)
        assert len(images) == size
        metadata = MetadataCatalog.get(prefix + name)
        assert metadata.gt_dir == f"{root}/cityscapes/{folder}"
        assert metadata.image_dir == f"{root}/cityscapes/leftImg8bit/{folder.split('/')[1]}"
        assert metadata.thing_classes[2] == metadata.stuff_classes[13] == "car"
        assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (8, 19)
        assert metadata.thing_colors[0] == (220, 20, 60)
        assert metadata.stuff_colors[0] == (128, 64, 128)
        assert metadata.thing_dataset_id_to_contiguous_id[33] == 7
        if "instance" in prefix:
            assert all("annotations" in image for image in images)
            assert metadata.evaluator_type == "cityscapes_instance"
        else:
            assert all("sem_seg_file_name" in image for image in images)
            assert metadata.evaluator_type == "cityscapes_sem_seg"
            assert metadata.ignore_label == 255


@pytest.mark.parametrize(
    "name",
    [
        "cityscapes_instance_test",
        "cityscapes_fine_instance_seg_test",
        "cityscapes_fine_sem_seg_test",
    ],
)
def test_test_split_has_images_and_no_labels(root, name):
    (image,) = DatasetCatalog.get(name)
    assert set(image) == {"file_name", "image_id", "height", "width"}
    assert MetadataCatalog.get(name).get("gt_dir") is None
    assert MetadataCatalog.get(name).image_dir == f"{root}/cityscapes/leftImg8bit/test"


@pytest.mark.usefixtures("root")
def test_parts_make_up_the_split():
    for split, parts in [("train", 8), ("val", 4)]:
        found = [ids(f"cityscapes_instance_{split}_part{k}of{parts}") for k in range(1, parts + 1)]
        whole = ids(f"cityscapes_instance_{split}")
        assert sorted(name for part in found for name in part) == whole
    val = DatasetCatalog.get("cityscapes_instance_val")
    assert DatasetCatalog.get("cityscapes_instance_val_part1and2of4") == val[:3]
    assert DatasetCatalog.get("cityscapes_instance_val_part3and4of4") == val[3:]


@pytest.mark.usefixtures("root")
def test_a_city_of_train_is_found_there():
    cities = {name.split("_")[0] for name in ids("cityscapes_coarse_semantic_pretrain")}
    assert cities == {"augsburg", "bremen", "dortmund", "dresden", "wuppertal"}


def test_registering_elsewhere(root, tmp_path, write_scene):
    register_all(f"{root}/nowhere")  # reads nothing yet
    with pytest.raises(InputError, match=f"{root}/nowhere: no such folder, so .* cannot be read"):
        DatasetCatalog.get("cityscapes_instance_val")
    write_scene(tmp_path / "other", "val", "munster", 7, [])
    register_all(f"{root}/other")
    assert ids("cityscapes_instance_val") == ["munster_000007_000019_leftImg8bit.png"]
    for name in ["cityscapes_instance_val", "cityscapes_fine_instance_seg_val"]:
        assert MetadataCatalog.get(name).gt_dir == f"{root}/other/cityscapes/gtFine/val"
    with pytest.raises(
        InputError, match=r"^cityscapes_instance_val_part2of4: part 2 of 4 is empty.* in .*/val$"
    ):
        DatasetCatalog.get("cityscapes_instance_val_part2of4")


@pytest.mark.usefixtures("root")
def test_a_city_without_its_images_is_not_silently_left_out(root, caplog):
    shutil.rmtree(Path(root, "cityscapes", "leftImg8bit", "train", "ulm"))
    for _ in range(2):
        assert len(ids("cityscapes_instance_train")) == 6
    assert [record.getMessage() for record in caplog.records if "Reading" not in record.msg] == [
        f"cityscapes_instance_train: 6 images, but 4 more are annotated in {root}/cityscapes/"
        "gtFine/train, such as ulm/ulm_000001_000019: the dataset, and scores on it, are of a part"
        " of the split"
    ]
    caplog.clear()
    ids("cityscapes_instance_val")
    assert not caplog.records


def test_subsets():
    name, base = "cityscapes_instance_train_sample", "cityscapes_instance_train"
    try:
        for size in [4, 3]:
            register_subset(name, base, size, seed=1)
            images = DatasetCatalog.get(name)
            assert len(images) == size
            assert [image for image in DatasetCatalog.get(base) if image in images] == images
        metadata = MetadataCatalog.get(base).as_dict()
        assert MetadataCatalog.get(name).as_dict() == {**metadata, "name": name}
        register_subset(name, base, 11)
        with pytest.raises(InputError, match=f"{name}: a subset of 11 images cannot be taken from"):
            DatasetCatalog.get(name)
        with pytest.raises(InputError, match="needs a name of its own"):
            register_subset(name, name, 3)
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def test_some_classes_are_selected(tmp_path, write_scene):
    behind = [[0, 0], [40, 0], [40, 40], [0, 40]]
    write_scene(
        tmp_path,
        *("train", "ulm", 0),
        [("car", behind), ("bus", SQUARE), ("person", SQUARE), ("cargroup", SQUARE)],
    )
    write_scene(tmp_path, "test", "berlin", 0, [])
    register_all(str(tmp_path))
    train, sample = "cityscapes_instance_train", "cityscapes_instance_train_sample"
    register_subset(sample, train, 1)
    try:
        (whole,) = DatasetCatalog.get(train)
        assert [each["category_id"] for each in whole["annotations"]] == [2, 2]
        # Their order does not matter, and a second call changes nothing.
        names = [train, sample, "cityscapes_instance_test", "cityscapes_fine_semantic_train"]
        for _ in range(2):
            select_classes(names, ("car", "person"))
        for name in (train, sample):
            (image,) = DatasetCatalog.get(name)
            assert image["annotations"] == [
                {**each, "category_id": 1} for each in whole["annotations"]
            ]
            metadata = MetadataCatalog.get(name)
            assert metadata.thing_classes == ["person", "car"]
            assert metadata.thing_colors == [(220, 20, 60), (0, 0, 142)]
            assert metadata.thing_dataset_id_to_contiguous_id == {24: 0, 26: 1}
            assert metadata.gt_dir.endswith("gtFine/train")
        assert len(DatasetCatalog.get("cityscapes_instance_test")) == 1
        with pytest.raises(InputError, match=f"DATASETS.CLASSES: {train} has no class 'cow', only"):
            select_classes([train], ("car", "cow"))
        with pytest.raises(InputError, match="coco_2017_val is not in the layout of Cityscapes"):
            select_classes(["coco_2017_val"], ("car",))
        register_all(str(tmp_path))
        assert DatasetCatalog.get(train) == [whole]
    finally:
        DatasetCatalog.pop(sample)
        MetadataCatalog.pop(sample)


def config(**datasets: object) -> CfgNode:
    """A config with these keys of ``DATASETS``."""
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.DATASETS.update(datasets)
    return cfg


@pytest.fixture
def own_train(root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CfgNode]:
    """The section ``DATASETS.OWN`` with a dataset ``own_train`` of one image."""
    monkeypatch.setenv("DETECTRON2_DATASETS", root)
    folders = {"IMAGE_DIR": "cityscapes/leftImg8bit/val", "GT_DIR": "cityscapes/gtFine/val"}
    yield CfgNode({"own_train": folders})
    for name in ("own_train", "by_hand"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def classes_of(name: str) -> tuple[list[str], set[int]]:
    """Names in a dataset's metadata, and the ids that its objects have."""
    objects = [each for image in DatasetCatalog.get(name) for each in image["annotations"]]
    return MetadataCatalog.get(name).thing_classes, {each["category_id"] for each in objects}


def test_every_config_chooses_its_classes(own_train: CfgNode) -> None:
    """One after the other in one process, of own datasets and of those of Cityscapes."""
    official = "cityscapes_instance_val"
    for _ in range(2):
        for chosen, expected in [
            (("bus", "car"), (["car", "bus"], {1})),
            (("bus",), (["bus"], {0})),
            ((), (list(THING_CLASSES), {4})),
        ]:
            cfg = config(OWN=own_train, TRAIN=("own_train",), TEST=(official,), CLASSES=chosen)
            for _ in range(2):
                register_datasets_of(cfg)
                assert classes_of("own_train") == classes_of(official) == expected
    register_datasets_of(config(TRAIN=("own_train",), CLASSES=("train",)))
    assert classes_of("own_train") == (["train"], set())
    register_datasets_of(config())
    assert classes_of("own_train")[0] == list(THING_CLASSES)


@pytest.mark.parametrize("key", ["TRAIN", "VAL", "TEST", "TUNED_ON"])
@pytest.mark.parametrize("classes", [(), ("car",)])
def test_names_of_a_config_are_known(own_train: CfgNode, key: str, classes: tuple[str]) -> None:
    """Outside the tools, too: one that is not would keep all its classes, or end in a KeyError."""
    with pytest.raises(InputError, match=r"unknown dataset 'own_trian'; did you mean own_train\?"):
        register_datasets_of(config(OWN=own_train, CLASSES=classes, **{key: ("own_trian",)}))


def test_official_datasets_of_a_config_are_registered(own_train: CfgNode) -> None:
    name = "cityscapes_instance_val"
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name)
    register_datasets_of(config(OWN=own_train, TEST=(name,), CLASSES=("bus",)))
    assert classes_of(name) == (["bus"], {0})


def test_a_choice_by_hand_outlives_that_of_a_config(own_train: CfgNode) -> None:
    register_datasets_of(config(OWN=own_train, CLASSES=("bus", "car", "rider")))
    register_subset("by_hand", "own_train", 5)
    assert classes_of("by_hand") == (["rider", "car", "bus"], {2})
    register_datasets_of(config(CLASSES=("bus", "person")))
    assert classes_of("by_hand") == classes_of("own_train") == (["person", "bus"], {1})
    select_classes(["by_hand"], ("bus", "car"))
    for classes in ((), ("car", "bus"), ("person",)):
        register_datasets_of(config(CLASSES=classes))
        # It has no person, and the config does not name it.
        assert classes_of("by_hand") == (["car", "bus"], {1})
    with pytest.raises(InputError, match=r"by_hand has no class 'person', only \['car', 'bus'\]"):
        register_datasets_of(config(CLASSES=("person",), TEST=("by_hand",)))


def test_classes_of_a_dataset_with_hardly_any_metadata(own_train: CfgNode) -> None:
    """As other code registers it for the official score."""
    register_datasets_of(config(OWN=own_train))
    DatasetCatalog.register("by_hand", DatasetCatalog["own_train"])
    metadata = MetadataCatalog.get("by_hand")
    metadata.set(evaluator_type="cityscapes_instance", json_file="all_classes.json")
    chosen = config(TRAIN=("by_hand",), CLASSES=("bus",))
    with pytest.raises(InputError, match=r"by_hand has no class 'bus', only \[\]"):
        register_datasets_of(chosen)
    metadata.thing_classes = list(THING_CLASSES)
    register_datasets_of(chosen)
    assert classes_of("by_hand") == (["bus"], {0})
    # Where Detectron2's COCOEvaluator has written the annotations.
    assert MetadataCatalog.get("by_hand").get("json_file") is None


@pytest.mark.parametrize("ids", [None, [0, 0, 0]])
def test_subsets_do_not_need_ids(ids: list[int] | None) -> None:
    """Of datasets that other code registers."""
    images = [{"file_name": f"/a/{name}.jpg"} for name in "xyz"]
    if ids is not None:
        images = [{**image, "image_id": each} for image, each in zip(images, ids, strict=True)]
    try:
        DatasetCatalog.register("own_photos", lambda: images)
        register_subset("own_sample", "own_photos", 2)
        found = DatasetCatalog.get("own_sample")
        assert len(found) == 2
        assert all(image in images for image in found)
        images.append({"file_name": "/b/x.jpg"})
        with pytest.raises(InputError, match=r"own_photos: 2 images have the name x.jpg; keep or"):
            DatasetCatalog.get("own_sample")
    finally:
        for name in ("own_photos", "own_sample"):
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)


@pytest.mark.usefixtures("root")
def test_unknown_names():
    check_dataset_names(["cityscapes_instance_val", "coco_2017_val"])
    with pytest.raises(
        InputError, match=r"'cityscapes_instance_vall'; did you mean cityscapes_ins"
    ):
        check_dataset_names(["cityscapes_instance_val", "cityscapes_instance_vall"])
    with pytest.raises(InputError, match=r"^unknown dataset 'x'; \(datasets/README.md"):
        check_dataset_names(["x"])
    with pytest.raises(InputError, match="unknown dataset 5;"):
        check_dataset_names([5])  # as DATASETS.TRAIN "(5,)" gives it
