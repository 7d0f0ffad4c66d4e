from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.image_files import (
    find_images,
    make_folder,
    picture_files,
    write_bgr_picture,
    write_picture,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "deep/c.jpeg", "deep/notes.txt", "x[1].png", "._b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([""], ["a.JPG", "b.png", "deep/c.jpeg", "x[1].png"]),
        (["*.png"], ["b.png", "x[1].png"]),
        (["**/*.jpeg"], ["deep/c.jpeg"]),
        # An existing file is no pattern; every image once, in the order given.
        (["x[1].png", "b.png", "*.png"], ["x[1].png", "b.png"]),
    ],
)
def test_folders_patterns_and_files(folder, given, names):
    assert find_images([f"{folder}/{each}" for each in given]) == [folder / name for name in names]


def test_label_images_and_earlier_pictures_are_left_out(tmp_path):
    kinds = ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds", "gtFine_color", "prediction")
    for kind in kinds:
        (tmp_path / f"ulm_000000_000019_{kind}.png").touch()
    assert find_images([str(tmp_path)]) == [tmp_path / "ulm_000000_000019_leftImg8bit.png"]


@pytest.mark.parametrize("extension", [".tif", ".TIFF", ".bmp", ".ppm"])
def test_images_that_cannot_be_read_are_left_out_of_folders(tmp_path, extension):
    """They would end the drawing of a folder half-way."""
    for name in ("a.png", f"b{extension}", "c.jpg"):
        (tmp_path / name).touch()
    for given in (str(tmp_path), f"{tmp_path}/*"):
        # A pattern names what lies in a folder, as the folder does.
        assert find_images([given]) == [tmp_path / "a.png", tmp_path / "c.jpg"]
    with pytest.raises(InputError) as caught:
        find_images([str(tmp_path / "a.png"), str(tmp_path / f"b{extension}")])
    assert str(caught.value) == (
        f"--input {tmp_path}/b{extension}: images of this type are not read; convert it to PNG, "
        "JPEG or WebP"
    )


@pytest.mark.parametrize("given", ["missing.png", "*.png", "."])
def test_nothing_found(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--input .*: no such file, and no image \(PNG, J"):
        find_images([given])


def test_pictures_are_named_after_their_images():
    images = [Path("a/ulm_000000_000019_leftImg8bit.png"), Path("1_2.png")]
    images += [Path(f"{folder}/1.jpg") for folder in "abc"]
    names = ["ulm_000000_000019", "1_2", "1", "1_3", "1_4"]
    assert picture_files(images, Path("out"), "_prediction") == [
        Path(f"out/{name}_prediction.png") for name in names
    ]


def test_pictures_are_written_as_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_picture(tmp_path / "p.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("order", [[2, 1, 0], [2, 1, 0, 3]])
def test_pictures_in_the_order_of_opencv(tmp_path, order):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, len(order)), dtype=np.uint8)
    write_bgr_picture(tmp_path / "p.png", picture)
    written = np.asarray(Image.open(tmp_path / "p.png"))
    np.testing.assert_array_equal(written, picture[..., order])


def test_output_folder(tmp_path):
    assert make_folder(tmp_path) == tmp_path
    assert make_folder(tmp_path / "new/deep").is_dir()
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(InputError, match=r"--output .*file"):
            make_folder(tmp_path / name)
