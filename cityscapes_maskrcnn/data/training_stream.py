"""The endless, reproducible order in which training sees its images.

Position ``p`` of the stream is a pure function of the seed: pass ``p // n`` is one permutation of
the ``n`` images, and every random choice of the mapper at that position (which flip, which size)
is drawn from a generator seeded by ``(seed, p)``. So a run that is resumed at iteration ``i``
starts at position ``i * batch`` and sees exactly what an uninterrupted run would have seen, with
any number of workers, and with any number of processes that share the same total batch.

With repeat factors a pass has each image as often as its factor says, the fractional part drawn
anew for every pass, as in Detectron2's ``RepeatFactorTrainingSampler``. Passes then differ in
length, and where one begins follows from the seed too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.utils import comm
from torch.utils.data import IterableDataset, get_worker_info

# A random seed is made from (seed, number of the position or pass, purpose): no augmentation
# repeats the numbers of a shuffle, and repeat factors of 1 leave the order as it is without them.
_SHUFFLE, _AUGMENT, _REPEAT = 0, 1, 2

Indices = npt.NDArray[np.int64]


class TrainingStream(IterableDataset[Any]):
    """Mapped training examples, without end, for one process and its loading workers.

    Args:
        dicts: the dataset, in Detectron2's dataset-dict format.
        mapper: turns one dict into one training example; may use the global generators of
            ``random``, NumPy and torch.
        seed: the seed of the whole stream; must be the same in all processes.
        batch_size: images a batch in this process; workers take turns by whole batches.
        repeat_factors: how often a pass has each image, shape (number of images,), at least 1;
            None: once.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        seed: int,
        batch_size: int,
        repeat_factors: npt.NDArray[np.floating[Any]] | None = None,
    ) -> None:
        self._dicts = dicts
        self._mapper = mapper
        #: Seed of the whole stream; a resumed run takes over that of its checkpoint.
        self.seed = seed
        self._batch_size = batch_size
        self._repeat_factors = repeat_factors
        # Number and first position of the pass that was asked for last, its order, and its seed.
        self._pass: tuple[int, int, Indices, int] | None = None
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        #: Batches of this process that earlier runs have used up; set it before iterating.
        self.start_batch = 0

    @property
    def num_images(self) -> int:
        """Number of images, the length of an epoch; passes with repeated images are longer."""
        return len(self._dicts)

    def positions(self, worker: int = 0, num_workers: int = 1) -> Iterator[int]:
        """Positions that one worker of this process loads, in order.

        Batch ``b`` of all processes together covers ``world_size * batch_size`` consecutive
        positions, of which each process takes its own consecutive share. Worker ``w`` of ``k``
        loads this process's batches ``start + w, start + w + k, ...``.
        """
        for batch in itertools.count(self.start_batch + worker, num_workers):
            first = (batch * self._world_size + self._rank) * self._batch_size
            yield from range(first, first + self._batch_size)

    def index(self, position: int) -> int:
        """Which image stands at a position of the stream."""
        number, first, order, seed = self._pass or (0, 0, self._order(0), self.seed)
        if position < first or seed != self.seed:
            number, first, order = 0, 0, self._order(0)
        while position >= first + len(order):
            number, first = number + 1, first + len(order)
            order = self._order(number)
        self._pass = number, first, order, self.seed
        return int(order[position - first])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        for position in self.positions(worker, num_workers):
            example = self._dicts[self.index(position)]
            with _seeded(self._entropy(position, _AUGMENT)):
                mapped = self._mapper(example)
            yield mapped

    def _order(self, number: int) -> Indices:
        """Shuffle the images of a pass."""
        indices = np.arange(len(self._dicts))
        if self._repeat_factors is not None:
            whole = np.floor(self._repeat_factors)
            drawn = np.random.default_rng(self._entropy(number, _REPEAT)).random(len(indices))
            more = drawn < self._repeat_factors - whole
            indices = np.repeat(indices, whole.astype(np.int64) + more)
        return np.random.default_rng(self._entropy(number, _SHUFFLE)).permutation(indices)

    def _entropy(self, number: int, purpose: int) -> np.random.SeedSequence:
        return np.random.SeedSequence((self.seed, number, purpose))


@contextmanager
def _seeded(entropy: np.random.SeedSequence) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators for a block, then put them back."""
    python_seed, numpy_seed, torch_seed = (int(word) for word in entropy.generate_state(3))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(python_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002 - Detectron2's augmentations use it
    # torch.manual_seed would also seed the GPUs, whose numbers the model draws.
    torch.default_generator.manual_seed(torch_seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
