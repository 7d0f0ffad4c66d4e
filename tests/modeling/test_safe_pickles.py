"""What is read from pickles, and that pickles made to cost memory or time are not."""

from __future__ import annotations

import pickle
import resource
import time
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cityscapes_maskrcnn.modeling.safe_pickles import load_arrays
from cityscapes_maskrcnn.modeling.weight_files import read_checkpoint
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.mark.parametrize("protocol", [4, 5])
def test_tensors_of_later_protocols_are_read(
    tmp_path: Path, plain_tensors: dict[str, Tensor], protocol: int
) -> None:
    """Which torch.save writes if asked to, and torch's safe reader does not know."""
    path = tmp_path / "new.pth"
    torch.save({"model": plain_tensors, "iteration": 3}, path, pickle_protocol=protocol)
    content = read_checkpoint(path)
    assert content["iteration"] == 3
    assert content["model"].keys() == plain_tensors.keys()
    for name, tensor in plain_tensors.items():
        assert content["model"][name].dtype == tensor.dtype
        assert torch.equal(content["model"][name], tensor)
    # The module's name is in the pickle once, and taken from its memory for the second class.
    objects = [PurePosixPath("x"), PureWindowsPath("x")]
    torch.save({"model": plain_tensors, "paths": objects}, path, pickle_protocol=protocol)
    named = r"objects of pathlib.PurePosixPath, pathlib.PureWindowsPath, and loading"
    with pytest.raises(InputError, match=named):
        read_checkpoint(path)
    torch.save(plain_tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"new\.pth: torch's older format with a pickle_protocol"):
        read_checkpoint(path)


class Call:
    """Pickled, it is a call of a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Python's reader would set aside a table of 2**32 entries for this memo number.
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "no pickle of weights"),
        (Call(np.ndarray, ((10**9,), "O")), "NoneType|arrays of type|positional|tensor"),
        (np.zeros(3, dtype=object), "arrays of type O8"),
        (np.zeros(3, dtype=[("a", "f4")]), "arrays of type V4"),
        # 68 GB of bytes are announced and missing.
        (b"\x80\x04\x8e\0\0\0\0\x10\0\0\0N.", None),
        (b"", None),
    ],
)
def test_a_pickle_of_arrays_costs_no_more_than_its_size(
    tmp_path: Path, content: Any, message: str | None
) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    if isinstance(content, Call):
        assert not torch.is_tensor(load_arrays(path))
    else:
        with pytest.raises(Exception, match=message):
            load_arrays(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_every_plain_type_and_order(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "zoo.pkl"
    arrays = {
        "float": np.arange(6, dtype="f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "half": np.ones(2, "f2"),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), "u1"),
        "scalar": np.array(5, "i8"),
    }
    path.write_bytes(pickle.dumps({"model": arrays, "loss": np.float32(0.5)}, protocol=protocol))
    content = load_arrays(path)
    assert content["loss"] == 0.5
    for name, array in arrays.items():
        expected = torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))
        assert content["model"][name].dtype == expected.dtype
        assert torch.equal(content["model"][name], expected), name


def test_arrays_as_python_2_wrote_them(tmp_path: Path) -> None:
    """Without a type of its own for bytes, as in Caffe2's files."""
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        b"\x80\x02}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\0\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\0K\x01\x87R(K\x03U\x01<"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x08"
        b"\0\0\x80\xbf\0\0\x20\x41tbs."  # -1 and 10
    )
    assert pickle.loads(path.read_bytes(), encoding="latin1")["conv1_w"].tolist() == [-1, 10]
    assert load_arrays(path)["conv1_w"].tolist() == [-1, 10]
