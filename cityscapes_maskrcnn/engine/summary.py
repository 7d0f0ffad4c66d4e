"""The summaries that a run and an evaluation write for the performance table."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

from cityscapes_maskrcnn.data.provenance import SeenImages
from cityscapes_maskrcnn.data.registration import is_generated_dataset
from cityscapes_maskrcnn.engine.outcome import (
    SCORES_FILE,
    SUMMARY_FILE,
    describe_run,
    final_values,
)
from cityscapes_maskrcnn.engine.run_clock import RunClock
from cityscapes_maskrcnn.modeling.model_kind import model_kind
from cityscapes_maskrcnn.utils.files import file_digest, write_json
from cityscapes_maskrcnn.utils.memory import peak_resident_bytes
from cityscapes_maskrcnn.utils.process_identity import seconds_since_start
from cityscapes_maskrcnn.utils.training_metrics import (
    METRICS_FILE,
    TOTAL_LOSS,
    VALIDATION_LOSS,
    final_training_loss,
    read_curves,
    without_imitation,
)
from cityscapes_maskrcnn.visualization.style import About

logger = logging.getLogger(__name__)


class RunSummary(HookBase):
    """Write ``OUTPUT_DIR/summary.json`` when training got to its end; main process only.

    It holds ``train`` (names of datasets), ``measured`` (those that are scored during training),
    ``generated`` (whether one of ``train`` is of generated scenes), ``images`` (trained on in an
    epoch), ``iterations``, ``epochs``, ``parameters``, ``trainable_parameters``, ``seconds``
    (training with its evaluations and checkpoints; what a killed run did after its last checkpoint
    is not counted), ``startup_seconds`` (before them, of the process that got to the end),
    ``evaluations`` and ``evaluation_seconds`` (of all of them), ``peak_memory_bytes`` and
    ``memory`` (which: ``"GPU"``, allocated by the main process, or ``"RAM"``, resident, of the main
    process), and ``final`` (:func:`.outcome.final_values`, the training loss smoothed as in
    ``overfitting.png``).

    Args:
        cfg: the frozen config.
        images: number of images of an epoch; None, with ``images`` and ``epochs`` null, if a loader
            of the user's own does not tell.
        clock: of the run.
    """

    def __init__(self, cfg: CfgNode, images: int | None, clock: RunClock) -> None:
        self._cfg = cfg
        self._images = images
        self._clock = clock
        self._startup = 0.0
        self._seconds_before = 0.0
        self._peak_before = 0
        self._start = time.monotonic()

    def before_train(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._startup = seconds_since_start()

    def after_train(self) -> None:
        """Write the file."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        model = self.trainer.model
        sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
        iterations = self.trainer.iter
        state = self.state_dict()
        summary = {
            "train": list(self._cfg.DATASETS.TRAIN),
            "measured": list(self._cfg.DATASETS.VAL or self._cfg.DATASETS.TEST),
            "generated": any(map(is_generated_dataset, self._cfg.DATASETS.TRAIN)),
            "images": self._images,
            "iterations": iterations,
            "epochs": self._images
            and round(iterations * self._cfg.SOLVER.IMS_PER_BATCH / self._images, 3),
            "parameters": sum(size for size, _ in sizes),
            "trainable_parameters": sum(size for size, trainable in sizes if trainable),
            "seconds": round(state["seconds"], 1),
            "startup_seconds": round(self._startup, 1),
            "evaluations": self._clock.evaluations,
            "evaluation_seconds": round(self._clock.evaluation_seconds, 1),
            "peak_memory_bytes": state["peak_memory_bytes"],
            "memory": "GPU" if _on_gpu(model) else "RAM",
            "final": final_values(latest_values(self.trainer.storage) | self._training_loss()),
        }
        write_json(Path(self._cfg.OUTPUT_DIR) / SUMMARY_FILE, summary)
        stage = Path(self._cfg.OUTPUT_DIR).resolve().name
        for line in describe_run(summary):
            logger.info("%s: %s", stage, line)

    def _training_loss(self) -> dict[str, float]:
        """Smooth the training loss as ``overfitting.png`` does, so that both say the same."""
        file = Path(self._cfg.OUTPUT_DIR) / METRICS_FILE
        if not file.is_file():  # of a writer of the user's own
            return {}
        curves = read_curves(file)
        validation = curves.get(VALIDATION_LOSS, {})
        loss = final_training_loss(without_imitation(curves), validation)
        return {} if loss is None else {TOTAL_LOSS: loss}

    def state_dict(self) -> dict[str, Any]:
        """Keep what a resumed run adds to."""
        return {
            "seconds": self._seconds_before + time.monotonic() - self._start,
            "peak_memory_bytes": max(self._peak_before, peak_memory(self.trainer.model)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what earlier parts of the run needed."""
        self._seconds_before = float(state["seconds"])
        self._peak_before = int(state["peak_memory_bytes"])


def write_scores(
    cfg: CfgNode, weights: str, results: Mapping[str, Any], seen: Iterable[SeenImages]
) -> None:
    """Write ``OUTPUT_DIR/scores.json``, the score of a checkpoint.

    Scores on generated scenes say so, wherever they are shown: each dataset has ``generated``.

    Args:
        cfg: the frozen config.
        weights: the file that was scored.
        results: Detectron2's results without NaN, in percent: by task, and before that by dataset
            if there are several.
        seen: the images of ``DATASETS.TEST`` that the model has seen.
    """
    names = tuple(cfg.DATASETS.TEST)
    by_dataset = {names[0]: results}
    if len(names) > 1:
        # Detectron2 puts _TTA behind the outer names, which are the datasets' then.
        by_dataset = {
            name: {
                **results[name],
                **{
                    f"{task}_TTA": scores for task, scores in results.get(f"{name}_TTA", {}).items()
                },
            }
            for name in names
        }
    content = {
        "weights": weights,
        # Null of what Detectron2 has fetched.
        "sha256": file_digest(Path(weights)),
        "datasets": {
            name: {
                "images": len(DatasetCatalog.get(name)),
                "generated": is_generated_dataset(name),
                "results": by_dataset[name],
            }
            for name in names
        },
        "seen": [str(entry) for entry in seen],
    }
    write_json(Path(cfg.OUTPUT_DIR) / SCORES_FILE, content)


def about_run(
    cfg: CfgNode, datasets: Iterable[str], num_images: int | None, protocol: str
) -> About:
    """Describe the model of a run, and images that it is trained or scored on, for a picture.

    Args:
        cfg: of the run.
        datasets: registered names.
        num_images: of all of them; None: not known.
        protocol: how numbers are measured.
    """
    names = list(datasets)
    return About(
        dataset=", ".join(names),
        num_images=num_images,
        generated=any(map(is_generated_dataset, names)),
        model=f"{model_kind(cfg)}, {cfg.OUTPUT_DIR}",
        protocol=protocol,
    )


def latest_values(storage: EventStorage) -> dict[str, float]:
    """Get the last value of everything that an event storage has."""
    return {name: value for name, (value, _) in storage.latest().items()}


def _on_gpu(model: torch.nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def peak_memory(model: torch.nn.Module) -> int:
    """Get the peak of this process in bytes: on the model's GPU, if it has one, else in RAM."""
    if _on_gpu(model):
        return torch.cuda.max_memory_allocated(next(model.parameters()).device)
    return peak_resident_bytes()
