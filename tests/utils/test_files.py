from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import csv_text, read_file, to_json


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file", max_bytes=5) == read_file(tmp_path / "link") == b"12345"
    with pytest.raises(InputError, match=r"file: 5 bytes; files of this kind have at most 4$"):
        read_file(tmp_path / "file", max_bytes=4)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pipe", "not a file, but a pipe or device"),
        ("zeros", "not a file, but a pipe or device"),
        ("folder", "cannot be read: Is a directory"),
        ("missing", "cannot be read: No such file or directory"),
        ("nothing\0", "not a valid file name: it holds a null byte or half of a character"),
        ("\ud83d", "not a valid file name: it holds a null byte or half of a character"),
        ("circle", "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_named_and_never_waited_for(
    tmp_path: Path, name: str, problem: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as error:
        read_file(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: {problem}"


def test_nan_becomes_null_wherever_it_stands() -> None:
    value = {"ap": math.nan, "rows": [{"ap": 1.5, "by_class": (math.nan, 2)}]}
    assert to_json(value) == '{"ap": null, "rows": [{"ap": 1.5, "by_class": [null, 2]}]}\n'


def test_a_table_leaves_empty_what_is_unknown() -> None:
    rows = [("a, b", 1, 0.5), (None, math.nan, np.float64("nan")), ("c", 0, np.float64(0.1))]
    assert csv_text(["x", "y", "z"], rows) == 'x,y,z\n"a, b",1,0.5\n,,\nc,0,0.1\n'
    assert csv_text(["x"], []) == "x\n"
