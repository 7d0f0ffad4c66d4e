"""The mean of a run's last checkpoints, which often scores better than each of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cityscapes_maskrcnn.data.provenance import (
    SEEN_IMAGES_KEY,
    UsedData,
    merge,
    read_history,
    to_plain,
)
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY, parent_of, parents_in
from cityscapes_maskrcnn.modeling.weight_files import check_values, read_checkpoint
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Average the weights of checkpoints of one run, all alike, running no code from them.

    Stochastic weight averaging of Izmailov et al., "Averaging Weights Leads to Wider Optima and
    Better Generalization" (UAI 2018), but that running statistics of live BatchNorm are averaged
    too, and not measured anew.

    Args:
        paths: at least two files.

    Returns:
        ``model``, the tensors by name, each of the type that it has in the last file; integers,
        such as the number of batches that BatchNorm has seen, are those of the last file. Also what
        the run has seen until any of them, and where they come from: the files are the nearest
        parents.

    Raises:
        InputError: there are fewer, two are of the same iteration, one cannot be read, they differ
            in names or shapes of tensors or are known to be of different runs, or hold values that
            are not finite.
    """
    if len(paths) < 2:
        raise InputError("an average needs at least two checkpoints")
    sums: dict[str, Tensor] = {}
    content: dict[str, Any] = {}
    history: tuple[UsedData, ...] = ()
    parents: list[dict[str, str]] = []
    marks: dict[Any, str] = {}
    for path in paths:
        former, content = content, read_checkpoint(path, skip_objects=True)
        tensors = {name: each for name, each in content["model"].items() if torch.is_tensor(each)}
        content["model"] = tensors
        integers = {name for name, each in tensors.items() if not each.is_floating_point()}
        check_values(tensors, str(path), integers)
        digest = str(file_digest(Path(path)))
        # model_final.pth and the last periodic checkpoint may be of the same iteration.
        mark = content.get("iteration", digest)
        if mark in marks:
            raise InputError(
                f"{path}: has the same weights, or is of the same iteration, as {marks[mark]}; "
                "name one of them"
            )
        marks[mark] = str(path)
        if former:
            _check_same_run(former, content, (str(paths[0]), str(path)))
        for name in tensors.keys() - integers:
            sums[name] = sums.get(name, 0) + tensors[name].double()
        history = merge(history, read_history(content, str(path)))
        parents.append(parent_of(str(path), digest, content))
    average = {
        name: (sums[name] / len(paths)).to(last.dtype) if name in sums else last
        for name, last in content["model"].items()
    }
    result: dict[str, Any] = {"model": average}
    if history:
        result[SEEN_IMAGES_KEY] = to_plain(history)
    if isinstance(content.get(ORIGIN_KEY), dict):
        result[ORIGIN_KEY] = {
            **content[ORIGIN_KEY],
            "command": shlex.join(sys.argv),
            "parents": [*reversed(parents), *parents_in(content)],
        }
    return result


def _check_same_run(
    former: Mapping[str, Any], content: Mapping[str, Any], names: tuple[str, str]
) -> None:
    """Raise if two checkpoints are not of one run, as far as that is known."""
    first, path = names
    tensors, others = former["model"], content["model"]
    for name in [*tensors, *(each for each in others if each not in tensors)]:
        shape, other = (
            str(tuple(each[name].shape)) if name in each else "missing"
            for each in (tensors, others)
        )
        if shape != other:
            raise InputError(
                f"{path}: {name} is {other}, in {first} {shape}; only checkpoints of one run can be"
                " averaged"
            )
    origin, other_origin = former.get(ORIGIN_KEY), content.get(ORIGIN_KEY)
    if not (isinstance(origin, dict) and isinstance(other_origin, dict)):
        return
    for key in ("classes", "seed", "parents"):
        if origin.get(key) != other_origin.get(key):
            what = "weights that it started from" if key == "parents" else key
            raise InputError(
                f"{path}: is of another run than {first}: other {what}; the mean of different runs"
                " is no model"
            )
