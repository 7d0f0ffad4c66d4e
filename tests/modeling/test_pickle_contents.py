"""What is said of files of other programs, and of those made to cost memory or time."""

from __future__ import annotations

import argparse
import io
import pickle
import resource
import struct
import sys
import time
import types
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cityscapes_maskrcnn.modeling.safe_pickles import Unknown, load_arrays
from cityscapes_maskrcnn.modeling.weight_files import read_checkpoint
from cityscapes_maskrcnn.utils.errors import InputError


@contextmanager
def foreign_class(module: str, name: str) -> Iterator[type]:
    """A class of a package that is not installed, as long as the block lasts."""
    kind = type(name, (), {"__module__": module, "__qualname__": name})
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    with mock.patch.dict(sys.modules, {each: types.ModuleType(each) for each in names}):
        setattr(sys.modules[module], name, kind)
        yield kind


def mmdetection(path: Path, tensors: dict[str, Tensor]) -> None:
    with foreign_class("mmengine.logging.history_buffer", "HistoryBuffer") as history_buffer:
        history = history_buffer()
        history.values = np.zeros(3)
        content = {
            "meta": {"cfg": "model = dict()", "epoch": 12},
            "state_dict": tensors,
            "message_hub": {"log_scalars": {"loss": history}},
        }
        torch.save(content, path)


def lightning(path: Path, tensors: dict[str, Tensor]) -> None:
    content = {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": tensors,
        "hyper_parameters": {"root": PurePosixPath("data"), "seen": defaultdict(list, a=[1])},
    }
    torch.save(content, path)


def numpy_scalar(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"model": tensors, "best": np.float64(0.25)}, path)


def anything(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"model": tensors, "data": PurePosixPath("x"), "call": argparse.ArgumentError}, path)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (mmdetection, r"a checkpoint of MMEngine \(MMDetection 3\): .* objects of mmengine\."),
        (lightning, r"a checkpoint of PyTorch Lightning: it holds objects of pathlib\."),
        (
            numpy_scalar,
            r"it holds NumPy values \(numpy.*\); save them as Python numbers",
        ),
        (anything, r"not a checkpoint that can be loaded safely: it holds objects of pathlib\."),
    ],
)
def test_the_kind_of_a_foreign_file_is_named(
    tmp_path: Path,
    plain_tensors: dict[str, Tensor],
    write: Callable[[Path, dict[str, Tensor]], None],
    kind: str,
) -> None:
    path = tmp_path / "theirs.pth"
    write(path, plain_tensors)
    with pytest.raises(InputError, match=kind) as caught:
        read_checkpoint(path)
    assert f"tools/convert_weights.py --keep-names {path} weights.pth" in str(caught.value)
    content = read_checkpoint(path, skip_objects=True)
    assert content["model"].keys() == plain_tensors.keys()
    for name, tensor in plain_tensors.items():
        assert content["model"][name].dtype == tensor.dtype
        assert torch.equal(content["model"][name], tensor)
    if write is numpy_scalar:
        assert isinstance(content["best"], Unknown)


@pytest.mark.parametrize("skip_objects", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_whole_model_is_no_file_of_weights(
    tmp_path: Path, skip_objects: bool, zipped: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 3), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"whole pickled model.*modules\.linear\.Linear"):
        read_checkpoint(path, skip_objects=skip_objects)


def test_a_model_among_other_things_is_no_file_of_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": nn.Linear(2, 3)}, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"objects of torch\.nn\.modules\.linear"):
        read_checkpoint(tmp_path / "model.pth")
    with pytest.raises(InputError, match="holds a pickled model, not its weights; where its code"):
        read_checkpoint(tmp_path / "model.pth", skip_objects=True)


@pytest.mark.parametrize("skip_objects", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_tensors_lead_to_no_advice_that_does_not_help(
    tmp_path: Path,
    plain_tensors: dict[str, Tensor],
    per_channel: bool,
    zipped: bool,
    skip_objects: bool,
) -> None:
    ones = torch.ones(4, 4)
    value = (
        torch.quantize_per_channel(ones, torch.ones(4), torch.zeros(4), 0, torch.quint8)
        if per_channel
        else torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)
    )
    path = tmp_path / "model.pth"
    content = {"model": {**plain_tensors, "b.weight": value}, "data": PurePosixPath("x")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path, skip_objects=skip_objects)
    assert str(caught.value) == (
        f"{path}: not a checkpoint that can be loaded: it holds quantized tensors; save the "
        "weights from before they were quantized, with torch.save(model.state_dict(), "
        "'weights.pth')"
    )


def test_a_script_is_no_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2)), path)
    with pytest.raises(InputError, match="a TorchScript archive, which is a program; save its"):
        read_checkpoint(path, skip_objects=True)


def test_the_older_format_of_torch_is_read_and_its_objects_are_named(
    tmp_path: Path, plain_tensors: dict[str, Tensor]
) -> None:
    path = tmp_path / "old.pth"
    torch.save(plain_tensors, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path)["model"]["a.weight"], plain_tensors["a.weight"])
    content = {"model": plain_tensors, "data": PurePosixPath("x")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"objects of pathlib.*; where it was written, save its"):
        read_checkpoint(path)


def archive(path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
        file.writestr("archive/byteorder", "little")


def compressed(path: Path) -> None:
    archive(path, pickle.dumps({"a.weight": bytes(1 << 26)}, protocol=2), zipfile.ZIP_DEFLATED)


def overlapping(path: Path) -> None:
    """A megabyte that a thousand entries of the directory claim to be theirs."""
    archive(path, bytes(1 << 20))
    content = path.read_bytes()
    at = content.index(b"PK\1\2")
    end = content.index(b"PK\5\6")
    entries = content[at:end]
    size = struct.pack("<I", len(entries) * 1000)
    tail = content[end : end + 8] + struct.pack("<HH", 3000, 3000) + size + content[end + 16 :]
    path.write_bytes(content[:at] + entries * 1000 + tail)


def allocating(path: Path) -> None:
    # bytearray(10**10), which torch's own safe loading calls.
    archive(path, b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\xe4\x0b\x54\x02\x85R.")


def allocating_a_tensor(path: Path) -> None:
    # torch.Tensor(10**10), whose values are uninitialised memory
    archive(path, b"\x80\x02}U\x08a.weightctorch\nTensor\n\x8a\x05\0\xe4\x0b\x54\x02\x85Rs.")


def long_pickle(path: Path) -> None:
    archive(path, b"\x80\x02" + b"N0" * 2_000_000 + b"N.")


def many_files(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for number in range(40_000):
            target.writestr(f"a/data/{number}", b"")
        target.writestr("a/data.pkl", b"\x80\x02}.")


def small_file_large_view(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1).expand(10**6, 10**6)}, path)


def claims_of_the_older_format(path: Path) -> None:
    file = io.BytesIO()
    torch.save({"a.weight": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    # The numbers of elements, in the tensor's storage and its shape: 3 -> 2147483647
    path.write_bytes(file.getvalue().replace(b"K\x03", b"J\xff\xff\xff\x7f"))


BOMBS = [
    (compressed, "claims to unpack to 67108"),
    (overlapping, "claims to unpack to 1048"),
    (allocating, "objects of builtins.bytearray"),
    (allocating_a_tensor, "objects of torch.Tensor"),
    (long_pickle, "its values are too many"),
    (many_files, "an archive of 40001 files; at most 20000 are read"),
    (small_file_large_view, r"shape \(1000000, 1000000\), but the file does not store as many"),
    (claims_of_the_older_format, "damaged, or no file of torch.save"),
]


@pytest.mark.parametrize(("write", "message"), BOMBS)
def test_a_file_costs_no_more_than_its_size(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "bomb.pth"
    write(path)
    assert path.stat().st_size < 5_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(InputError, match=rf"bomb\.pth: .*{message}"):
        read_checkpoint(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_history_beside_the_weights_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "history.pth"
    torch.save({"model": {}, "losses": [index / 7 for index in range(600_000)]}, path)
    with pytest.raises(InputError, match="its values are too many, nested"):
        read_checkpoint(path)


def nested() -> dict[str, Any]:
    """A dictionary that 60 dictionaries lead to, each by two keys."""
    content: dict[str, Any] = {}
    for _ in range(60):
        content = {"a": content, "b": content}
    return content


TWICE = (
    b"h\0h\0\x86q\0"  # of what is in place 0 of the memo, a tuple of two: there, and on the stack
)


@pytest.mark.parametrize(
    "pickled",
    [
        # To hash the tuple of 2**40 would take hours, as would showing the others.
        b"\x80\x02}()q\0" + TWICE * 40 + b"\x85q\1h\1Nu.",
        pickle.dumps(nested(), protocol=2),
        b"\x80\x02}U\1x]q\0(" + 12 * b"h\0" + b"es.",
        b"\x80\x02}U\1x" + b"]" * 101 + b"a" * 100 + b"s.",
    ],
    ids=["tuples", "dictionaries", "in itself", "deep"],
)
def test_values_in_each_other_are_not_gone_through(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(pickled)
    archive(tmp_path / "a.pth", pickled)
    (tmp_path / "old.pth").write_bytes(pickled * 5)
    start = time.process_time()
    with pytest.raises(pickle.UnpicklingError, match="nested too deeply, or too of"):
        load_arrays(tmp_path / "a.pkl")
    for name in ("a.pth", "old.pth"):
        for skip_objects in (False, True):
            with pytest.raises(InputError, match=f"{name}: not a checkpoint: its values are too"):
                read_checkpoint(tmp_path / name, skip_objects=skip_objects)
    assert time.process_time() - start < 2


def test_objects_that_are_not_loaded_may_be_in_themselves(
    tmp_path: Path, plain_tensors: dict[str, Tensor]
) -> None:
    with foreign_class("omegaconf.dictconfig", "DictConfig") as config:
        parent, child = config(), config()
        parent.content, child.parent = {"child": child}, parent
        torch.save({"model": plain_tensors, "hyper_parameters": parent}, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt", skip_objects=True)
    assert isinstance(read["hyper_parameters"], Unknown)


def test_a_number_that_python_does_not_write(
    tmp_path: Path, plain_tensors: dict[str, Tensor]
) -> None:
    torch.save({"model": plain_tensors, "epoch": 10**5000}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: not a checkpoint: it is damaged, or no file of"):
        read_checkpoint(tmp_path / "a.pth")
