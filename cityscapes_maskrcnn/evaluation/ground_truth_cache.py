"""The ground truth of a whole split, ready for matching, kept in one file.

Decoding a ``*_instanceIds.png`` and finding its runs costs more than matching 60 predictions with
them. A cache file is only a copy (see :mod:`cityscapes_maskrcnn.data.array_cache`): every use
compares it with the PNG files by size, time and content, and reads again those that changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.array_cache import (
    build_lock,
    cache_file,
    pack_names,
    read_arrays,
    unpack_names,
    write_arrays,
)
from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS
from cityscapes_maskrcnn.evaluation.instance_ap import FIRST_INSTANCE_ID, GroundTruth, ground_truth
from cityscapes_maskrcnn.evaluation.result_files import read_instance_ids
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

_SIGNATURE: Final = "ground truth 1"


class _Stamp(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    mtime_ns: int
    digest: bytes


class _Entry(NamedTuple):
    stamp: _Stamp
    truth: GroundTruth


def read_ground_truth(
    gt_dir: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    num_workers: int | None = None,
) -> list[GroundTruth]:
    """Read ground truth through the cache file of its split.

    Any number of processes may call this at once: the first one decodes, the others wait for it.
    If the cache file cannot be written, that is logged and every call decodes again.

    Args:
        gt_dir: the split's folder, such as ``gtFine/val``; it has one cache file.
        files: ``*_instanceIds.png`` files below it; all of the split's or some.
        num_workers: processes for decoding what the cache does not have; default one per core.

    Returns:
        One per file, in their order.

    Raises:
        InputError: a file is missing, unreadable, or no image of instance ids.
    """
    names = [os.path.relpath(file, gt_dir) for file in files]
    stamps = [_stamp(Path(file)) for file in files]
    path = cache_file("-".join([*Path(gt_dir).absolute().parts[-2:], "truth"]), [gt_dir])
    known = read_arrays(path, _SIGNATURE, _unpack, warn=False) or {}
    if not _outdated(known, names, stamps):
        return [known[name].truth for name in names]
    with build_lock(path):
        known = read_arrays(path, _SIGNATURE, _unpack, warn=True) or {}
        changed = _outdated(known, names, stamps)
        if changed:
            read = map_in_parallel(
                _read, [str(files[i]) for i in changed], "Reading ground truth", num_workers
            )
            # Those of other images stay: a part of a split must not throw out the other parts.
            known |= {
                names[i]: _Entry(stamps[i], truth) for i, truth in zip(changed, read, strict=True)
            }
            write_arrays(path, _SIGNATURE, _pack(known))
    return [known[name].truth for name in names]


def _read(file: str) -> GroundTruth:
    try:
        return ground_truth(read_instance_ids(file))
    except InputError as error:
        raise error if file in str(error) else InputError(f"{file}: {error}") from error


def _stamp(file: Path) -> _Stamp:
    """Describe a file as it is now. Reading it takes a fraction of decoding it."""
    try:
        status = file.stat()
        digest = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError as error:
        raise InputError(f"cannot read the ground truth {file}: {error.strerror}") from error
    return _Stamp(status.st_size, status.st_mtime_ns, digest)


def _outdated(
    known: Mapping[str, _Entry], names: Sequence[str], stamps: Sequence[_Stamp]
) -> list[int]:
    """Which files the cache does not have as they are now."""
    return [
        index
        for index, (name, stamp) in enumerate(zip(names, stamps, strict=True))
        if name not in known or known[name].stamp != stamp
    ]


def _pack(known: Mapping[str, _Entry]) -> dict[str, npt.NDArray[Any]]:
    """Put all entries into flat arrays; the inverse of :func:`_unpack`."""
    truths = [entry.truth for entry in known.values()]
    rles = [rle for truth in truths for rle in truth.rles]

    def joined(name: str, dtype: npt.DTypeLike, shape: tuple[int, ...] = (0,)) -> npt.NDArray[Any]:
        parts = [getattr(truth, name).astype(dtype) for truth in truths]
        return np.concatenate([np.zeros(shape, dtype), *parts])

    return {
        "names": pack_names(list(known)),
        "stamps": np.array([entry.stamp[:2] for entry in known.values()], np.int64).reshape(-1, 2),
        "digests": np.frombuffer(b"".join(e.stamp.digest for e in known.values()), np.uint8),
        "sizes": np.array([(t.height, t.width) for t in truths], np.int64).reshape(-1, 2),
        "run_counts": np.array([len(truth.run_starts) for truth in truths], np.int64),
        "run_starts": joined("run_starts", np.int32),
        "run_codes": joined("run_codes", np.uint16),
        "counts": np.array([len(truth.ids) for truth in truths], np.int64),
        "ids": joined("ids", np.int64),
        "areas": joined("areas", np.int64),
        "boxes": joined("boxes", np.int64, (0, 4)),
        "rle_lengths": np.array([len(rle) for rle in rles], np.int64),
        "rles": np.frombuffer(b"".join(rles), np.uint8),
    }


def _unpack(packed: Mapping[str, npt.NDArray[Any]]) -> dict[str, _Entry]:
    # An npz file reads an array from the disk whenever it is asked for it.
    arrays = {name: packed[name] for name in packed}
    names = unpack_names(arrays["names"])
    stamps, digests = arrays["stamps"].tolist(), arrays["digests"].reshape(len(names), 16)
    ends = {
        name: np.concatenate([[0], np.cumsum(arrays[name])])
        for name in ("run_counts", "counts", "rle_lengths")
    }
    if not (
        len(stamps) == len(arrays["sizes"]) == len(arrays["run_counts"]) == len(names)
        and len(arrays["counts"]) == len(names)
        and ends["run_counts"][-1] == len(arrays["run_starts"]) == len(arrays["run_codes"])
        and ends["counts"][-1] == len(arrays["ids"]) == len(arrays["areas"])
        and len(arrays["ids"]) == len(arrays["boxes"]) == len(arrays["rle_lengths"])
        and ends["rle_lengths"][-1] == len(arrays["rles"])
    ):
        raise ValueError("its arrays do not fit together")
    rle_bytes, rle_ends = arrays["rles"].tobytes(), ends["rle_lengths"].tolist()
    rles = [rle_bytes[a:b] for a, b in pairwise(rle_ends)]
    ids = arrays["ids"]
    labels = np.where(ids < FIRST_INSTANCE_ID, ids, ids // 1000).tolist()
    categories = np.array([ID_TO_CONTIGUOUS[label] for label in labels], np.int64)
    entries = {}
    for index, name in enumerate(names):
        runs = slice(*ends["run_counts"][index : index + 2].tolist())
        mine = slice(*ends["counts"][index : index + 2].tolist())
        height, width = arrays["sizes"][index].tolist()
        truth = GroundTruth(
            height=height,
            width=width,
            run_starts=arrays["run_starts"][runs],
            run_codes=arrays["run_codes"][runs],
            ids=ids[mine],
            categories=categories[mine],
            areas=arrays["areas"][mine],
            boxes=arrays["boxes"][mine],
            rles=tuple(rles[mine]),
        )
        stamp = _Stamp(stamps[index][0], stamps[index][1], digests[index].tobytes())
        entries[name] = _Entry(stamp, truth)
    return entries
