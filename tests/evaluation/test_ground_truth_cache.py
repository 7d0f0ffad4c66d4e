"""The ground truth's cache: the same as the files, and never older than they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.evaluation import ground_truth_cache
from cityscapes_maskrcnn.evaluation.ground_truth_cache import read_ground_truth
from cityscapes_maskrcnn.evaluation.instance_ap import ground_truth
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CITYSCAPES_MASKRCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(small_root: Path, tmp_path: Path) -> list[Path]:
    gt_dir = tmp_path / "gtFine" / "val"
    shutil.copytree(small_root / "cityscapes" / "gtFine" / "val", gt_dir)
    # No instances at all, of another size.
    empty = gt_dir / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png"
    empty.parent.mkdir()
    Image.fromarray(np.full((4, 5), 7, np.uint16)).save(empty)
    return sorted(gt_dir.glob("*/*_instanceIds.png"))


def read(files: list[Path]) -> list[str]:
    """Read through the cache and compare with the files' content.

    Returns:
        Names of the files that were decoded.
    """
    decoded = []

    def spy(file: str) -> object:
        decoded.append(Path(file).name)
        return read_instance_ids(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ground_truth_cache, "read_instance_ids", spy)
        found = read_ground_truth(files[0].parents[1], files, num_workers=1)
    for gt, file in zip(found, files, strict=True):
        for name, value in vars(ground_truth(read_instance_ids(file))).items():
            np.testing.assert_array_equal(getattr(gt, name), value, name)
    return decoded


def test_the_second_time_nothing_is_decoded(folder: Path, files: list[Path]) -> None:
    assert read(files) == [file.name for file in files]
    assert read(files[::-1]) == read(files[2:4]) == []
    assert len(list(folder.glob("gtFine-val-ground_truth-*.cache"))) == 1


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_changed_file_is_decoded_again(files: list[Path], keep_time: bool) -> None:
    read(files)
    ids = read_instance_ids(files[1]).copy()
    ids[:10] = 26123
    times = files[1].stat().st_atime_ns, files[1].stat().st_mtime_ns
    Image.fromarray(ids).save(files[1])
    if keep_time:
        os.utime(files[1], ns=times)
    assert read(files) == [files[1].name]


def test_missing_and_broken_files(folder: Path, files: list[Path]) -> None:
    files[3].write_bytes(files[3].read_bytes()[:60])
    with pytest.raises(InputError, match=f"{files[3].name}: truncated, or not an image"):
        read(files)
    files[3].unlink()
    with pytest.raises(InputError, match=f"{files[3].name}: cannot be read: No such file"):
        read(files)
    os.mkfifo(files[3])
    with pytest.raises(InputError, match=f"{files[3].name}: not a file, but a pipe or device"):
        read(files)
    files[3].unlink()
    Image.fromarray(np.full((4, 4), 34000, np.uint16)).save(files[3])
    with pytest.raises(InputError, match=rf"{files[3].name}: .* instance id 34000"):
        read(files)
    assert not list(folder.glob("*.cache"))
