"""The cache of records: the same as the files, never older than they are, and never in the way."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from cityscapes_maskrcnn.data import cache
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
    assert [file.suffix for file in sorted(split.cache.parent.iterdir())] == [".cache", ".lock"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    split = Split(tmp_path / "a [1] city")
    half, other = (split.cache.with_name(f".{n}.abcd1234.tmp") for n in (split.cache.name, "x"))
    split.cache.parent.mkdir(parents=True, exist_ok=True)
    half.touch()
    other.touch()  # perhaps somebody writes it now
    split.load()
    assert (half.exists(), other.exists()) == (False, True)


def test_another_signature_or_layout_replaces_it_silently(
    split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    split.load()
    assert split.load(signature="other") == ["0", "1", "2"]
    narrow = {**TEMPLATE, "boxes": np.zeros((0, 4), np.float32)}
    assert split.load(signature="other", template=narrow) == ["0", "1", "2"]
    assert not caplog.records


def rewrite(path: Path, **arrays: np.ndarray) -> None:
    """Write a cache file again, some of its arrays replaced, with a checksum that fits."""
    content = safetensors.numpy.save({**safetensors.numpy.load(path.read_bytes()[32:]), **arrays})
    path.write_bytes(hashlib.sha256(content).digest() + content)


def rewrite_header(path: Path, old: bytes, new: bytes) -> None:
    """Write a cache file again, some text replaced by as long a one, with a fitting checksum."""
    content = path.read_bytes()[32:]
    assert old in content and len(old) == len(new)
    content = content.replace(old, new)
    path.write_bytes(hashlib.sha256(content).digest() + content)


def replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: rewrite(path, index=np.zeros(3, np.uint8)),
        lambda path: rewrite(path, index=np.frombuffer(b"[" * 100_000, np.uint8)),
        lambda path: rewrite(path, values=np.zeros(1, np.int64)),
        lambda path: rewrite(path, values=np.zeros(9, np.int32)),
        lambda path: rewrite(path, boxes=np.zeros((3, 5))),
        # A shape that is none, and lengths that do not add up or run backwards.
        lambda path: rewrite_header(path, b'"shape":[3,4]', b'"shape":[1e9]'),
        lambda path: rewrite_header(path, b"[[2, 3, 4],", b"[[9,9e9,4],"),
        lambda path: rewrite_header(path, b"[[2, 3, 4],", b"[[6, 4,-1],"),
        lambda path: rewrite_header(path, b'"lengths"', b'"weights"'),
        lambda path: os.truncate(path, 200),
    ],
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


def test_names_in_the_warning_show_their_invisible_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = Split(tmp_path / "new\x1b[2J  york")
    split.load()
    split.cache.write_bytes(b"")
    split.load()
    assert r"new\x1b[2J \x20york" in caplog.text and "\x1b" not in caplog.text


def test_a_pipe_in_the_place_of_the_cache_is_replaced(split: Split) -> None:
    split.load()
    replace_by_a_pipe(split.cache)
    assert split.load() == ["0", "1", "2"]
    assert split.load() == []


def test_any_flipped_bit_is_noticed(split: Split) -> None:
    split.load((0,))
    whole = split.cache.read_bytes()
    assert len(whole) < 1000
    index = json.loads(safetensors.numpy.load(whole[32:])["index"].tobytes())
    signature = index["signature"]
    assert len(cache._read(split.cache, signature, TEMPLATE, warn=False)) == 1
    for position in range(0, 8 * len(whole), 9):  # one bit of nearly every byte
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        split.cache.write_bytes(bytes(content))
        # Without the warnings and the reading that load_records adds.
        assert cache._read(split.cache, signature, TEMPLATE, warn=False) == {}
    split.cache.write_bytes(whole)
    assert split.load((0,)) == []


def test_folder_that_cannot_be_written(
    split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    split.cache = tmp_path / "file" / "cache" / "records.cache"
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
    assert file.name == "gtFine-train-instances-0e524f662f431322.cache"
    assert cache_file("/other/gtFine/train", "instances").name != file.name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_file("/x", "y").parent == Path("/home/me/.cache/cityscapes_maskrcnn")
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", "~/fast")
    assert cache_file("/x", "y").parent == Path("/home/me/fast")


def load_together(split: Split, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(split.load())


def test_of_many_processes_at_once_one_reads(split: Split) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=load_together, args=(split, barrier, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == [[], [], ["0", "1", "2"]]
    for process in processes:
        process.join()
