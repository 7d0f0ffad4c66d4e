from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.download import unpack
from cityscapes_maskrcnn.data.tree_check import SplitCheck, check_tree, format_checks, tree_folder
from cityscapes_maskrcnn.utils.errors import InputError

SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]
IMAGE = "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
TRUTH = "gtFine/val/ulm/ulm_000001_000019_gtFine_"
ABSENT = "not there (only needed for some jobs: "


@pytest.fixture
def tree(tmp_path: Path, write_scene) -> Path:
    for number in range(3):
        write_scene(tmp_path, "val", "ulm", number, [("car", SQUARE)])
    return tmp_path / "cityscapes"


def check(tree: Path, name: str = "gtFine/val", **options) -> SplitCheck:
    return next(c for c in check_tree(tree, num_workers=1, **options) if c.name == name)


def test_whole_subset(tree):
    checks = check_tree(tree, allow_subset=True)
    assert [c.name for c in checks] == [
        *("gtFine/train", "gtFine/val", "gtFine/test"),
        *("gtCoarse/train", "gtCoarse/val", "gtCoarse/train_extra"),
    ]
    assert checks[1] == SplitCheck("gtFine/val", 3, 3, 500, ())
    others = [*checks[:1], *checks[2:]]
    assert all(not c.problems and c.note.startswith(ABSENT) for c in others)


def test_counts_and_sizes_of_the_official_release(tree):
    checks = {c.name: c for c in check_tree(tree, num_workers=1)}
    assert [c.official for c in checks.values()] == [2975, 500, 1525, 2975, 500, 19998]
    assert checks["gtFine/train"].problems == (
        "not there; unpack leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip",
    )
    first = tree / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert checks["gtFine/val"].problems == (
        "3 images where the official release has 500",
        f"3 images are not 2048x1024 pixels, the first: {first} (128x64)",
    )
    assert checks["gtFine/train"].subset and checks["gtFine/val"].subset
    for name in ["gtFine/test", "gtCoarse/train", "gtCoarse/train_extra"]:
        assert not checks[name].problems and checks[name].note.startswith(ABSENT)


def test_test_split_needs_no_annotations_but_checks_those_it_has(tree, tmp_path, write_scene):
    write_scene(tmp_path, "test", "bonn", 0, [])
    assert check(tree, "gtFine/test", allow_subset=True) == SplitCheck(
        "gtFine/test", 1, 1, 1525, ()
    )
    for file in (tree / "gtFine/test/bonn").iterdir():
        file.unlink()
    assert check(tree, "gtFine/test", allow_subset=True) == SplitCheck(
        "gtFine/test", 1, 0, 1525, ()
    )


def test_missing_partners_both_ways(tree):
    (tree / f"{TRUTH}labelIds.png").unlink()
    (tree / f"{TRUTH}instanceIds.png").unlink()
    (tree / "leftImg8bit/val/ulm/ulm_000002_000019_leftImg8bit.png").unlink()
    result = check(tree, allow_subset=True)
    assert (result.images, result.annotations) == (2, 2)
    assert result.problems == (
        "ulm/ulm_000001_000019: no annotation _gtFine_labelIds.png, _gtFine_instanceIds.png in "
        f"{tree}/gtFine/val",
        f"ulm/ulm_000002_000019: an annotation without image "
        f"{tree}/leftImg8bit/val/ulm/ulm_000002_000019_leftImg8bit.png",
    )


def test_coarse_data_uses_the_images_of_the_fine_data(tree, tmp_path, write_scene):
    write_scene(tmp_path, "val", "ulm", 1, [], "gtCoarse")
    result = check(tree, "gtCoarse/val", allow_subset=True)
    assert (result.images, result.annotations) == (3, 1)
    assert [text[:36] for text in result.problems] == [
        "ulm/ulm_000000_000019: no annotation",
        "ulm/ulm_000002_000019: no annotation",
    ]


def save(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path)


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


SMALL = np.zeros((32, 128), np.uint8)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (IMAGE, truncate, "not a whole PNG file"),
        (IMAGE, flip_a_byte, "not a whole PNG file"),
        (IMAGE, claim_a_hundred_thousand_pixels_a_side, "not a whole PNG file"),
        (f"{TRUTH}labelIds.png", claim_a_hundred_thousand_pixels_a_side, "not a whole PNG file"),
        (IMAGE, lambda path: path.write_bytes(b""), "not a whole PNG file"),
        (IMAGE, lambda path: path.write_text("<html>log in first</html>"), "not a whole PNG file"),
        (IMAGE, lambda path: save(SMALL, path), "an 8 bit RGB image is expected, not mode L"),
        (f"{TRUTH}labelIds.png", truncate, "not a whole PNG file"),
        (f"{TRUTH}instanceIds.png", truncate, "not a whole PNG file"),
        (f"{TRUTH}labelIds.png", lambda path: save(SMALL, path), "128x32 pixels, but its image is"),
        (f"{TRUTH}labelIds.png", lambda path: save(SMALL[:64] + 34, path), "unknown ids [34]"),
        (
            f"{TRUTH}labelIds.png",
            lambda path: save(np.zeros((64, 128, 3), np.uint8), path),
            "one c",
        ),
        (
            f"{TRUTH}instanceIds.png",
            lambda path: save(np.tile(np.array([7, 26, 26003, 7001], np.uint16), (64, 32)), path),
            "unknown ids [7001]",  # a road has no instances
        ),
        (f"{TRUTH}polygons.json", truncate, "not a complete JSON file"),
        (
            f"{TRUTH}polygons.json",
            lambda path: path.write_text(path.read_text().replace("car", "cat")),
            "unknown label 'cat'",
        ),
        (
            f"{TRUTH}polygons.json",
            lambda path: path.write_text(
                json.dumps({"imgHeight": 64, "imgWidth": 120, "objects": []})
            ),
            "120x64 pixels, but its image is 128x64",
        ),
        (
            f"{TRUTH}polygons.json",
            lambda path: path.write_text(path.read_text().replace("[10, 20]", "[10]")),
            "not a Cityscapes annotation",
        ),
    ],
)
def test_damaged_file_is_named(tree, file, damage, message):
    assert not check(tree, allow_subset=True).problems
    damage(tree / file)
    (problem,) = check(tree, allow_subset=True).problems
    assert problem.startswith(f"{tree / file}: ")
    assert message in problem


def test_image_of_another_size_than_its_three_annotations(tree):
    save(np.zeros((64, 100, 3), np.uint8), tree / IMAGE)
    problems = check(tree, allow_subset=True).problems
    assert len(problems) == 3
    assert all(text.endswith("128x64 pixels, but its image is 100x64") for text in problems)


def test_trees_without_images(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: no such folder"):
        tree_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{tmp_path}/cityscapes: no such folder"):
        tree_folder(tmp_path)
    (tmp_path / "leftImg8bit").mkdir()
    assert tree_folder(tmp_path) == tmp_path
    with pytest.raises(InputError, match=f"{tmp_path}: no images"):
        check_tree(tmp_path)


def test_table():
    checks = [
        SplitCheck("gtFine/train", 2975, 2975, 2975, ()),
        SplitCheck("gtFine/val", 500, 499, 500, tuple(f"file {i}: bad" for i in range(12))),
        SplitCheck("gtFine/test", 1525, 0, 1525, ("file: bad",)),
        SplitCheck("gtCoarse/train_extra", 0, 0, 19998, (), "not there"),
    ]
    assert format_checks(checks, most=2).splitlines() == [
        "split                  images  annotations  official  result",
        "gtFine/train             2975         2975      2975  ok",
        "gtFine/val                500          499       500  12 problems",
        "gtFine/test              1525            0      1525  1 problem",
        "gtCoarse/train_extra        0            0     19998  not there",
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


def test_unpacking_continues_where_it_stopped(tmp_path):
    archive, folder = tmp_path / "gtFine.zip", tmp_path / "cityscapes"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("gtFine/", b"")
        content.writestr("gtFine/val/ulm/a.png", b"12345")
        content.writestr("gtFine/val/ulm/b.png", b"678")
        content.writestr("README", b"")
    assert unpack(archive, folder) == 3
    assert (folder / "gtFine/val/ulm/a.png").read_bytes() == b"12345"
    assert unpack(archive, folder) == 0
    (folder / "gtFine/val/ulm/a.png").write_bytes(b"12")
    assert unpack(archive, folder) == 1
    assert (folder / "gtFine/val/ulm/a.png").read_bytes() == b"12345"


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "gtFine/../../outside.png"])
def test_unpacking_stays_inside_the_folder(tmp_path, name):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(name, b"1")
    unpack(archive, tmp_path / "a" / "b")
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob("a/*.png"))
    assert len(list(tmp_path.glob("a/b/**/outside.png"))) == 1


def test_unpacking_damaged_archives(tmp_path):
    archive = tmp_path / "gtFine.zip"
    archive.write_bytes(b"<html>log in first</html>")
    with pytest.raises(InputError, match=r"gtFine.zip: damaged .*download again"):
        unpack(archive, tmp_path)
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a.png", b"0123456789" * 10)
    flipped = archive.read_bytes().replace(b"0123456789" * 10, b"1123456789" * 10)
    archive.write_bytes(flipped)
    with pytest.raises(InputError, match=r"gtFine.zip: damaged"):
        unpack(archive, tmp_path)
