from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from cityscapes_maskrcnn.data.tree import (
    CITIES,
    dataset_root,
    find_images,
    image_name,
    is_generated,
    require_folder,
    tree_folder,
)
from cityscapes_maskrcnn.utils.errors import InputError


def test_dataset_root(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert dataset_root() == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert dataset_root() == os.path.expanduser("~/data")  # noqa: PTH111


def test_official_cities():
    numbers = {split: len(cities) for split, cities in CITIES.items()}
    assert numbers == {"train": 18, "val": 3, "test": 6, "train_extra": 23}
    assert len({city for cities in CITIES.values() for city in cities}) == 50


@pytest.mark.parametrize(
    ("file", "suffix", "name"),
    [
        ("/a/ulm_000003_000019_leftImg8bit.png", "_leftImg8bit.png", "ulm_000003_000019"),
        ("new_york_000000_000019_leftImg8bit.png", "_leftImg8bit.png", "new_york_000000_000019"),
        ("a_0_1_night_leftImg8bit.png", "_leftImg8bit.png", "a_0_1_night"),
        ("a_0_1_leftImg8bit_foggy_beta_0.02.png", "_leftImg8bit_foggy_beta_0.02.png", "a_0_1"),
        ("x/photo 0.1.JPG", ".JPG", "photo 0.1"),
        ("a_0_1_leftImg8bit_foggy_beta_0.01.png", "_leftImg8bit_foggy_beta_0.02.png", None),
        ("photo.jpg", ".JPG", None),
        ("_leftImg8bit.png", "_leftImg8bit.png", None),
        ("photo.png", "", None),
    ],
)
def test_an_image_is_its_name_without_suffix(file: str, suffix: str, name: str | None) -> None:
    if name is not None:
        assert image_name(file, suffix) == name
    else:
        with pytest.raises(InputError, match=f"{file}: its name does not end in {suffix}; reg"):
            image_name(file, suffix)


def test_strange_files_between_the_images_are_left_alone(tmp_path, write_scene):
    write_scene(tmp_path, "val", "ulm", 3, [])
    images = tmp_path / "cityscapes/leftImg8bit/val"
    for name in [".DS_Store", "notes.txt", "ulm/._ulm_000003_000019_leftImg8bit.png", "ulm/a.txt"]:
        (images / name).touch()
    (images / ".hidden").mkdir()
    assert find_images(str(images)) == ["ulm/ulm_000003_000019_leftImg8bit.png"]


def test_upper_and_lower_case_mixed(tmp_path: Path) -> None:
    (tmp_path / "ulm").mkdir()
    for name in ("a.JPG", "b.jpg", "c.Jpg", "d.jpeg"):
        (tmp_path / "ulm" / name).touch()
    message = r"1 images end in .JPG, 2 in other upper and lower case, such as ulm/b.jpg; rename"
    with pytest.raises(InputError, match=message):
        find_images(str(tmp_path), image_suffix=".JPG")


def test_missing_and_double_images(tmp_path):
    images = tmp_path / "cityscapes/leftImg8bit/val"
    message = f"{tmp_path}/cityscapes: no such folder, so .* cannot be read.*DETECTRON2"
    with pytest.raises(InputError, match=message):
        find_images(str(images))
    for city in ("ulm", "bonn"):
        (images / city).mkdir(parents=True)
    with pytest.raises(InputError, match=r"leftImg8bit/val/jena: no such folder \("):
        find_images(str(images), ["jena"])
    with pytest.raises(InputError, match=r"leftImg8bit/val: no images"):
        find_images(str(images))
    for city in ("ulm", "bonn"):
        (images / city / "ulm_000001_000019_leftImg8bit.png").touch()
    with pytest.raises(InputError, match=r"val: 2 images have the name ulm_000001_000019_leftImg"):
        find_images(str(images))


@pytest.mark.parametrize(
    ("tree", "root", "advice"),
    [
        ("a/cityscapes", "a/cityscapes", "set DETECTRON2_DATASETS={}/a;"),
        ("a/cityscapes", "a/cityscapes/leftImg8bit", "set DETECTRON2_DATASETS={}/a;"),
        ("a/cityscapes", "a/cityscapes/gtFine/train/aachen", "set DETECTRON2_DATASETS={}/a;"),
        ("a/cityscapes", "", "set DETECTRON2_DATASETS={}/a;"),
        # An archive unpacked into a folder that was there.
        ("cityscapes/cityscapes", "", "set DETECTRON2_DATASETS={}/cityscapes;"),
        ("cs", "", "rename {0}/cs to cityscapes and set DETECTRON2_DATASETS={0};"),
        ("cs", "cs", "rename {0}/cs to cityscapes and set DETECTRON2_DATASETS={0};"),
        # As a shell takes it.
        ("my data/cityscapes", "my data/cityscapes", "set DETECTRON2_DATASETS='{}/my data';"),
        ("cityscapes/zip", "", "move what is in {0}/cityscapes/zip to {0}/cityscapes;"),
        ("x/y/z/cityscapes", "", "set DETECTRON2_DATASETS to the folder that holds cityscapes/;"),
    ],
)
def test_training_and_the_check_give_the_same_advice(
    tmp_path: Path, tree: str, root: str, advice: str
) -> None:
    (tmp_path / tree / "leftImg8bit" / "val").mkdir(parents=True)
    given = tmp_path / root
    expected = f"\\({re.escape(advice.format(tmp_path))} datasets/README.md shows"
    with pytest.raises(InputError, match=f"no such folder.*{expected}"):
        tree_folder(given)
    with pytest.raises(InputError, match=f"no such folder.*{expected}"):
        find_images(f"{given}/cityscapes/leftImg8bit/val")


def test_the_root_is_not_blamed_for_what_was_not_unpacked(tmp_path: Path) -> None:
    tree = tmp_path / "cityscapes"
    (tree / "leftImg8bit" / "val" / "ulm").mkdir(parents=True)
    assert tree_folder(tmp_path) == tree
    for folder, package in [
        ("leftImg8bit/test", "leftImg8bit_trainvaltest.zip"),
        ("leftImg8bit/train_extra", "leftImg8bit_trainextra.zip"),
        ("gtFine/val", "gtFine_trainvaltest.zip"),
        ("gtCoarse/train_extra", "gtCoarse.zip"),
    ]:
        with pytest.raises(InputError, match=rf"\(unpack {package} into {tree}; datasets/README"):
            require_folder(tree / folder)
    with pytest.raises(InputError, match=r"no such folder \(datasets/README.md shows"):
        require_folder(tmp_path / "acdc")
    (tree / "leftImg8bit/val/ulm/photo.JPG").touch()
    with pytest.raises(InputError, match=r"val: no images; .*in it, found ulm/photo.JPG \(unpack"):
        find_images(f"{tree}/leftImg8bit/val")


def test_a_generated_set_is_known_by_its_folder(tmp_path: Path) -> None:
    def tree(name: str) -> Path:
        (tmp_path / name / "leftImg8bit").mkdir(parents=True)
        return tmp_path / name / "leftImg8bit" / "val"

    generated, real = tree("generated"), tree("real")
    generated.mkdir()
    real.mkdir()
    (tmp_path / "generated" / "synthetic.json").touch()
    assert is_generated(generated) and not is_generated(real)
    # The same images, kept beside other data.
    linked = tree("linked")
    linked.symlink_to(generated)
    assert is_generated(linked)
    # A whole generated set, one split of which is kept elsewhere.
    elsewhere = tree("elsewhere")
    elsewhere.symlink_to(shutil.copytree(real, tmp_path / "disk" / "images" / "val"))
    shutil.copy(tmp_path / "generated" / "synthetic.json", tmp_path / "elsewhere")
    assert is_generated(elsewhere)
