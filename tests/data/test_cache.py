"""The cache of records: the same as the files, never older than they are, and never in the way."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cityscapes_maskrcnn.data.cache import Record, Source, cache_file, load_records
from cityscapes_maskrcnn.utils.errors import InputError

TEMPLATE: Record = {"values": np.zeros(0, np.int64), "boxes": np.zeros((0, 4))}


def read(path: str) -> Record:
    """Of a file with two numbers: that many values, and that many boxes."""
    values, boxes = map(int, Path(path).read_text().split())
    return {"values": np.arange(values), "boxes": np.full((boxes, 4), float(boxes))}


class Split:
    """Three files of a folder and the cache of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = cache_file(folder, "records")
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.txt").write_text(f"{number + 2} {number}")

    def load(self, numbers: Iterable[int] = (0, 1, 2), **changes: Any) -> list[str]:
        """Load records and compare them with the files.

        Returns:
            Names of the files that were read.
        """
        was_read = []

        def spy(path: str) -> Record:
            was_read.append(Path(path).stem)
            return read(path)

        files = [self.folder / f"{number}.txt" for number in numbers]
        arguments = {
            "folder": self.folder,
            "sources": [Source(file.name, file.read_text()) for file in files],
            "read": spy,
            "template": TEMPLATE,
            "signature": "test",
            "description": "Reading",
        }
        records = load_records(self.cache, **(arguments | changes))
        for record, file in zip(records, files, strict=True):
            for name, expected in read(str(file)).items():
                np.testing.assert_array_equal(record[name], expected)
                assert record[name].dtype == expected.dtype
        return was_read


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return Split(tmp_path / "split")


def test_only_what_is_new_or_changed_is_read(split: Split) -> None:
    assert split.load((0, 1)) == ["0", "1"]
    # Another part of the split adds to the same file.
    assert split.load((1, 2)) == ["2"]
    assert split.load((2, 0)) == split.load() == []
    (split.folder / "1.txt").write_text("0 0")
    assert split.load() == ["1"]
    assert [file.suffix for file in sorted(split.cache.parent.iterdir())] == [".lock", ".npz"]


def test_another_signature_or_layout_replaces_it_silently(
    split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    split.load()
    assert split.load(signature="other") == ["0", "1", "2"]
    narrow = {**TEMPLATE, "boxes": np.zeros((0, 4), np.float32)}
    assert split.load(signature="other", template=narrow) == ["0", "1", "2"]
    assert not caplog.records


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def shorten_an_array(path: Path) -> None:
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "values": arrays["values"][:-1]})


def remove_an_array(path: Path) -> None:
    arrays = dict(np.load(path))
    del arrays["boxes"]
    np.savez(path, **arrays)


def hide_a_pickle(path: Path) -> None:
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "boxes": np.array([{"code": "would run"}], dtype=object)})


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, write_one_array, shorten_an_array, remove_an_array, hide_a_pickle],
)
def test_damaged_cache_is_ignored_with_a_warning_and_replaced(
    split: Split, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    split.load()
    damage(split.cache)
    assert split.load() == ["0", "1", "2"]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Ignoring the cache file {split.cache}, which cannot")
    assert split.load() == []


@pytest.mark.parametrize("bit", [0, 3, 6])
def test_any_flipped_bit_is_harmless(split: Split, bit: int) -> None:
    """``zipfile`` also raises NotImplementedError, RuntimeError and struct.error."""
    split.load()
    whole = split.cache.read_bytes()
    positions = np.random.default_rng(bit).choice(len(whole), 150, replace=False).tolist()
    for position in [*positions, *range(len(whole) - 80, len(whole))]:
        content = bytearray(whole)
        content[position] ^= 1 << bit
        split.cache.write_bytes(bytes(content))
        split.load()


def test_folder_that_cannot_be_written(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    split.cache = tmp_path / "file" / "cache" / "records.npz"
    assert split.load() == split.load() == ["0", "1", "2"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "Nothing can be cached" in caplog.text and "CITYSCAPES_MASKRCNN_CACHE" in caplog.text


def test_a_file_that_cannot_be_read_leaves_no_cache(split: Split) -> None:
    def refuse(path: str) -> Record:
        raise InputError(f"{path}: damaged")

    with pytest.raises(InputError, match=r"0\.txt: damaged"):
        split.load(read=refuse)
    assert not split.cache.exists()


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CITYSCAPES_MASKRCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    file = cache_file("/data/gtFine/train", "instances")
    assert file.parent == Path("/xdg/cityscapes_maskrcnn")
    # printf /data/gtFine/train | sha256sum
    assert file.name == "gtFine-train-instances-0e524f662f431322.npz"
    assert cache_file("/other/gtFine/train", "instances").name != file.name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_file("/x", "y").parent == Path("/home/me/.cache/cityscapes_maskrcnn")
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", "~/fast")
    assert cache_file("/x", "y").parent == Path("/home/me/fast")


LOAD = """
import sys
from pathlib import Path
import numpy as np
from cityscapes_maskrcnn.data.cache import Source, load_records
folder, cache = map(Path, sys.argv[1:])
def read(path):
    with (folder / "log").open("a") as log:
        log.write(path + "\\n")
    return {"values": np.arange(int(Path(path).read_text().split()[0]))}
print("ready", flush=True)
sys.stdin.readline()
records = load_records(
    cache, folder=folder, sources=[Source(f"{n}.txt", "") for n in range(3)], read=read,
    template={"values": np.zeros(0, np.int64)}, signature="test", description="")
print([len(record["values"]) for record in records])
"""


def test_of_many_processes_at_once_one_reads(split: Split) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(split.folder), str(split.cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:  # now let them go together
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert outputs == [("[2, 3, 4]\n", "")] * 3
    assert len((split.folder / "log").read_text().splitlines()) == 3
