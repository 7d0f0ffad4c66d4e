from __future__ import annotations

from pathlib import Path

import pytest

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.yaml_files import read_yaml


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    file.write_text('A: &a [1, 2]\nB: {C: *a, D: ""}\n')
    assert read_yaml(file) == {"A": [1, 2], "B": {"C": [1, 2], "D": ""}}
    file.write_text("")
    assert read_yaml(file) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A: [1", "cannot be read: while parsing"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"A: !!python/object/apply:os.getcwd []", "cannot be read: could not determine"),
        (b"A: " + b"[" * 60 + b"]" * 60, "nested more than 50 levels deep in line 1"),
        (b"A: &a\n  B: *a", "the alias [*]a is part of itself"),
        # All but the last would be lost.
        (
            b"A: {B: 1}\nC: [A, A]\nA:\n  D: 2\n",
            "the key A is in one section twice, again in line 3",
        ),
        (b"A:\n- B: A\n  C: A\n  B: 1\n", "the key B is in one section twice, again in line 4"),
        # Half a million digits to the base of 60 would take a minute.
        (b"A:\n- 1" + b":1" * 500_000, "a number of 1000001 characters in line 2"),
        (b"A: 1" + b":1" * 200 + b".5", "a number of 403 characters in line 1"),
        (b"A: -0x" + b"f" * 5000, "a number of 5003 characters in line 1"),
        (b"A: 0b" + b"1" * 50_000, "a number of 50002 characters in line 1"),
        (b"#" * 1_048_577, "1048577 bytes; files of this kind have at most 1048576"),
    ],
)
def test_other_files_get_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(InputError, match=f"bad.yaml: {message}"):
        read_yaml(tmp_path / "bad.yaml")
