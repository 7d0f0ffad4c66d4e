"""Copy batches to the GPU before the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torch.utils.data import DataLoader

Batch = TypeVar("Batch")


def prefetch(loader: DataLoader[Any], device: str) -> DataLoader[Any] | PrefetchedLoader:
    """Have a loader's batches copied to a GPU one step ahead.

    Args:
        loader: whose memory is pinned, if the device is a GPU.
        device: ``MODEL.DEVICE``; for a CPU the loader is returned as it is.
    """
    return PrefetchedLoader(loader) if device.startswith("cuda") else loader


class PrefetchedLoader:
    """Goes through a loader; each batch is copied to the current GPU while the step before runs.

    Copies have a stream of their own. Batches come in the loader's order and number; who stops
    early has seen no other batches than without it. What the loader raises comes after the batches
    that it gave before.

    Args:
        loader: gives batches of anything nested of dicts, lists, tensors, ``Instances`` and objects
            with a method ``map_tensors``; other things, such as PolygonMasks, stay on the CPU.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        upload = _Upload()
        for batch, copied in one_ahead(self._loader, upload.start):
            upload.wait(batch, copied)
            yield batch


def one_ahead(items: Iterable[Batch], start: Callable[[Batch], Any]) -> Iterator[Any]:
    """Call a function for every item, always for one more than the caller has got.

    Args:
        items: with or without end; what it raises comes after its last item.
        start: begins something that goes on in the background.

    Yields:
        What ``start`` returns.
    """
    iterator = iter(items)
    try:
        started = start(next(iterator))
    except StopIteration:
        return
    while True:
        try:
            following = start(next(iterator))
        except StopIteration:
            yield started
            return
        except Exception:
            yield started
            raise
        yield started
        started = following


class _Upload:
    """Copies batches to the current GPU on a stream of their own."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def start(self, batch: Any) -> tuple[Any, torch.cuda.Event]:
        """Begin to copy a batch; the event follows its last tensor."""
        with torch.cuda.stream(self._stream):
            copy = map_tensors(batch, self._copy)
            return copy, self._stream.record_event()

    def wait(self, batch: Any, copied: torch.cuda.Event) -> None:
        """Let the current stream, and not the host, wait for a batch that it will use."""
        current = torch.cuda.current_stream()
        current.wait_event(copied)

        def use(tensor: Tensor) -> Tensor:
            # Otherwise its memory would be given to the next copy as soon as Python forgets it.
            tensor.record_stream(current)
            return tensor

        map_tensors(batch, use)

    def _copy(self, tensor: Tensor) -> Tensor:
        # The loader does not look into Instances; from other memory the host would copy itself.
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self._stream.device, non_blocking=True)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a batch.

    Args:
        value: see :class:`PrefetchedLoader`; not changed.
        function: returns a tensor of the same shape and dtype.

    Returns:
        The same structure; what holds no tensors is the same object.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Boxes | BitMasks):
        return type(value)(function(value.tensor))
    if isinstance(value, Instances):
        fields = {name: map_tensors(field, function) for name, field in value.get_fields().items()}
        return Instances(value.image_size, **fields)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, function) for item in value)
    return value.map_tensors(function) if hasattr(value, "map_tensors") else value
