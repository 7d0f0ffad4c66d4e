"""Hooks that run before and after training steps."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from torch import nn

from cityscapes_maskrcnn.modeling.norm_statistics import (
    average_over_processes,
    running_statistics,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.process_group import ask_main_process, end_all
from cityscapes_maskrcnn.utils.stop import StopRequests
from cityscapes_maskrcnn.utils.tool import one_line

Batch = TypeVar("Batch")


def is_due(trainer: Any, *periods: int) -> bool:
    """Whether what happens every so many iterations happens after the current one.

    Args:
        trainer: with ``iter`` and ``max_iter``; everything happens after the last iteration.
        periods: in iterations; 0: never.
    """
    done = trainer.iter + 1
    return done == trainer.max_iter or any(period > 0 and done % period == 0 for period in periods)


def finish_hooks(trainer: Any) -> None:
    """Call ``after_train`` of all hooks of a run that ends early, and log what fails in them.

    A hook whose ``before_train`` was not reached may miss what that sets.
    """
    trainer.storage.iter = trainer.iter
    for hook in trainer._hooks:
        try:
            with trainer.storage:
                hook.after_train()
        except Exception as error:
            logging.getLogger(__name__).warning(
                "%s could not finish: %r", type(hook).__name__, error
            )


@contextmanager
def finished_hooks(trainer: Any) -> Iterator[None]:
    """Call ``after_train`` of all hooks after a ``with`` block, however it ends."""
    try:
        yield
    except BaseException:
        finish_hooks(trainer)
        raise
    else:
        trainer.after_train()
    finally:
        for hook in trainer._hooks:
            if isinstance(hook, StopOnSignal):
                hook.release()


class MeasurementHook(HookBase):
    """Base of hooks that run after the checkpoint of an iteration: they measure, or act on it.

    A checkpoint holds the state before them. A run that resumes from it repeats them for its last
    iteration, so that an interrupted measurement is made up for.
    """

    def repeat(self) -> None:
        """Run for the iteration that the run resumes from."""
        self.after_step()


class SeedEveryStep(HookBase):
    """Make the random choices inside the model a function of the seed and the iteration.

    Which regions are sampled for the losses is drawn from torch's generator. Seeding it before
    every step means that nothing in between (an evaluation, an interruption) can change what a
    later step draws: a resumed run equals an uninterrupted one.

    Args:
        seed: the same in all processes; each process draws other numbers from it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed torch's generators, of the CPU and of all GPUs, for this iteration."""
        # Hashed rather than added, so that iteration 7 of seed 1 is not 6 of 2; the same on every
        # machine and Python version.
        mixed = 0x9E3779B97F4A7C15
        for word in (self.seed, self.trainer.iter, comm.get_rank()):
            mixed = ((mixed ^ word) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 31
        torch.manual_seed(mixed >> 1)

    def state_dict(self) -> dict[str, Any]:
        """Keep the seed: a run without a fixed SEED resumes with the one it drew."""
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the seed of the run that is resumed."""
        self.seed = int(state["seed"])


class AverageNormStatistics(HookBase):
    """Give all processes the same BatchNorm running statistics, their mean.

    DistributedDataParallel as Detectron2 sets it up leaves every process with statistics of its
    own images; without this hook the parts of one evaluation would come from different models.

    Args:
        periods: iterations after which it is needed (checkpoints, evaluations); 0 is skipped.
    """

    def __init__(self, *periods: int) -> None:
        self._periods = periods

    def after_step(self) -> None:
        """Average where a checkpoint or an evaluation follows."""
        if is_due(self.trainer, *self._periods):
            average_norm_statistics(self.trainer.model)


def average_norm_statistics(model: nn.Module) -> None:
    """Replace BatchNorm running means and variances by their mean over all processes."""
    average_over_processes(running_statistics(model).values())


class Evaluation(MeasurementHook):
    """Score the model, like Detectron2's ``EvalHook``, but repeated if it was interrupted.

    As there, scores at the end of training are recorded at iteration ``max_iter``.

    Args:
        period: iterations between two evaluations; the last iteration is always followed by one.
        evaluate: returns nested scores, on the main process.
    """

    def __init__(self, period: int, evaluate: Callable[[], Mapping[str, Any]]) -> None:
        self._period = period
        self._evaluate = evaluate

    def after_step(self) -> None:
        """Evaluate where the period or the training ends."""
        if is_due(self.trainer, self._period):
            self.measure()

    def measure(self) -> None:
        """Evaluate now."""
        scores = flatten_results_dict(without_nan(self._evaluate()))
        done = self.trainer.iter + 1
        self.trainer.storage.put_scalars(
            cur_iter=done if done == self.trainer.max_iter else self.trainer.iter,
            smoothing_hint=False,
            **scores,
        )
        comm.synchronize()


def without_nan(results: Mapping[str, Any]) -> dict[str, Any]:
    """Drop NaN, the score of a class without ground truth, from nested results.

    ``metrics.json`` would otherwise hold the word NaN, which is not JSON.
    """
    kept: dict[str, Any] = OrderedDict()
    for key, value in results.items():
        if isinstance(value, Mapping):
            kept[key] = without_nan(value)
        elif not math.isnan(value):
            kept[key] = value
    return kept


class WriteEvents(PeriodicWriter, MeasurementHook):
    """Write events every 20 iterations, as Detectron2 does, and right after every evaluation.

    A writer keeps only the newest value of each name. Left to its own period, it would lose all
    evaluations but the last of 20 iterations, and the search, which prunes trials by the scores in
    ``metrics.json``, would see that one late. The line in the log comes at its period only: written
    twice for one iteration, it fails in the first two iterations.

    Args:
        writers: as :class:`PeriodicWriter`'s.
        eval_period: iterations between two evaluations; 0 for none.

    Raises:
        InputError: in training, a file cannot be written.
    """

    def __init__(self, writers: list[EventWriter], eval_period: int) -> None:
        super().__init__(writers, period=20)
        self._eval_period = eval_period
        self._files = [each for each in writers if not isinstance(each, CommonMetricPrinter)]
        self._thread_hook = threading.excepthook

    def before_train(self) -> None:
        """Leave a full disk to this hook: the thread of TensorBoard's writer prints a traceback."""
        self._thread_hook, threading.excepthook = threading.excepthook, self._ignore_disk_errors

    def _ignore_disk_errors(self, args: threading.ExceptHookArgs) -> None:
        # The writer raises it again when it is next called.
        if not isinstance(args.exc_value, OSError):
            self._thread_hook(args)

    def after_step(self) -> None:
        """Write, where the period or an evaluation has ended."""
        if is_due(self.trainer, self._period):
            self._write(self._writers)
        elif is_due(self.trainer, self._eval_period):
            self.repeat()

    def repeat(self) -> None:
        """Write all but the line in the log."""
        self._write(self._files)

    def after_train(self) -> None:
        """Write what is new and close the files."""
        try:
            self._write(self._files, close=True)
        finally:
            threading.excepthook = self._thread_hook

    def _write(self, writers: Iterable[EventWriter], close: bool = False) -> None:
        for writer in writers:
            try:
                writer.write()
                if close:
                    writer.close()
            except OSError as error:
                raise InputError(
                    f"{_file_of(writer)}: cannot be written: {error.strerror}; --resume continues "
                    "from the last checkpoint"
                ) from error


def _file_of(writer: EventWriter) -> str:
    if isinstance(writer, JSONWriter):
        return str(writer._file_handle.name)
    if isinstance(writer, TensorboardXWriter):
        return f"{writer._writer_args['log_dir']}/events.out.tfevents.*"
    return type(writer).__name__


class CheckFrozen(HookBase):
    """Verify that frozen parameters did not change during training, and log it.

    Frozen are parameters that the optimizer does not get, and all of FrozenBatchNorm2d, whose
    statistics are no parameters. Digests are compared, so no second copy of the weights is held.
    """

    def before_train(self) -> None:
        """Note the frozen tensors."""
        self._before = self._digests()

    def after_train(self) -> None:
        """Compare them."""
        after = self._digests()
        changed = [name for name, digest in self._before.items() if after.get(name) != digest]
        logger = logging.getLogger(__name__)
        if changed:
            logger.error(
                "%d of %d frozen tensors changed in training, such as %s",
                len(changed),
                len(self._before),
                changed[0],
            )
        elif self._before:
            logger.info(
                "All %d frozen tensors are bit-equal to those that training started with",
                len(self._before),
            )

    def _digests(self) -> dict[str, bytes]:
        model = self.trainer.model
        model = getattr(model, "module", model)
        frozen = {
            name: value for name, value in model.named_parameters() if not value.requires_grad
        }
        for prefix, module in model.named_modules():
            if isinstance(module, FrozenBatchNorm2d):
                frozen |= {f"{prefix}.{name}": value for name, value in module.named_buffers()}
        return {
            name: hashlib.blake2b(value.detach().cpu().contiguous().numpy().tobytes()).digest()
            for name, value in frozen.items()
        }


class StopOnSignal(HookBase):
    """Save a checkpoint and end when the process is asked to (SIGTERM, or SIGINT: Ctrl-C).

    Job schedulers send SIGTERM some seconds before they kill. The step under way is finished and
    saved; a measurement is left at once, wherever it is. The exit status is 143 or 130, and
    ``--resume`` continues from there. If one of several processes is asked, all end after the same
    step. Ctrl-C once more, a second later, ends the process at once.

    Register it after the checkpointer and before all :class:`MeasurementHook`. Whoever runs the
    hooks calls :meth:`release` after the last of them.

    Args:
        checkpointer: writes on the main process only; has the ``saved_iteration`` of
            :class:`.checkpoint.SafeCheckpointer`.
    """

    def __init__(self, checkpointer: Any) -> None:
        self._checkpointer = checkpointer
        self._requests = StopRequests(
            self._leave_measurement,
            interruptible=True,
            notice="stopping after this step" if comm.is_main_process() else "",
        )
        self._listening = ExitStack()
        self._measuring = False
        # Held while that changes, and by the thread that ends a measurement for good.
        self._lock = threading.Lock()

    def before_train(self) -> None:
        """Take over the signals."""
        self._listening.enter_context(self._requests.listening())

    def after_step(self) -> None:
        """End here if any process was asked to.

        Raises:
            SystemExit: 128 plus the signal's number, when the checkpoint is written.
        """
        number = next(iter(self._requests.signals), 0)
        if comm.get_world_size() > 1:
            device = next(self.trainer.model.parameters()).device
            state = torch.tensor([number], device=device)
            dist.all_reduce(state, op=dist.ReduceOp.MAX)
            number = int(state[0])
        if number:
            self._save(number)
            comm.synchronize()
            raise SystemExit(128 + number)

    def release(self) -> None:
        """Give the signals back.

        Not in ``after_train``, where later hooks write their files.
        """
        self._listening.close()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Let a request end this process inside a ``with`` block, which changes no state.

        The main process saves and ends then, and with it the others, which may be anywhere in the
        measurement. They do not end by themselves: it may be in the next step and need them.
        """
        with self._lock:
            self._measuring = True
        if self._requests.signals:
            # It came before: nobody will be woken.
            self._leave_measurement(self._requests.signals[0])
        try:
            yield
        finally:
            with self._lock:
                self._measuring = False

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Go through the batches of a measurement, in a block of :meth:`measuring`."""
        with self.measuring():
            yield from batches

    def _leave_measurement(self, number: int) -> None:
        """Save and end if the process measures; in the thread that notices signals."""
        with self._lock:
            if not self._measuring:
                return
            if not comm.is_main_process():
                ask_main_process(number)
                return
            status = 1
            try:
                self._save(number)
                status = 128 + number
                finish_hooks(self.trainer)
            except (InputError, OSError) as error:
                print(f"error: {one_line(error) or error}", file=sys.stderr)  # noqa: T201
            finally:
                end_all(status)

    def _save(self, number: int) -> None:
        iteration = self.trainer.iter
        logging.getLogger(__name__).warning(
            "%s: stopping after iteration %d; --resume continues from there",
            signal.Signals(number).name,
            iteration,
        )
        if not self._measuring:
            # All processes are here; before a measurement it has been done.
            average_norm_statistics(self.trainer.model)
        if self._checkpointer.saved_iteration != iteration:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
