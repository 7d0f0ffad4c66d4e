"""Warn when training waits for its data."""

from __future__ import annotations

import logging
import time

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from cityscapes_maskrcnn.utils.parallel import available_cores

# Worker processes start in the first iterations, and compile what is compiled.
_WARM_UP = 10
_ACCEPTED_SHARE = 0.1


class WarnOfWaiting(HookBase):
    """Warn once, naming the keys, if steps spend more than a tenth of their time waiting for data.

    It belongs to the main process, which knows how long the slowest of all processes has waited
    (the scalar ``data_time``), and before hooks that take time.

    Args:
        cfg: reads ``DATALOADER.NUM_WORKERS`` and ``INPUT.CACHE``.
        window: iterations that are looked at together.
    """

    def __init__(self, cfg: CfgNode, window: int = 100) -> None:
        self._num_workers = cfg.DATALOADER.NUM_WORKERS
        self._cache = cfg.INPUT.CACHE
        self._window = window
        self._iterations = -_WARM_UP
        self._waited = self._seconds = 0.0
        self._warned = False

    def before_step(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Add the step to its window; look at a window that is complete."""
        seconds = time.perf_counter() - self._start
        self._iterations += 1
        # A trainer of the user's own may not measure it.
        waited = self.trainer.storage.histories().get("data_time")
        if self._warned or self._iterations <= 0 or waited is None:
            return
        self._seconds += seconds
        self._waited += waited.latest()
        if self._iterations < self._window:
            return
        share = self._waited / self._seconds
        if share > _ACCEPTED_SHARE:
            self._warned = True
            cores = max(1, available_cores() // comm.get_local_size())
            logging.getLogger(__name__).warning(
                "In the last %d iterations training spent %.0f %% of its time waiting for data: "
                "raise DATALOADER.NUM_WORKERS (now %d; %d cores a process)%s",
                self._window,
                100 * share,
                self._num_workers,
                cores,
                ", or set INPUT.CACHE to disk (now none)" if self._cache == "none" else "",
            )
        self._iterations = 0
        self._waited = self._seconds = 0.0
