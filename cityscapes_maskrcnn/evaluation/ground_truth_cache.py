"""The ground truth of a split, ready for matching, read through a cache file.

Decoding a ``*_instanceIds.png`` and finding its runs costs more than matching 60 predictions with
them. Every use compares the cache with the PNG files by size, time and content.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import numpy as np

from cityscapes_maskrcnn.data.cache import Record, Source, cache_file, file_stamp, load_records
from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.evaluation.instance_ap import GroundTruth, ground_truth
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_file

_NO_INSTANCES: Final[Record] = {
    "size": np.zeros(0, np.int64),  # height, width
    "run_starts": np.zeros(0, np.int32),
    "run_codes": np.zeros(0, np.uint16),
    "ids": np.zeros(0, np.int64),
    "categories": np.zeros(0, np.int64),
    "areas": np.zeros(0, np.int64),
    "boxes": np.zeros((0, 4), np.int64),
    "rle_lengths": np.zeros(0, np.int64),
    "rles": np.zeros(0, np.uint8),  # one after another
}


def read_ground_truth(
    gt_dir: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    num_workers: int | None = None,
) -> list[GroundTruth]:
    """Read ground truth through the cache file of its split.

    Args:
        gt_dir: the split's folder, such as ``gtFine/val``; it has one cache file.
        files: ``*_instanceIds.png`` files below it; all of the split's or some.
        num_workers: processes for decoding what the cache does not have; default one per core.

    Returns:
        One per file, in their order.

    Raises:
        InputError: a file is missing, unreadable, or no image of instance ids.
    """
    records = load_records(
        cache_file(gt_dir, "ground_truth"),
        folder=gt_dir,
        sources=[Source(os.path.relpath(file, gt_dir), _stamp(Path(file))) for file in files],
        read=_read,
        template=_NO_INSTANCES,
        signature="ground truth",
        description="Reading ground truth",
        num_workers=num_workers,
    )
    return [_unpack(record) for record in records]


def _stamp(file: Path) -> str:
    """Size, time and content; reading a file takes a fraction of decoding it."""
    digest = hashlib.blake2b(read_file(file), digest_size=16).hexdigest()
    return f"{file_stamp(file)} {digest}"


def _read(file: str) -> Record:
    try:
        found = ground_truth(read_instance_ids(file))
    except InputError as error:
        raise error if file in str(error) else InputError(f"{file}: {error}") from error
    content = {
        **vars(found),
        "size": np.array([found.height, found.width]),
        "rle_lengths": np.array([len(rle) for rle in found.rles], np.int64),
        "rles": np.frombuffer(b"".join(found.rles), np.uint8),
    }
    return {name: content[name].astype(empty.dtype) for name, empty in _NO_INSTANCES.items()}


def _unpack(record: Record) -> GroundTruth:
    arrays = dict(record)
    height, width = arrays.pop("size").tolist()
    ends = accumulate(arrays.pop("rle_lengths").tolist(), initial=0)
    rles = arrays.pop("rles").tobytes()
    return GroundTruth(
        height=height,
        width=width,
        rles=tuple(rles[start:stop] for start, stop in pairwise(ends)),
        **arrays,
    )
