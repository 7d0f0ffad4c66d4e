"""What happens around the training steps."""

from __future__ import annotations

import hashlib
import logging
import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from torch import nn


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
        words = (self.seed, self.trainer.iter, comm.get_rank())
        # Mixed by a fixed hash of ours rather than added: iteration 7 of seed 1 is not 6 of 2.
        torch.manual_seed(_mix(words))

    def state_dict(self) -> dict[str, Any]:
        """Keep the seed, so that a run without a fixed SEED resumes with the one it drew."""
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
        self._periods = [period for period in periods if period > 0]

    def after_step(self) -> None:
        """Average where a checkpoint or an evaluation follows."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            average_norm_statistics(self.trainer.model)


def average_norm_statistics(model: nn.Module) -> None:
    """Replace BatchNorm running means and variances by their mean over all processes."""
    if comm.get_world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for statistic in (module.running_mean, module.running_var):
                assert statistic is not None  # for the type checker: statistics are tracked
                dist.all_reduce(statistic)
                statistic /= comm.get_world_size()


class WriteEvents(PeriodicWriter):
    """Write events every 20 iterations, as Detectron2 does, and right after every evaluation.

    A writer keeps only the newest value of each name. Left to its own period, it would lose all
    evaluations but the last of 20 iterations, and hold back that one from who waits for it: the
    search stops bad trials by the scores in ``metrics.json``. The line in the log comes at its
    period only: at the end of training it would be written anew, which fails in the first two
    iterations if it has been written for the same one.

    Args:
        writers: as :class:`PeriodicWriter`'s.
        eval_period: iterations between two evaluations; 0 for none.
    """

    def __init__(self, writers: list[EventWriter], eval_period: int) -> None:
        super().__init__(writers, period=20)
        self._eval_period = eval_period

    def after_step(self) -> None:
        """Write, where the period or an evaluation has ended."""
        super().after_step()
        done = self.trainer.iter + 1
        written = done % self._period == 0 or done == self.trainer.max_iter
        if self._eval_period > 0 and done % self._eval_period == 0 and not written:
            for writer in self._writers:
                if not isinstance(writer, CommonMetricPrinter):
                    writer.write()


class CheckFrozen(HookBase):
    """Say in the log after training whether what was frozen is what training started with.

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
                *(len(changed), len(self._before), changed[0]),
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
    """Save a checkpoint and end when the process is asked to terminate (SIGTERM).

    Job schedulers send SIGTERM some seconds before they kill. The step under way is finished; then
    the main process saves and the run ends with status 143; ``--resume`` goes on from there. With
    several processes, all stop after the same step as soon as one of them was asked.

    Args:
        checkpointer: writes on the main process only.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._asked = False
        self._previous: Any = None

    def before_train(self) -> None:
        """Start to listen."""
        self._previous = signal.signal(signal.SIGTERM, self._ask)

    def after_step(self) -> None:
        """End here if asked."""
        if not self._anybody_asked():
            return
        iteration = self.trainer.iter
        average_norm_statistics(self.trainer.model)
        logging.getLogger(__name__).warning(
            "SIGTERM: stopping after iteration %d; --resume goes on from there", iteration
        )
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        # The first process that leaves has the others ended.
        comm.synchronize()
        raise SystemExit(128 + signal.SIGTERM)

    def after_train(self) -> None:
        """Stop to listen."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _anybody_asked(self) -> bool:
        if comm.get_world_size() == 1:
            return self._asked
        device = next(self.trainer.model.parameters()).device
        asked = torch.tensor(int(self._asked), device=device)
        dist.all_reduce(asked)
        return bool(asked)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


def _mix(words: tuple[int, ...]) -> int:
    """Hash integers to one of 63 bits, the same on every machine and Python version."""
    mixed = 0x9E3779B97F4A7C15
    for word in words:
        mixed = ((mixed ^ word) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
