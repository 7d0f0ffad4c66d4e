from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.image_files import (
    find_images,
    ground_truth_of,
    make_folder,
    picture_files,
    write_picture,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "deep/c.jpeg", "deep/notes.txt", "x[1].png", "._b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_searched_to_the_bottom(folder):
    assert find_images([str(folder)]) == [
        folder / "a.JPG",
        folder / "b.png",
        folder / "deep/c.jpeg",
        folder / "x[1].png",
    ]


def test_patterns(folder):
    assert find_images([f"{folder}/*.png"]) == [folder / "b.png", folder / "x[1].png"]
    assert find_images([f"{folder}/**/*.jpeg"]) == [folder / "deep/c.jpeg"]


def test_an_existing_file_is_no_pattern(folder):
    assert find_images([f"{folder}/x[1].png"]) == [folder / "x[1].png"]


def test_every_image_once_in_the_order_given(folder):
    given = [f"{folder}/x[1].png", f"{folder}/b.png", f"{folder}/*.png"]
    assert find_images(given) == [folder / "x[1].png", folder / "b.png"]


def test_label_images_and_earlier_pictures_are_left_out(tmp_path):
    for kind in ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds", "gtFine_color"):
        (tmp_path / f"ulm_000000_000019_{kind}.png").touch()
    (tmp_path / "ulm_000000_000019_prediction.png").touch()
    assert find_images([str(tmp_path)]) == [tmp_path / "ulm_000000_000019_leftImg8bit.png"]


@pytest.mark.parametrize("given", ["missing.png", "*.png", "."])
def test_nothing_found(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--input"):
        find_images([given])


def test_pictures_are_named_after_their_images():
    images = [Path("a/ulm_000000_000019_leftImg8bit.png"), Path("1.jpg"), Path("b/1.png")]
    assert picture_files(images, Path("out"), "_prediction") == [
        Path("out/ulm_000000_000019_prediction.png"),
        Path("out/1_prediction.png"),
        Path("out/1_2_prediction.png"),
    ]


def test_no_two_pictures_share_a_name():
    images = [Path("a/1_2.png"), Path("a/1.png"), Path("b/1.png"), Path("c/1.png")]
    names = [path.name for path in picture_files(images, Path(), "")]
    assert names == ["1_2.png", "1.png", "1_3.png", "1_4.png"]


def test_pictures_are_written_as_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_picture(tmp_path / "p.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_output_folder_in_the_way_of_a_file(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(InputError, match=r"--output .*file"):
            make_folder(str(tmp_path / name))


def test_output_folder_may_exist(tmp_path):
    assert make_folder(str(tmp_path)) == tmp_path
    assert make_folder(str(tmp_path / "new/deep")).is_dir()


def write_scene(root: Path, split: str) -> Path:
    """Two cars, the first behind a pole that cuts it in two, and a group of persons."""
    stem = "ulm_000000_000019"
    image = root / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png"
    truth = root / "gtFine" / split / "ulm" / f"{stem}_gtFine_polygons.json"
    for path in (image, truth):
        path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((60, 100, 3), np.uint8)).save(image)
    objects = [
        {"label": "car", "polygon": [[5, 20], [60, 20], [60, 40], [5, 40]]},
        {"label": "pole", "polygon": [[30, 0], [34, 0], [34, 59], [30, 59]]},
        {"label": "car", "polygon": [[70, 20], [90, 20], [90, 40], [70, 40]]},
        {"label": "persongroup", "polygon": [[1, 1], [9, 1], [9, 9], [1, 9]]},
    ]
    truth.write_text(json.dumps({"imgHeight": 60, "imgWidth": 100, "objects": objects}))
    return image


def test_ground_truth_is_what_the_dataset_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", str(tmp_path / "cache"))
    image = write_scene(tmp_path, "val")
    (expected,) = load_instances(f"{tmp_path}/leftImg8bit/val", f"{tmp_path}/gtFine/val")
    found = ground_truth_of(image)
    assert found is not None
    assert (found["height"], found["width"]) == (60, 100)
    assert len(found["annotations"]) == 3
    assert sorted(len(each["segmentation"]) for each in found["annotations"]) == [1, 1, 2]
    assert found["annotations"] == expected["annotations"]


def test_relative_paths_find_their_ground_truth(tmp_path, monkeypatch):
    image = write_scene(tmp_path, "val")
    monkeypatch.chdir(image.parent)
    assert ground_truth_of(image.name) is not None


def test_no_ground_truth(tmp_path):
    # Of the test split the official files are placeholders.
    assert ground_truth_of(write_scene(tmp_path, "test")) is None
    assert ground_truth_of("somewhere.png") is None
    image = write_scene(tmp_path, "val")
    (tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_polygons.json").unlink()
    assert ground_truth_of(image) is None


def test_damaged_ground_truth(tmp_path):
    image = write_scene(tmp_path, "val")
    truth = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_polygons.json"
    truth.write_text(truth.read_text()[:50])
    with pytest.raises(InputError, match="ulm_000000_000019_gtFine_polygons"):
        ground_truth_of(image)
