"""Every violation is named; good submissions have none."""

from __future__ import annotations

import os
import resource
import stat
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.evaluation.submission_check import (
    ExpectedImage,
    Violation,
    check_submission,
    format_violations,
    read_image_list,
)
from cityscapes_maskrcnn.utils.errors import InputError

HEIGHT, WIDTH = 20, 30
ULM, BONN = "ulm_000001_000019", "bonn_000002_000019"
IMAGES = [ExpectedImage(ULM, HEIGHT, WIDTH), ExpectedImage(BONN, HEIGHT, WIDTH)]
TEXT = f"{ULM}_pred.txt"
Files = dict[str, bytes]


def png(values: np.ndarray | None = None, **save: object) -> bytes:
    if values is None:
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        values[3:9, 4:20] = 255
    stream = BytesIO()
    Image.fromarray(values).save(stream, format=str(save.pop("format", "PNG")))
    return stream.getvalue()


def good() -> Files:
    return {
        TEXT: b"car.png 26 0.9\nmasks/person.png 24.0 1e-3\n",
        "car.png": png(),
        "masks/person.png": png(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 7 == 0),
        f"{BONN}.txt": b"",
    }


def as_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.with_suffix(".zip")


@pytest.fixture(params=[as_folder, as_zip])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Files], list[Violation]]:
    return lambda files: check_submission(request.param(tmp_path / "s", files), IMAGES, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({f"{BONN}.txt": None}, [("missing text file", BONN, "")]),
        (
            {f"{BONN}_more.txt": b""},
            [("doubled text file", BONN, f"{BONN}.txt, {BONN}_more.txt")],
        ),
        (
            {"koeln_000000_000019.txt": b"", "notes.txt": b"hello\n"},
            [
                ("text file of no image", "koeln_000000_000019.txt", ""),
                ("text file of no image", "notes.txt", ""),
            ],
        ),
        (
            {f"{BONN}.txt": b"car.png 26 0.5\n./car.png 26 0.4\n"},
            [
                (
                    "mask used twice",
                    "car.png",
                    f"by {TEXT}, line 1; {BONN}.txt, line 1; {BONN}.txt, line 2",
                )
            ],
        ),
        (
            {"my car.png": png(), f"{BONN}.txt": b"my car.png 26 0.5\n"},
            [
                ("space in a path", "my car.png", ""),
                ("malformed line", f"{BONN}.txt, line 1", ""),
                ("missing mask", f"{BONN}.txt, line 1", "my"),
                ("unused file", "my car.png", ""),
            ],
        ),
        (
            {f"{BONN}.txt": None, f"results/{BONN}.txt": b""},
            [("text file in a folder", f"results/{BONN}.txt", "")],
        ),
        ({f"{BONN}.txt": b"\xff\xfe"}, [("unreadable text file", f"{BONN}.txt", "utf-8")]),
        ({"unused.png": png()}, [("unused file", "unused.png", "")]),
        ({"masks/person.png": png(np.zeros((9, 30), np.uint8))}, [
            ("mask of the wrong size", "masks/person.png", "30 x 9, the image is 30 x 20"),
        ]),
        ({"car.png": png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))}, [
            ("unreadable mask", "car.png", "RGB"),
        ]),
        ({"car.png": png(np.full((HEIGHT, WIDTH), 900, np.uint16))}, [
            ("unreadable mask", "car.png", "I;16"),
        ]),
        ({"car.png": png(format="JPEG")}, [("unreadable mask", "car.png", "no PNG file")]),
        ({"car.png": png()[:60]}, [("unreadable mask", "car.png", "")]),
        ({"car.png": png()[:-16] + bytes(4) + png()[-12:]}, [
            ("unreadable mask", "car.png", "broken PNG file"),
        ]),
        ({"car.png": png(np.arange(600).reshape(20, 30).astype(np.uint8))}, [
            ("mask that is not binary", "car.png", "it has 256 values: 0, 1, 2, 3, 4, 5, ..."),
        ]),
        ({"car.png": png(np.tile(np.uint8([1, 2]), (20, 15)))}, [
            ("mask that is not binary", "car.png", "it has 2 values: 1, 2"),
        ]),
        ({"car.png": png(np.zeros((HEIGHT, WIDTH), np.uint8))}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_files(
    check: Callable[[Files], list[Violation]],
    changes: dict[str, bytes | None],
    expected: list[tuple[str, str, str]],
) -> None:
    files = {
        name: content for name, content in {**good(), **changes}.items() if content is not None
    }
    found = check(files)
    assert [(each.kind, each.where) for each in found] == [each[:2] for each in expected]
    for each, (_, _, detail) in zip(found, expected, strict=True):
        assert detail in each.detail


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("car.png 26", [("malformed line", "'car.png 26'")]),
        ("car.png  26 0.5", [("malformed line", "'car.png  26 0.5'")]),
        ("", [("malformed line", "''"), ("unused file", "")]),
        ("car.png 13 0.5", [("unknown label", "13 is fence; if it is meant as a train id, car")]),
        ("car.png 7 0.5", [("unknown label", "7 is road, which is not scored")]),
        ("car.png 99 0.5", [("unknown label", "99")]),
        ("car.png car 0.5", [("unknown label", "car")]),
        ("car.png 26 high", [("confidence that is no number", "high")]),
        ("car.png 26 nan", [("confidence that is no number", "nan")]),
        ("/car.png 26 0.5", [("mask path outside", "/car.png"), ("unused file", "")]),
        ("C:/car.png 26 0.5", [("mask path outside", "C:/car.png"), ("unused file", "")]),
        ("masks/../../s/car.png 26 0.5", [("mask path outside", ""), ("unused file", "")]),
        ("..car.png 26 0.5", [("missing mask", "..car.png"), ("unused file", "")]),
        ("bus.png 26 0.5", [("missing mask", "bus.png"), ("unused file", "")]),
        ("masks/../car.png 26 0.5\r", []),
        ("car.png 99 nan", [("unknown label", "99"), ("confidence that is no number", "nan")]),
    ],
)
def test_lines(tmp_path: Path, line: str, expected: list[tuple[str, str]]) -> None:
    files = {**good(), TEXT: f"masks/person.png 24 0.5\n{line}\n".encode()}
    found = check_submission(as_zip(tmp_path / "s", files), IMAGES, 1)
    assert [each.kind for each in found] == [kind for kind, _ in expected]
    for each, (kind, detail) in zip(found, expected, strict=True):
        assert each.where == ("car.png" if kind == "unused file" else f"{TEXT}, line 2")
        assert detail in each.detail


def test_archives_that_bite(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "s", good())
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../evil.png", "/etc/evil.png", "..\\evil.png", "C:/evil.png"):
            archive.writestr(name, b"")
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("car.png", png())
    found = check_submission(path, IMAGES, 1)
    kinds = [each.kind for each in found if each.kind != "unused file"]
    assert kinds == ["unsafe path in the archive"] * 5 + ["doubled entry"]
    assert list(tmp_path.iterdir()) == [path]


def test_corrupt_archives(tmp_path: Path) -> None:
    content = as_zip(tmp_path / "s", good()).read_bytes()
    for keep in (0, 10, len(content) - 30):
        (tmp_path / "cut.zip").write_bytes(content[:keep])
        (violation,) = check_submission(tmp_path / "cut.zip", IMAGES, 1)
        assert violation.kind == "damaged archive"
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        offset = archive.getinfo("car.png").header_offset
    damaged = bytearray(content)
    damaged[offset + 30 + len("car.png") + 40] ^= 255
    (tmp_path / "s.zip").write_bytes(damaged)
    (violation,) = check_submission(tmp_path / "s.zip", IMAGES, 1)
    assert (violation.kind, violation.where) == ("unreadable mask", "car.png")
    assert "CRC" in violation.detail
    with pytest.raises(InputError, match=r"gone.zip: no such file or folder"):
        check_submission(tmp_path / "gone.zip", IMAGES)


def test_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(as_zip(tmp_path / "s", good()), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(65 * 2**20))
        archive.writestr(f"{ULM}_b.txt", b"bomb.png 26 0.5\n")
    kinds = {each.kind: each for each in check_submission(tmp_path / "s.zip", IMAGES, 1)}
    assert set(kinds) == {"doubled text file", "unreadable mask"}
    assert kinds["unreadable mask"].detail == (
        "68157440 bytes; files of this kind have at most 67936"
    )


def test_workers_find_the_same(tmp_path: Path) -> None:
    images = [ExpectedImage(f"ulm_{i:06}_000019", HEIGHT, WIDTH) for i in range(32 * 17)]
    files = {f"{image.name}.txt": b"" for image in images[:-1]}
    files[f"{images[5].name}.txt"] = b"car.png 26 nan\n"
    path = as_zip(tmp_path / "s", {**files, "car.png": png()})
    found = [check_submission(path, images, workers) for workers in (1, 2)]
    assert found[0] == found[1]
    assert [each.kind for each in found[0]] == ["missing text file", "confidence that is no number"]


def test_report_is_short_and_complete() -> None:
    violations = [Violation("missing text file", f"ulm_{i:06}_000019") for i in range(1500)]
    violations.append(Violation("unknown label", "a.txt, line 3", "99"))
    short = format_violations(violations)
    assert len(short.splitlines()) < 25
    assert "1,501 violations" in short
    assert "   1,500  missing text file" in short
    assert "... and 1,490 more" in short
    assert "  a.txt, line 3: 99" in short
    everything = format_violations(violations, None)
    assert all(each.where in everything for each in violations)
    assert format_violations([]) == "valid: no violations"


def test_image_list(tmp_path: Path) -> None:
    image = tmp_path / f"{ULM}_leftImg8bit.png"
    image.write_bytes(png())
    (tmp_path / "list.txt").write_text(f"{image}\n{BONN}\n\n")
    assert read_image_list(tmp_path / "list.txt") == [
        ExpectedImage(ULM, HEIGHT, WIDTH),
        ExpectedImage(BONN, 1024, 2048),
    ]
    (tmp_path / "list.txt").write_text("stuttgart_00_000000_000001\nphoto 0.02.jpg\n")
    assert read_image_list(tmp_path / "list.txt", ".jpg") == [
        ExpectedImage("stuttgart_00_000000_000001", 1024, 2048),
        ExpectedImage("photo 0.02", 1024, 2048),
    ]
    for content, message in [
        ("", "names no image"),
        ("a/photo.png", "a/photo.png is not the name of an image and does not end in _left"),
        (f"{ULM}\na/{ULM}_leftImg8bit.png", f"list.txt: 2 images have the name {ULM}"),
    ]:
        (tmp_path / "list.txt").write_text(content)
        with pytest.raises(InputError, match=message):
            read_image_list(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"gone.txt: cannot be read"):
        read_image_list(tmp_path / "gone.txt")


def test_entries_without_a_plain_name(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "s", good())
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("x", "./bus.png", "masks//bus.png", "masks/./bus.png"):
            archive.writestr(name, b"")
        archive.infolist()[-4].filename = ""  # as no program writes it, for the directory
    found = check_submission(path, IMAGES, 1)
    assert [(each.where, each.detail) for each in found if "unsafe" in each.kind] == [
        ("''", "an entry without a name"),
        ("./bus.png", ""),
        ("masks/./bus.png", ""),
        ("masks//bus.png", ""),
    ]


def test_encrypted_and_overlapping_entries(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "s", good())
    with zipfile.ZipFile(path, "a") as archive:
        car = archive.getinfo("car.png")
        car.flag_bits |= 1
        copy = zipfile.ZipInfo("masks/copy.png")
        for name in ("header_offset", "compress_size", "file_size", "CRC"):
            setattr(copy, name, getattr(archive.getinfo("masks/person.png"), name))
        # The directory is written anew: a thousand entries with the bytes of one.
        archive.filelist += [copy] * 1000
        archive._didModify = True
    kinds = {each.kind: each for each in check_submission(path, IMAGES, 1)}
    assert set(kinds) == {"damaged archive", "doubled entry", "unreadable mask", "unused file"}
    assert kinds["damaged archive"].detail == "its entries overlap"
    assert "encrypted" in kinds["unreadable mask"].detail


def test_a_mask_is_decoded_once_however_often_it_is_named(tmp_path: Path) -> None:
    """20,000 lines of one mask of 1024 x 2048: decoding it for each takes minutes."""
    image = ExpectedImage(ULM, 1024, 2048)
    files = {
        "car.png": png(np.full((1024, 2048), 255, np.uint8)),
        TEXT: b"car.png 26 0.5\n" * 20_000,
    }
    start = time.monotonic()
    (violation,) = check_submission(as_zip(tmp_path / "s", files), [image], 1)
    assert time.monotonic() - start < 2
    assert (violation.kind, violation.where) == ("mask used twice", "car.png")
    assert violation.detail == (
        f"by {TEXT}, line 1; {TEXT}, line 2; {TEXT}, line 3; and 19,997 more"
    )


def test_huge_and_endless_files(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "s", good())
    (folder / TEXT).write_bytes(bytes(60 * 2**20))
    (folder / f"{BONN}.txt").write_bytes(b"\n" * 1_000_000)
    (folder / "car.png").unlink()
    os.mkfifo(folder / "car.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / f"{ULM}_b.txt").write_text("car.png 26 0.5\nzero.png 26 0.5\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    found = check_submission(folder, IMAGES, 1)
    assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    details = {each.where: each.detail for each in found if each.kind.startswith("unreadable")}
    assert details == {
        TEXT: "62914560 bytes; files of this kind have at most 1048576",
        f"{BONN}.txt": "1,000 violations before line 1001: not read on",
        "car.png": "not a file, but a pipe or device",
        "zero.png": "not a file, but a pipe or device",
    }


def test_report_shows_control_characters_as_escapes() -> None:
    report = format_violations([Violation("unused file", "\x1b[31m.png", "\u202e")])
    assert "  \\x1b[31m.png: \\u202e" in report
