"""``model_best.pth``: the weights with the best score or validation loss of a run."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from cityscapes_maskrcnn.data.provenance import UsedData, merge
from cityscapes_maskrcnn.engine.hooks import MeasurementHook, is_due
from cityscapes_maskrcnn.modeling.weight_files import read_checkpoint
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.training_metrics import VALIDATION_LOSS

BEST_FILE: Final = "model_best.pth"
# The first of these that is measured is the metric if none is named.
DEFAULT_METRICS = (
    "segm/AP",
    VALIDATION_LOSS,
    "sem_seg/IoU",
    "sem_seg/mIoU",
    "bbox/AP",
    "coco_bbox/AP",
)


class BestCheckpoint(MeasurementHook):
    """Write ``model_best.pth`` whenever the metric is better than ever before in the run.

    Place it after the measurements. The file holds weights and their history, no training state.

    Args:
        model: plain or wrapped by DistributedDataParallel.
        output_dir: folder of the file, in which the trainer's checkpointer writes it.
        period: iterations between two measurements.
        metric: its name in ``metrics.json``; losses are minimised, scores maximised. Empty: the
            first of ``DEFAULT_METRICS`` that is measured.
        datasets: that are measured on. With several, names of scores start with the dataset's, and
            the first one's count by default.
        selected_on: what choosing by the metric has the weights tuned on.
        weights_of: returns, for the name of a metric, the weights that it was measured with in
            place of the model's, by name.

    Raises:
        InputError: in training, ``metric`` is not among what is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str,
        period: int,
        metric: str,
        datasets: Sequence[str],
        selected_on: Sequence[UsedData] = (),
        weights_of: Callable[[str], Mapping[str, Tensor]] = lambda _: {},
    ) -> None:
        self._model = model
        self._path = Path(output_dir, BEST_FILE)
        self._period = period
        prefix = f"{datasets[0]}/" if len(datasets) > 1 else ""
        self._metrics = (
            (metric,)
            if metric
            else tuple(
                name if name == VALIDATION_LOSS else prefix + name for name in DEFAULT_METRICS
            )
        )
        self._required = metric
        self._selected_on = selected_on
        self._weights_of = weights_of
        self._best: dict[str, Any] = {}

    def before_train(self) -> None:
        """Take over the best checkpoint of the run that is resumed.

        Not one that a kill left behind from later iterations, which are done anew, and not one
        that was chosen by another metric.
        """
        best: dict[str, Any] = {}
        last = self.trainer.start_iter - 1
        if last >= 0 and comm.is_main_process() and self._path.is_file():
            best = _read_best(read_checkpoint(self._path), str(self._path))
        # The measurement of the last iteration follows the checkpoint, which does not hold it.
        resumed = best == self._best or best.get("iteration") == last
        self._best = best if resumed and best.get("metric") in self._metrics else {}

    def after_step(self) -> None:
        """Save, if there is a new best value."""
        if not is_due(self.trainer, self._period) or not comm.is_main_process():
            return
        # Scores at the end of training are recorded at the next iteration.
        measured = {
            name: float(value)
            for name, (value, iteration) in self.trainer.storage.latest().items()
            if iteration >= self.trainer.iter
        }
        candidates = (self._best["metric"],) if self._best else self._metrics
        metric = next((name for name in candidates if name in measured), None)
        logger = logging.getLogger(__name__)
        if metric is None and measured and self._required:
            near = difflib.get_close_matches(self._required, measured, n=1)
            hint = f"did you mean {near[0]}?" if near else ", ".join(sorted(measured))
            raise InputError(
                f"SOLVER.BEST_CHECKPOINT_METRIC {self._required}: is not measured; {hint}"
            )
        if metric is None:
            logger.warning("None of %s was measured: model_best.pth stays as it is", candidates)
            return
        value = measured[metric]
        sign = -1 if "loss" in metric.rpartition("/")[2] else 1
        if self._best and sign * value <= sign * self._best["value"]:
            return
        self._best = {"metric": metric, "value": value, "iteration": self.trainer.iter}
        logger.info("Best %s so far: %.5g", metric, value)
        checkpointer = self.trainer.checkpointer
        checkpointer.save_weights(
            self._path.stem,
            replaced=self._weights_of(metric),
            history=merge(checkpointer.history, self._selected_on),
            **self._best,
        )

    def restore(self) -> bool:
        """Load the best weights, if any, into the model; all processes have to call this.

        Returns:
            Whether they are those of another iteration than the current one.
        """
        model = getattr(self._model, "module", self._model)
        other = bool(self._best) and self._best["iteration"] != self.trainer.iter
        # The main process alone knows the best.
        if not comm.all_gather(other)[0]:
            return False
        if comm.is_main_process():
            best = read_checkpoint(self._path)
            model.load_state_dict(best["model"])
            logging.getLogger(__name__).info(
                "Back to the weights of iteration %d, the best %s: %.5g",
                best["iteration"],
                best["metric"],
                best["value"],
            )
        if comm.get_world_size() > 1:
            for tensor in model.state_dict().values():
                # Weights whose channels come last in memory cannot be sent as they are.
                contiguous = tensor.contiguous()
                dist.broadcast(contiguous, src=0)
                tensor.copy_(contiguous)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return metric, value and iteration of the best checkpoint."""
        return self._best

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            InputError: it is something else.
        """
        self._best = _read_best(state, "BestCheckpoint's state in the checkpoint to resume from")


def _read_best(content: Any, source: str) -> dict[str, Any]:
    """Get metric, value and iteration of a best checkpoint."""
    kinds = {"metric": str, "value": float, "iteration": int}
    if not isinstance(content, Mapping) or not all(
        isinstance(content.get(name), kind) for name, kind in kinds.items()
    ):
        raise InputError(f"{source}: has no metric with its value and iteration")
    return {name: content[name] for name in kinds}
