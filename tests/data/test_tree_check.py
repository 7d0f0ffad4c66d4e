from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.download import unpack
from cityscapes_maskrcnn.data.tree_check import SplitCheck, check_tree, format_checks
from cityscapes_maskrcnn.utils.errors import InputError

SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]
IMAGE = "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
STEM = "gtFine/val/ulm/ulm_000001_000019_gtFine_"
LABEL_IDS, INSTANCE_IDS = f"{STEM}labelIds.png", f"{STEM}instanceIds.png"
POLYGONS = f"{STEM}polygons.json"
OPTIONAL = "missing (only needed for some jobs: "


@pytest.fixture
def tree(tmp_path: Path, write_scene) -> Path:
    for number in range(3):
        write_scene(tmp_path, "val", "ulm", number, [("car", SQUARE)])
    return tmp_path / "cityscapes"


def check(tree: Path, name: str = "gtFine/val") -> SplitCheck:
    return next(c for c in check_tree(tree, allow_subset=True, num_workers=1) if c.name == name)


def test_whole_subset(tree):
    checks = {c.name: c for c in check_tree(tree, allow_subset=True)}
    assert checks.pop("gtFine/val") == SplitCheck("gtFine/val", 3, 3, 500, ())
    assert list(checks) == [
        *("gtFine/train", "gtFine/test"),
        *("gtCoarse/train", "gtCoarse/val", "gtCoarse/train_extra"),
    ]
    assert all(not c.problems and c.note.startswith(OPTIONAL) for c in checks.values())


def test_counts_and_sizes_of_the_official_release(tree):
    checks = {c.name: c for c in check_tree(tree)}
    assert [c.official for c in checks.values()] == [2975, 500, 1525, 2975, 500, 19998]
    assert checks["gtFine/train"].problems == (
        "missing; unpack leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip",
    )
    first = tree / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert checks["gtFine/val"].problems == (
        "3 images where the official release has 500",
        f"3 images are not 2048x1024 pixels, the first: {first} (128x64)",
    )
    assert checks["gtFine/train"].subset and checks["gtFine/val"].subset
    for name in ["gtFine/test", "gtCoarse/train", "gtCoarse/train_extra"]:
        assert not checks[name].problems and checks[name].note.startswith(OPTIONAL)


def test_test_split_needs_no_annotations_but_checks_those_it_has(tree, tmp_path, write_scene):
    annotation = write_scene(tmp_path, "test", "bonn", 0, [])
    assert check(tree, "gtFine/test") == SplitCheck("gtFine/test", 1, 1, 1525, ())
    for file in annotation.parent.iterdir():
        file.unlink()
    assert check(tree, "gtFine/test") == SplitCheck("gtFine/test", 1, 0, 1525, ())


def test_missing_partners_both_ways(tree):
    (tree / LABEL_IDS).unlink()
    (tree / INSTANCE_IDS).unlink()
    image = tree / "leftImg8bit/val/ulm/ulm_000002_000019_leftImg8bit.png"
    image.unlink()
    result = check(tree)
    assert (result.images, result.annotations) == (2, 2)
    assert result.problems == (
        "ulm/ulm_000001_000019: no annotation _gtFine_labelIds.png, _gtFine_instanceIds.png in "
        f"{tree}/gtFine/val",
        f"ulm/ulm_000002_000019: an annotation without image {image}",
    )


def test_coarse_data_uses_the_images_of_the_fine_data(tree, tmp_path, write_scene):
    # Of coarse polygons nothing is read: two points are no problem.
    write_scene(tmp_path, "val", "ulm", 1, [("car", SQUARE[:2])], "gtCoarse")
    result = check(tree, "gtCoarse/val")
    assert (result.images, result.annotations) == (3, 1)
    assert [text[:36] for text in result.problems] == [
        "ulm/ulm_000000_000019: no annotation",
        "ulm/ulm_000002_000019: no annotation",
    ]


def claim_a_hundred_thousand_pixels_a_side(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def save(*values: int, height: int = 64, dtype: type = np.uint8) -> Callable[[Path], None]:
    """Write an image 128 pixels wide that repeats these values."""
    pixels = np.resize(np.array(values, dtype), (height, 128))
    return lambda path: Image.fromarray(pixels).save(path)


def palette(path: Path) -> None:
    Image.open(path).convert("L").convert("P").save(path)


def replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (IMAGE, truncate, "truncated, or not an image"),
        (IMAGE, flip_a_byte, "truncated, or not an image"),
        (IMAGE, claim_a_hundred_thousand_pixels_a_side, "header says 100000x100000 pixels"),
        (IMAGE, lambda path: path.write_text("<html>log in first</html>"), "truncated, or not"),
        (IMAGE, replace_by_a_pipe, "not a file, but a pipe or device"),
        (IMAGE, save(0), "an 8 bit RGB image is expected, not mode L"),
        (LABEL_IDS, truncate, "truncated, or not an image"),
        (LABEL_IDS, claim_a_hundred_thousand_pixels_a_side, "header says 100000x100000 pixels"),
        (LABEL_IDS, save(7, height=32), "128x32 pixels, but its image is 128x64"),
        (LABEL_IDS, save(7, 34), "34 is no official label id (0 to 33)"),
        # Refused in training and scoring too.
        (LABEL_IDS, save(7, dtype=np.uint16), "one channel of 8 bits"),
        (INSTANCE_IDS, palette, "one channel of 8 or 16 bits is expected"),
        (LABEL_IDS, lambda path: Image.new("RGB", (128, 64)).save(path), "one channel"),
        # A road has no instances.
        (INSTANCE_IDS, save(7, 26, 26003, 7001, dtype=np.uint16), "unknown ids [7001]"),
        (POLYGONS, truncate, "not a complete JSON file"),
        (POLYGONS, replace("car", "cat"), "unknown label 'cat'"),
        (POLYGONS, replace("128", "120"), "120x64 pixels, but its image is 128x64"),
        (POLYGONS, replace("[10, 20]", "[10]"), "objects[0]: its polygon must be a list of"),
        (POLYGONS, replace('"car"', "null"), "objects[0]: its label must be a name, such as 'car'"),
        (POLYGONS, replace_by_a_pipe, "not a file, but a pipe or device"),
        (POLYGONS, replace('"label"', '"deleted": 1, "label"'), "has 26000 (car), the polygons h"),
        (POLYGONS, replace(", [20, 20], [10, 20]", ""), "not a list of three or more"),
    ],
)
def test_damaged_file_is_named(tree, file, damage, message):
    assert not check(tree).problems
    damage(tree / file)
    (problem,) = check(tree).problems
    assert problem.startswith(f"{tree / file}: ")
    assert message in problem


def test_image_of_another_size_than_its_three_annotations(tree):
    Image.new("RGB", (100, 64)).save(tree / IMAGE)
    problems = check(tree).problems
    assert len(problems) == 3
    assert all(text.endswith("128x64 pixels, but its image is 100x64") for text in problems)


def test_tree_without_images(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no images"):
        check_tree(tmp_path)


def test_names_in_the_table_show_their_invisible_characters():
    check = SplitCheck("gtFine/val", 0, 0, 500, ("u\x1b[2Jlm/new  york\u200b: bad",))
    assert format_checks([check]).splitlines()[-1] == r"  u\x1b[2Jlm/new \x20york\u200b: bad"


def test_table():
    checks = [
        SplitCheck("gtFine/train", 2975, 2975, 2975, ()),
        SplitCheck("gtFine/val", 500, 499, 500, tuple(f"file {i}: bad" for i in range(12))),
        SplitCheck("gtFine/test", 1525, 0, 1525, ("file: bad",)),
        SplitCheck("gtCoarse/train_extra", 0, 0, 19998, (), "missing"),
    ]
    assert format_checks(checks, most=2).splitlines() == [
        "split                  images  annotations  official  result",
        "gtFine/train             2975         2975      2975  ok",
        "gtFine/val                500          499       500  12 problems",
        "gtFine/test              1525            0      1525  1 problem",
        "gtCoarse/train_extra        0            0     19998  missing",
        "",
        "gtFine/val:",
        "  file 0: bad",
        "  file 1: bad",
        "  ... and 10 more",
        "",
        "gtFine/test:",
        "  file: bad",
    ]


# Unpacking -----------------------------------------------------------------------------------


def pack(archive: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(archive, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    return archive


def test_unpacking_continues_where_it_stopped(tmp_path):
    first, folder = "gtFine/val/ulm/a.png", tmp_path / "cityscapes"
    files = {"gtFine/": b"", first: b"12345", "gtFine/val/ulm/b.png": b"678", "README": b""}
    archive = pack(tmp_path / "gtFine.zip", **files)
    assert unpack(archive, folder) == 3
    assert unpack(archive, folder) == 0
    (folder / first).write_bytes(b"12")
    assert unpack(archive, folder) == 1
    assert (folder / first).read_bytes() == b"12345"


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "gtFine/../../outside.png"])
def test_unpacking_stays_inside_the_folder(tmp_path, name):
    unpack(pack(tmp_path / "evil.zip", **{name: b"1"}), tmp_path / "a" / "b")
    (found,) = tmp_path.rglob("outside.png")
    assert found.is_relative_to(tmp_path / "a" / "b")


def test_unpacking_damaged_archives(tmp_path):
    archive = pack(tmp_path / "gtFine.zip", **{"a.png": b"0123456789"})
    flipped = archive.read_bytes().replace(b"0123456789", b"1123456789")
    for content in (flipped, b"<html>log in first</html>"):
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"gtFine.zip: damaged .*download again"):
            unpack(archive, tmp_path)
