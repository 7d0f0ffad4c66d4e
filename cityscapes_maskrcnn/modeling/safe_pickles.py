"""Read the tensors, arrays and plain values of a pickle without running code from it.

Unpickling executes any function that a file names. The unpicklers here resolve only those that
build tensors or arrays: everything else becomes an :class:`Unknown` in :func:`load_archive`, and an
error in :func:`load_arrays`. That does not keep a small pickle from exhausting memory or time;
``pickle_contents`` finds such pickles without loading them. :func:`load_arrays` calls it itself;
callers of :func:`load_archive` must do so first.
"""

from __future__ import annotations

import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from cityscapes_maskrcnn.modeling.pickle_contents import (
    STORAGE_DTYPES,
    TANGLED,
    data_pickle,
    scan_pickles,
)
from cityscapes_maskrcnn.utils.files import open_file
from cityscapes_maskrcnn.utils.text import printable


def load_archive(file: IO[bytes]) -> Any:
    """Load what ``torch.save`` wrote, all objects of unknown classes as :class:`Unknown`.

    Args:
        file: an archive that :func:`.pickle_contents.scan_archive` accepted.

    Raises:
        Exception: of any type, if it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        pickled = data_pickle(archive)
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise ValueError(f"byte order {order!r}")

        def read_storage(key: str) -> bytearray:
            return bytearray(archive.read(f"{folder}data/{key}"))

        with archive.open(pickled) as stream:
            return _TensorUnpickler(stream, read_storage).load()


class Unknown:
    """Placeholder for an object of a class that is not loaded; every call on it has no effect."""

    def __new__(cls, *_args: Any, **_options: Any) -> Unknown:  # noqa: D102
        return super().__new__(cls)

    def __call__(self, *_args: Any, **_options: Any) -> Unknown:  # noqa: D102
        return self

    def _ignore(self, *_args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors and plain values; of everything else, nothing is executed."""

    _KNOWN: Final[Mapping[str, Any]] = {
        "collections.OrderedDict": OrderedDict,
        "torch.Size": tuple,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
    }

    def __init__(self, file: IO[bytes], read_storage: Callable[[str], bytearray]) -> None:
        super().__init__(file)
        self._read_storage = read_storage
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name in ("torch", "torch.storage") and global_name in STORAGE_DTYPES:
            return STORAGE_DTYPES[global_name]
        return self._KNOWN.get(f"{module_name}.{global_name}", Unknown)

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, _ = pid
        if not isinstance(dtype, torch.dtype):
            return Unknown()
        if key not in self._storages:
            content = self._read_storage(key)
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def load_arrays(path: str | Path) -> Any:
    """Load a pickle of plain values and NumPy arrays, such as the files of Detectron2's zoo.

    Returns:
        What it holds, arrays as tensors and NumPy's scalars as numbers.

    Raises:
        InputError: the file cannot be read.
        Exception: of any type; a ``pickle.UnpicklingError`` if it asks for anything else.
    """
    with open_file(path) as file:
        if scan_pickles(file).is_tangled:
            raise pickle.UnpicklingError(TANGLED)
    with (
        open_file(path) as file,
        # Unlike a file, it does not set aside as many bytes as a pickle claims to hold.
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        loaded = _with_tensors(_ArrayUnpickler(content, encoding="latin1").load())
    if isinstance(loaded, dict):
        # Not deeper: a small pickle can nest dictionaries in each other billions of times.
        return {key: _with_tensors(value) for key, value in loaded.items()}
    return loaded


class _PickledType:
    """``numpy.dtype`` in a pickle: only the plain numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
            raise pickle.UnpicklingError(f"it holds arrays of type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
    """``numpy.ndarray`` in a pickle. NumPy's own functions would take any shape from it."""

    def __init__(self, *_: Any) -> None:
        self.tensor = torch.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, pickled, is_fortran, content = state
        values = _from_bytes(pickled, content).reshape(shape, order="F" if is_fortran else "C")
        self.tensor = torch.from_numpy(values.astype(pickled.dtype.newbyteorder("=")))


def _from_bytes(pickled: _PickledType, content: bytes | bytearray | str) -> np.ndarray[Any, Any]:
    # Python 2 had one type for both.
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, pickled.dtype)


def _from_buffer(
    content: bytes | bytearray, pickled: _PickledType, shape: tuple[int, ...], order: str
) -> _PickledArray:
    array = _PickledArray()
    array.__setstate__((1, shape, pickled, order == "F", content))
    return array


def _scalar(pickled: _PickledType, content: bytes | str) -> Any:
    return _from_bytes(pickled, content)[0].item()


def _with_tensors(content: Any) -> Any:
    """Put tensors in the place of the arrays of a dictionary."""
    if not isinstance(content, dict):
        return content
    return {
        key: value.tensor if isinstance(value, _PickledArray) else value
        for key, value in content.items()
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of arrays and refuses everything that could execute code."""

    # NumPy 1 and 2 name their module differently.
    _KNOWN: Final[Mapping[str, Any]] = {
        "collections.OrderedDict": OrderedDict,
        # What protocol 2 writes for bytes.
        "_codecs.encode": lambda text, encoding: text.encode(encoding),
        "__builtin__.bytes": lambda: b"",  # of an empty array
        "numpy.dtype": _PickledType,
        "numpy.ndarray": _PickledArray,
        **{
            f"numpy.{module}.multiarray.{name}": function
            for module in ("core", "_core")
            for name, function in (("_reconstruct", _PickledArray), ("scalar", _scalar))
        },
        # Of protocol 5.
        **{f"numpy.{module}.numeric._frombuffer": _from_buffer for module in ("core", "_core")},
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {printable(name)}")
        return self._KNOWN[name]
