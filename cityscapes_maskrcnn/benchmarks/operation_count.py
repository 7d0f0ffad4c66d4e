"""Count the operations of a computation, and those for which a GPU would make the host wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Their results have sizes or values that the host needs.
_WAITING: Final = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
    "aten::repeat_interleave.Tensor",
    "torchvision::nms",
)
# With a mask among the indices these search it for its non-zero places first.
_INDEXING: Final = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class OperationCounter:
    """Count torch's operations in a ``with`` block, on any device.

    What makes the host wait for a GPU is counted on a CPU too, so that a test without a GPU can
    verify how often a step waits: values and sizes that the host needs (``item``, ``nonzero``,
    indexing by a mask, non-maximum suppression, ...), transfers to the host, and tensors that are
    built from Python values on the model's device. Work that autograd or an optimizer does is
    counted as well.

    Attributes:
        operations: how often each operation was called, by its name (``"aten::add"``).
        waiting: how often each of those that wait was called, by the same names or, of tensors'
            methods, by theirs (``"Tensor.tolist"``).
    """

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self._modes = (_Methods(self), _Operations(self))

    def __enter__(self) -> OperationCounter:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Operations(TorchDispatchMode):
    """Counts what reaches the kernels."""

    def __init__(self, counter: OperationCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name
        self._counter.operations[name] += 1
        full_name = func.name()
        by_mask = name in _INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        )
        if by_mask or name in _WAITING or full_name in _WAITING:
            self._counter.waiting[name] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Counts calls that on a CPU run no operation, or one that does not tell."""

    def __init__(self, counter: OperationCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        to_host = func is Tensor.to and any(
            str(value) == "cpu" for value in (*args[1:], *kwargs.values())
        )
        from_python = func is torch.tensor and "device" in kwargs
        if to_host or from_python or func in (Tensor.tolist, Tensor.cpu, Tensor.new_tensor):
            self._counter.waiting[f"Tensor.{func.__name__}"] += 1
        return func(*args, **kwargs)
