"""Training hooks that measure on held-out images, and act on the results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from cityscapes_maskrcnn.data.prefetch import PrefetchedLoader
from cityscapes_maskrcnn.engine.best_checkpoint import BestCheckpoint
from cityscapes_maskrcnn.engine.ema import SUFFIX, WeightAverage
from cityscapes_maskrcnn.engine.evaluation_pictures import SampledPredictions, WatchedEvaluator
from cityscapes_maskrcnn.engine.hooks import Evaluation, StopOnSignal
from cityscapes_maskrcnn.engine.seen_images import data_of_selection
from cityscapes_maskrcnn.engine.solver import EarlyStopping, PlateauSchedule
from cityscapes_maskrcnn.engine.validation import PREFIX, ValidationLoss, measured_in_training
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator, DrawFunction
from cityscapes_maskrcnn.evaluation.instance_ap import FloatArray
from cityscapes_maskrcnn.utils.error_summary import ErrorSummary
from cityscapes_maskrcnn.utils.errors import InputError

logger = logging.getLogger(__name__)


def build_measurement_hooks(
    trainer: Any, stop: StopOnSignal, average: WeightAverage | None
) -> list[HookBase]:
    """Build the hooks, in the order in which they run.

    Args:
        trainer: a :class:`.trainer.Trainer`, complete but for its hooks. Its ``_last_eval_results``
            become the newest results.
        stop: ends the run in the middle of a measurement.
        average: of the weights, which is scored too.
    """
    cfg, model = measured_in_training(trainer.cfg), trainer.model
    period = cfg.TEST.EVAL_PERIOD
    validation_loader: DataLoader[Any] | PrefetchedLoader | None = None
    samples: dict[str, SampledPredictions] = {}
    drawing = DrawErrors()

    def evaluate() -> dict[str, Any]:
        evaluators = []
        for name in cfg.DATASETS.TEST:
            if name not in samples:
                samples[name] = SampledPredictions(cfg, name)
            scoring = drawing.postpone(trainer.build_evaluator(cfg, name))
            evaluators.append(WatchedEvaluator(scoring, samples[name]))
        with stop.measuring():
            trainer._last_eval_results = trainer.test(cfg, model, evaluators)
            for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
                evaluator.put_events(trainer.storage, name if len(evaluators) > 1 else "")
        results: dict[str, Any] = trainer._last_eval_results
        return results

    def evaluate_average() -> dict[str, Any]:
        assert average is not None
        evaluators = [drawing.postpone(each) for each in trainer.build_evaluators(cfg, SUFFIX)]
        with average.in_place(trainer.checkpointer), stop.measuring():
            results: dict[str, Any] = trainer.test_average(cfg, model, evaluators)
        return results

    def evaluate_augmented() -> dict[str, Any]:
        with stop.measuring():
            results: dict[str, Any] = trainer.test_with_TTA(cfg, model)
        return results

    def validation_batches() -> Iterator[Any]:
        nonlocal validation_loader
        loader = validation_loader or trainer.build_validation_loader(cfg)
        # What else an override returns may be used up by going through it.
        repeatable = isinstance(loader, DataLoader | PrefetchedLoader)
        validation_loader = loader if repeatable else None
        return stop.watch(loader)

    def weights_of(metric: str) -> Mapping[str, Tensor]:
        return average.values if average and f"{SUFFIX}/" in metric else {}

    def hand_over_best() -> None:
        other_weights = best.restore()
        trainer.checkpointer.save("model_final", iteration=trainer.iter)
        if other_weights and not chosen_by_loss:
            evaluation.measure()

    metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
    # Semantic models have none of the scores that come before it by default.
    semantic = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor" and cfg.TEST.VALIDATION_LOSS
    chosen_by_loss = metric.startswith(PREFIX) or (not metric and semantic)
    evaluation = Evaluation(period, evaluate)
    best = BestCheckpoint(
        model=model,
        output_dir=cfg.OUTPUT_DIR,
        period=period,
        metric=metric,
        datasets=cfg.DATASETS.TEST,
        selected_on=data_of_selection(cfg),
        weights_of=weights_of,
    )
    built: list[HookBase] = [best]
    if isinstance(trainer.scheduler, ReduceLROnPlateau):
        built.append(PlateauSchedule(trainer.scheduler))
    if cfg.SOLVER.EARLY_STOPPING.ENABLED:
        built.append(
            EarlyStopping(
                patience=cfg.SOLVER.EARLY_STOPPING.PATIENCE,
                threshold=cfg.SOLVER.PLATEAU.THRESHOLD,
                hand_over=hand_over_best,
            )
        )
    # Weights that are handed over are scored once, if they are known before the scores.
    built.insert(len(built) if chosen_by_loss else 0, evaluation)
    if average:
        built.insert(0, Evaluation(period, evaluate_average))
    if cfg.TEST.VALIDATION_LOSS:
        built.insert(0, ValidationLoss(period, validation_batches))
    if cfg.TEST.AUG.ENABLED and not cfg.DATASETS.VAL:
        # Period 0: at the end of training only.
        built.append(Evaluation(0, evaluate_augmented))
    built.append(drawing)
    return built


class DrawErrors(HookBase):
    """Draw the errors of a training's last evaluation, once it is through.

    Drawing takes seconds. A training that is interrupted should stop within seconds, and evaluates
    again when it is resumed.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, partial[object]] = {}

    def postpone(self, evaluator: DatasetEvaluator) -> DatasetEvaluator:
        """Have an evaluator draw at the end, unless a later one writes to the same folder.

        Args:
            evaluator: of any kind; others than :class:`CityscapesInstanceEvaluator`, such as a
                group of evaluators, stay as they are.

        Returns:
            The evaluator.
        """
        if isinstance(evaluator, CityscapesInstanceEvaluator) and evaluator.draw is not None:
            draw = evaluator.draw
            # A build_evaluator of the user's own may return the same one again.
            if not (isinstance(draw, partial) and draw.func == self._keep):
                evaluator.draw = partial(self._keep, draw)
        return evaluator

    def _keep(
        self, draw: DrawFunction, folder: Path, summary: ErrorSummary, ap: FloatArray
    ) -> None:
        self._pending[folder] = partial(draw, folder, summary, ap)

    def after_train(self) -> None:
        """Draw, unless iterations are left."""
        if self.trainer.iter < self.trainer.max_iter:
            return
        for folder, draw in self._pending.items():
            try:
                draw()
            except (OSError, InputError) as error:
                logger.warning("%s: the error analysis is incomplete: %s", folder, error)
