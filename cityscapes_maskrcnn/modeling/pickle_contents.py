"""Find out what a pickle would do if it were loaded, without loading it.

A pickle is a program: it can call any function that is installed, and a few bytes of it can take
any amount of memory or time. Here its opcodes are read and not executed: which classes and
functions it asks for, and how many values it puts in each other, how deep. A caller decides by
that whether to load it, with torch's safe reader or those of ``safe_pickles``.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import shlex
import zipfile
from dataclasses import dataclass
from typing import IO, Any, Final

import torch

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import check_zip_entries
from cityscapes_maskrcnn.utils.text import printable

# Everything that tensors, numbers and text need. torch's own list is longer: with functions on it
# a file of a few bytes can take any amount of memory.
_PLAIN: Final = frozenset(
    {
        "argparse.Namespace",
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.storage.UntypedStorage",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch.per_tensor_affine",
        "torch.per_channel_affine",
    }
).union(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype))
#: torch's classes of storages, which pickles name, and the types of their values.
STORAGE_DTYPES: Final = {
    f"{name}Storage": dtype
    for name, dtype in (
        ("Double", torch.float64),
        ("Float", torch.float32),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Long", torch.int64),
        ("Int", torch.int32),
        ("Short", torch.int16),
        ("Char", torch.int8),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
        ("ComplexFloat", torch.complex64),
        ("ComplexDouble", torch.complex128),
    )
}
_PUTS: Final = ("PUT", "BINPUT", "LONG_BINPUT")
_MUTATORS: Final = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
# What makes a value that mutators may fill.
_EMPTY: Final = ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "GLOBAL", "STACK_GLOBAL")
_LEAF: Final[list[Any]] = []
# A checkpoint of 600 tensors with the optimizer's takes 50,000.
_MAX_OPCODES: Final = 500_000
# What hashes, compares or shows a value visits the values in it once for every place they are in.
_MAX_LEVELS: Final = 100
_MAX_VALUES: Final = 1_000_000
# Python writes no number of more than 4300 digits.
_MAX_BITS: Final = 4096
# Of an archive: a file for every tensor.
_MAX_FILES: Final = 20_000
#: What :attr:`PickleContents.is_tangled` means, in words.
TANGLED: Final = (
    "its values are too many, nested too deeply, or too often the same ones in each other, for "
    "weights; save the weights alone"
)

# What protocol 2, torch.save's, writes for bytes.
_BYTES: Final = "_codecs.encode"


@dataclass(frozen=True)
class PickleContents:
    """What a pickle would do if it were loaded.

    Attributes:
        unknown: names of classes and functions that it asks for and that are no plain values.
        strings: short texts in it, the keys of its dictionaries among them.
        is_object: whether the whole of it is one object of an unknown class.
        is_script: whether it is of a TorchScript archive.
        is_tangled: whether it has more than 500,000 steps, or values in it are in themselves, more
            than 100 levels deep in each other, or, with shared ones written out, more than a
            million.
        is_modern: whether it is of protocol 4 or later, of which torch's safe reader knows nothing.
    """

    unknown: tuple[str, ...]
    strings: frozenset[str]
    is_object: bool = False
    is_script: bool = False
    is_tangled: bool = False
    is_modern: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether it holds tensors of whole numbers with a scale."""
        return any(re.fullmatch(r"torch\.Q\w+Storage", name) for name in self.unknown)

    def explain(self, source: str, is_archive: bool) -> str:
        """Describe what kind of file it is, why it is not loaded and how to get weights from it.

        Args:
            source: the file.
            is_archive: whether :func:`.safe_pickles.load_archive` could read it.
        """
        names = ", ".join(printable(name, 100) for name in self.unknown[:3])
        more = f" and {len(self.unknown) - 3} more" if len(self.unknown) > 3 else ""
        objects = f"it holds objects of {names}{more}, and loading those can execute code"
        save = (
            f"tools/convert_weights.py --keep-names {shlex.quote(source)} weights.pth writes its "
            "tensors alone"
            if is_archive
            else "where it was written, save its weights with torch.save(model.state_dict(), "
            "'weights.pth')"
        )
        if self.is_script:
            return (
                "a TorchScript archive, which is a program; save its weights with "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            )
        if self.is_quantized:
            return (
                "not a checkpoint that can be loaded: it holds quantized tensors; save the weights "
                "from before they were quantized, with torch.save(model.state_dict(), "
                "'weights.pth')"
            )
        if self.is_object:
            return (
                f"a whole pickled model, not its weights: {objects}; where its code is installed, "
                "and if you trust it, save the weights with torch.save(model.state_dict(), "
                "'weights.pth')"
            )
        if "pytorch-lightning_version" in self.strings:
            return f"a checkpoint of PyTorch Lightning: {objects}; {save}"
        if "message_hub" in self.strings or any(n.startswith("mmengine.") for n in self.unknown):
            return f"a checkpoint of MMEngine (MMDetection 3): {objects}; {save}"
        if all(name.startswith("numpy.") or name == _BYTES for name in self.unknown):
            return (
                f"not a checkpoint that can be loaded safely: it holds NumPy values ({names}); "
                f"save them as Python numbers, with .item() or .tolist(); or {save}"
            )
        return f"not a checkpoint that can be loaded safely: {objects}; {save}"


def scan_pickles(file: IO[bytes], count: int = 1) -> PickleContents:
    """Read through pickles without executing them.

    Args:
        file: at the first one.
        count: number of pickles, one after the other; the file may end before.

    Raises:
        ValueError: it is no pickle, or one that would take much more memory or time than weights.
    """
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    unknown: dict[str, None] = {}
    strings: set[str] = set()
    is_object = is_tangled = is_modern = False
    opcodes = 0
    for _ in range(count):
        if file.tell() == start + size:
            break
        is_first = is_known = True
        nesting = _Nesting()
        for opcode, argument, _position in pickletools.genops(file):
            opcodes += 1
            if opcodes > _MAX_OPCODES:
                return PickleContents((), frozenset(), is_tangled=True)
            if (
                # For a high number Python's reader would set aside a table of as many entries.
                (opcode.name in _PUTS and int(argument or 0) > size)
                or (isinstance(argument, int) and argument.bit_length() > _MAX_BITS)
            ):
                raise ValueError("no pickle of weights")
            if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                is_modern |= opcode.name == "STACK_GLOBAL"
                name = (
                    nesting.name_on_stack()
                    if opcode.name == "STACK_GLOBAL"
                    else str(argument).replace(" ", ".")
                ).replace("__builtin__.", "builtins.")
                is_known = _is_plain(name)
                if not is_known:
                    unknown[name] = None
                    is_object |= is_first
            elif isinstance(argument, str):
                strings.add(argument[:200])
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "EMPTY_DICT", "EMPTY_LIST"):
                is_first = False
            nesting.follow(opcode, argument, is_known)
        is_tangled |= nesting.is_tangled()
    return PickleContents(
        tuple(unknown),
        frozenset(strings),
        is_object=is_object,
        is_tangled=is_tangled,
        is_modern=is_modern,
    )


class _Text(list[Any]):
    """A text on the stack, which holds no values; only that of names is of use."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class _Nesting:
    """Which values of a pickle are in which others: its stack machine without the values.

    A value is the list of those in it; :data:`_LEAF` stands for all that hold none, or are objects
    of unknown classes, which are not loaded and may well be in themselves.
    """

    def __init__(self) -> None:
        self._stack: list[list[Any]] = []
        self._outer_stacks: list[list[list[Any]]] = []  # below the marks
        self._memo: dict[int, list[Any]] = {}
        self._holders: list[list[Any]] = []
        self._measured: dict[int, tuple[int, int]] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any, is_known: bool) -> None:
        """Execute an opcode.

        Args:
            opcode: of the pickle, one after the other.
            argument: of it.
            is_known: whether the class is, if the opcode asks for one.

        Raises:
            IndexError, KeyError: it takes what is not there.
        """
        name, before = opcode.name, opcode.stack_before
        if name in _PUTS or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else int(argument)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "MARK":
            self._outer_stacks.append(self._stack)
            self._stack = []
        elif name == "POP" and not self._stack:
            self._stack = self._outer_stacks.pop()
        elif isinstance(argument, str) and not before and name not in ("GLOBAL", "INST"):
            self._stack.append(_Text(argument[:200]))
        elif before or opcode.stack_after:
            values = []
            if pickletools.markobject in before:
                values, self._stack = self._stack, self._outer_stacks.pop()
                before = before[: before.index(pickletools.markobject)]
            values = [self._stack.pop() for _ in before][::-1] + values
            if name in _MUTATORS:
                if values[0] is not _LEAF:
                    values[0].extend(values[1:])
                self._stack.append(values[0])
            elif opcode.stack_after:
                self._stack.append(self._result(name, values, is_known))

    def name_on_stack(self) -> str:
        """Join module and name that STACK_GLOBAL is about to take, wherever they come from."""
        return ".".join(each.text if isinstance(each, _Text) else "?" for each in self._stack[-2:])

    def _result(self, name: str, values: list[Any], is_known: bool) -> list[Any]:
        if name in ("GLOBAL", "STACK_GLOBAL", "INST") and not is_known:
            return _LEAF
        if name in ("REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX") and values[0] is _LEAF:
            return _LEAF
        if not values and name not in _EMPTY:
            return _LEAF
        self._holders.append(values)
        return values

    def is_tangled(self) -> bool:
        """Whether values are more, or deeper in each other, than can be walked through."""
        try:
            return any(
                levels > _MAX_LEVELS or values > _MAX_VALUES
                for values, levels in (self._measure(holder, set()) for holder in self._holders)
            )
        except RecursionError:
            return True

    def _measure(self, value: list[Any], around: set[int]) -> tuple[int, int]:
        """Count the values in a value, itself among them, and their levels."""
        if not value:
            return 1, 1
        key = id(value)
        if key not in self._measured:
            if key in around or len(around) > _MAX_LEVELS:
                raise RecursionError
            around.add(key)
            inner = [self._measure(each, around) for each in value]
            around.remove(key)
            self._measured[key] = (
                1 + sum(values for values, _ in inner),
                1 + max((levels for _, levels in inner), default=0),
            )
        return self._measured[key]


def _is_plain(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return name in _PLAIN or (module in ("torch", "torch.storage") and last in STORAGE_DTYPES)


def scan_archive(file: IO[bytes], source: str) -> PickleContents:
    """Look at a zip archive that ``torch.save`` may have written, and verify its check sums.

    Args:
        file: the archive.
        source: what to call it in messages.

    Raises:
        InputError: it would unpack to more than its own size, or is damaged.
        Exception: of any type, if it is no archive of ``torch.save``.
    """
    size = file.seek(0, os.SEEK_END)
    check_zip_entries(file, source, _MAX_FILES)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if any(name.endswith("/constants.pkl") for name in names):
            return PickleContents(("TorchScript",), frozenset(), is_script=True)
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size:
            raise InputError(
                f"{source}: an archive of {size} bytes that claims to unpack to {unpacked}; "
                "torch.save does not compress: it is damaged, or another program's"
            )
        if len(names) < len(entries):
            raise InputError(f"{source}: damaged: entries of its archive have the same name")
        damaged = archive.testzip()  # torch does not look
        if damaged:
            raise InputError(
                f"{source}: damaged: the check sum of {printable(damaged)} is wrong; fetch it again"
            )
        return scan_pickles(io.BytesIO(archive.read(data_pickle(archive))))


def data_pickle(archive: zipfile.ZipFile) -> str:
    """Name the file of an archive of ``torch.save`` that is the pickle; the others are tensors.

    Raises:
        ValueError: there is none, or more than one.
    """
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    return name
