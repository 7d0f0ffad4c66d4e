"""Progress, speed and remaining time of a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter

from cityscapes_maskrcnn.engine.hooks import is_due
from cityscapes_maskrcnn.engine.outcome import outcome
from cityscapes_maskrcnn.engine.run_clock import RunClock
from cityscapes_maskrcnn.engine.summary import latest_values, peak_memory
from cityscapes_maskrcnn.engine.terminal import find_terminal
from cityscapes_maskrcnn.utils.progress import Progress
from cityscapes_maskrcnn.utils.training_metrics import TOTAL_LOSS

# Iterations whose median is the loss that is shown, as in Detectron2's line.
_LOSS_WINDOW: Final = 20


class ShowProgress(HookBase):
    """Show how far a training is: loss, score so far, images a second, remaining time, memory.

    On a terminal as one line that lives, and a line that stays after every evaluation; elsewhere
    as plain lines, see :class:`ProgressPrinter`. The remaining time counts the evaluations to come.

    Register it before all that checkpoints or measures; main process only.

    Args:
        cfg: the frozen config.

    Attributes:
        clock: of the run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.clock = RunClock()
        self._batch_size = cfg.SOLVER.IMS_PER_BATCH
        self._period = cfg.TEST.EVAL_PERIOD
        self._measures_on = cfg.DATASETS.VAL or cfg.DATASETS.TEST
        # Of the best checkpoint, on other images, when training has ended.
        self._reports_on = cfg.DATASETS.TEST if cfg.DATASETS.VAL else ()
        self._report = 0.0
        # The iteration under way, if there is one: how many it completes, what follows its step.
        self._is_open = False
        self._done = 0
        self._evaluates = False

    def before_train(self) -> None:
        """Show that training begins."""
        if self._reports_on:
            measured, reported = map(_num_images, (self._measures_on, self._reports_on))
            self._report = reported / max(1, measured)
        if terminal := find_terminal():
            terminal.trains = True
            terminal.show(self.progress(self.trainer.start_iter), at_once=True)

    def before_step(self) -> None:
        """End the iteration before, and begin this one."""
        self.end_iteration()
        self.clock.begin()
        self._is_open = True

    def after_step(self) -> None:
        """Show the progress, and that an evaluation comes."""
        self.clock.step()
        self._evaluates = bool(self._measures_on) and is_due(self.trainer, self._period)
        self._done = self.trainer.iter + 1
        if terminal := find_terminal():
            progress = self.progress(self._done, evaluates=self._evaluates)
            terminal.show(progress, at_once=self._evaluates)

    def after_train(self) -> None:
        """Leave the terminal to what is left to do."""
        self.end_iteration()
        if terminal := find_terminal():
            terminal.trains = False
            terminal.clear()

    def end_iteration(self) -> None:
        """End the iteration under way, if there is one, in time and on the terminal."""
        if not self._is_open:
            return
        self._is_open = False
        self.clock.end(self._evaluates)
        terminal = find_terminal()
        if self._evaluates and terminal:
            scores = outcome(latest_values(self.trainer.storage))
            terminal.write([f"iteration {self._done:,}", *scores], on_terminal=True)

    def progress(self, done: int, evaluates: bool = False) -> Progress:
        """Describe how far the training is.

        Args:
            done: iterations.
            evaluates: whether the evaluation after them is still to come.
        """
        storage, length = self.trainer.storage, self.trainer.max_iter
        evaluations = self._evaluations_after(done) + evaluates
        return Progress(
            done=f"{done:,}/{length:,}{' evaluating' * evaluates}",
            eta=self.clock.eta(length - done, evaluations),
            is_partial=evaluations > 0 and not self.clock.evaluations,
            details=tuple(self._details(storage)),
            pace=self.clock.pace,
            evaluation=self.clock.evaluation,
        )

    def _evaluations_after(self, done: int) -> float:
        """Count the evaluations after later iterations, and the report as part of one."""
        if not self._measures_on:
            return 0.0
        last = self.trainer.max_iter
        regular = (last - 1) // self._period - done // self._period if self._period > 0 else 0
        return max(0, regular) + (done < last) + self._report

    def _details(self, storage: EventStorage) -> Iterable[str]:
        losses = storage.histories().get(TOTAL_LOSS)
        if losses is not None:
            yield f"loss {losses.median(_LOSS_WINDOW):.3g}"
        latest = latest_values(storage)
        yield from outcome({name: latest[name] for name in latest if "loss" not in name})[:1]
        if self.clock.pace:
            yield f"{self._batch_size / self.clock.pace:.3g} img/s"
        yield f"{peak_memory(self.trainer.model) / 2**30:.1f} GB"

    def state_dict(self) -> dict[str, Any]:
        """Keep what a resumed run adds to."""
        return {
            "evaluations": self.clock.evaluations,
            "evaluation_seconds": self.clock.evaluation_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the evaluations of earlier parts of the run."""
        self.clock.evaluations = int(state["evaluations"])
        self.clock.evaluation_seconds = float(state["evaluation_seconds"])


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's line in the log, with a remaining time that counts the evaluations.

    Where there is no terminal, standard output gets a shorter line.

    Args:
        progress: of the training.
        max_iter: its length.
    """

    def __init__(self, progress: ShowProgress, max_iter: int) -> None:
        super().__init__(max_iter)
        self._progress = progress

    def write(self) -> None:
        """Write the line."""
        self._progress.end_iteration()
        super().write()
        trainer = self._progress.trainer
        if terminal := find_terminal():
            progress = self._progress.progress(min(trainer.iter + 1, trainer.max_iter))
            terminal.write([terminal.stage, *progress.parts()], on_terminal=False)

    def _get_eta(self, storage: EventStorage) -> str | None:
        progress = self._progress.progress(storage.iter + 1)
        if progress.eta is None:
            return None
        storage.put_scalar("eta_seconds", progress.eta, smoothing_hint=False)
        return progress.eta_text().removeprefix("ETA ")


def with_progress(
    writers: list[EventWriter], progress: ShowProgress, max_iter: int
) -> list[EventWriter]:
    """Replace Detectron2's printer, where it is among the writers, by :class:`ProgressPrinter`."""
    return [
        ProgressPrinter(progress, max_iter) if type(writer) is CommonMetricPrinter else writer
        for writer in writers
    ]


def _num_images(datasets: Iterable[str]) -> int:
    return sum(len(DatasetCatalog.get(name)) for name in datasets)
