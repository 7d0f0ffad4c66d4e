"""Detectron2's trainer, on Cityscapes."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_batch_data_loader,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.data.provenance import TRAINED, TUNED, merge
from cityscapes_maskrcnn.data.training_stream import TrainingStream
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.drift_report import DriftReport
from cityscapes_maskrcnn.engine.epochs import training_dicts
from cityscapes_maskrcnn.engine.evaluators import build_evaluator, fit_to_evaluators
from cityscapes_maskrcnn.engine.hooks import (
    AverageNormStatistics,
    CheckFrozen,
    SeedEveryStep,
    StopOnSignal,
    WriteEvents,
)
from cityscapes_maskrcnn.engine.precision import build_step, match_memory_format
from cityscapes_maskrcnn.engine.run_setup import save_config
from cityscapes_maskrcnn.engine.schedule import EarlyStopping, PlateauSchedule
from cityscapes_maskrcnn.engine.seen_images import data_of_run, refuse_seen_images
from cityscapes_maskrcnn.engine.summary import RunSummary, without_nan, write_scores
from cityscapes_maskrcnn.engine.test_time_augmentation import with_test_time_augmentation
from cityscapes_maskrcnn.engine.unsupported import refuse_unsupported
from cityscapes_maskrcnn.engine.validation import ValidationLoss, check_validation
from cityscapes_maskrcnn.modeling.freezing import format_parts, freeze_fpn, trainable_parts
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.visualization.training_curves import plot_training_curves


class Trainer(DefaultTrainer):
    """Detectron2's :class:`DefaultTrainer` with this project's parts plugged in.

    * The order of the data and every random choice follow from ``SEED`` and the iteration, so that
      ``--resume`` continues exactly (see :mod:`.data.training_stream` and :mod:`.engine.hooks`).
    * Checkpoints are written whole and loaded without running code.
    * Several processes work on CPUs too.

    Args:
        cfg: the frozen config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer.__init__ hands DistributedDataParallel a GPU number, which fails on CPUs,
        # and loads checkpoints by unpickling; the rest of it is repeated here.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        refuse_unsupported(cfg)
        check_validation(cfg)
        if cfg.SOLVER.IMS_PER_BATCH < 1:
            raise InputError(f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: at least 1")
        if cfg.SOLVER.IMS_PER_BATCH % comm.get_world_size():
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be shared equally by "
                f"{comm.get_world_size()} processes"
            )
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        model = self.build_model(cfg)
        logging.getLogger(__name__).info(
            "What is trained:\n%s", format_parts(trainable_parts(model))
        )
        optimizer = self.build_optimizer(cfg, model)
        self.stream, loader = self.build_train_stream(cfg, self.seed)

        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model, broadcast_buffers=False, **({} if on_gpu else {"device_ids": None})
        )
        self._trainer = build_step(cfg, model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER,
            allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        for name in cfg.DATASETS.TEST:
            # What cannot be scored shall be told now, not after the first epoch.
            self.build_evaluator(cfg, name)
        if cfg.DATASETS.TEST and cfg.TEST.AUG.ENABLED:
            with_test_time_augmentation(cfg, model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or everything from the last checkpoint of ``OUTPUT_DIR``.

        Args:
            resume: continue from the last checkpoint if there is one.

        Raises:
            InputError: see :meth:`SafeCheckpointer.load`; or the model has been, or would be,
                trained on images of ``DATASETS.TEST``; or the processes found other checkpoints.
        """
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise InputError(
                f"--resume: the processes would go on from iterations {starts}; all machines must "
                f"see the same OUTPUT_DIR {self.cfg.OUTPUT_DIR} (a shared folder)"
            )
        history = merge(self.checkpointer.history, data_of_run(self.cfg))
        self.checkpointer.history = history
        # What is scored while training may steer it, but the weights must not know it by heart.
        refuse_seen_images(self.cfg, history, roles=(TRAINED,))
        self.stream.start_batch = self.start_iter
        for hook in self._hooks:
            if isinstance(hook, SeedEveryStep):
                self.stream.seed = hook.seed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a run that is resumed."""
        super().load_state_dict(state_dict)
        match_memory_format(self._trainer.optimizer)

    def train(self) -> dict[str, Any]:
        """Run the iterations that are left, evaluating and saving on the way.

        Returns:
            The results of the last evaluation; empty on other than the main process.

        Raises:
            InputError: a broken file, a loss that became infinite, or a GPU out of memory.
        """
        logging.getLogger(__name__).info(
            "Starting training from iteration %d of %d", self.start_iter, self.max_iter
        )
        self.iter = self.start_iter
        # Detectron2's loop is fixed in length; this one ends earlier after stop_after().
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except BaseException as error:
                # EvalHook takes an error in the last iteration for the end of training and would
                # evaluate, which hangs as soon as other processes wait for this one elsewhere.
                self.max_iter = self.iter + 2
                if isinstance(error, torch.OutOfMemoryError):
                    raise InputError(
                        f"out of memory on the GPU in iteration {self.iter}: lower "
                        "SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN (in an evaluation "
                        f"INPUT.MIN_SIZE_TEST): {str(error).partition('. GPU')[0]}"
                    ) from error
                if isinstance(error, FloatingPointError):
                    raise InputError(
                        f"training diverged: {error}; lower SOLVER.BASE_LR or lengthen "
                        "SOLVER.WARMUP_ITERS"
                    ) from error
                raise
            finally:
                self.after_train()
        results = getattr(self, "_last_eval_results", {})
        if comm.is_main_process():
            folder = Path(self.cfg.OUTPUT_DIR)
            try:
                plot_training_curves(folder / "metrics.json", folder / "training_curves.png")
            except InputError as error:
                logging.getLogger(__name__).warning("No training curves: %s", error)
            verify_results(self.cfg, results)
        return results

    def stop_after(self, iterations: int) -> None:
        """End training when this many iterations are done, as if it had been planned so."""
        self.max_iter = iterations
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_iter = iterations

    def build_hooks(self) -> list[HookBase]:
        """Build the hooks, in the order in which they run."""
        cfg = self.cfg
        main_process = comm.is_main_process()
        built: list[HookBase | None] = [
            SeedEveryStep(self.seed),
            CheckFrozen() if main_process else None,
            hooks.IterationTimer(),
            AverageNormStatistics(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD),
            ValidationLoss(cfg.TEST.EVAL_PERIOD, partial(self.build_validation_loader, cfg))
            if cfg.TEST.VALIDATION_LOSS
            else None,
            # What acts on the validation loss comes after it and before the checkpoint.
            PlateauSchedule(self.scheduler)
            if isinstance(self.scheduler, ReduceLROnPlateau)
            else hooks.LRScheduler(),
            EarlyStopping(cfg.SOLVER.EARLY_STOPPING.PATIENCE)
            if cfg.SOLVER.EARLY_STOPPING.ENABLED
            else None,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if main_process
            else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate) if cfg.DATASETS.TEST else None,
            # Period 0: at the end of training only.
            hooks.EvalHook(0, lambda: without_nan(self.test_with_TTA(cfg, self.model)))
            if cfg.DATASETS.TEST and cfg.TEST.AUG.ENABLED
            else None,
            # Writers come after everything that produces numbers ...
            WriteEvents(self.build_writers(), cfg.TEST.EVAL_PERIOD) if main_process else None,
            DriftReport(Path(cfg.OUTPUT_DIR)) if cfg.SOLVER.DRIFT_REPORT and main_process else None,
            RunSummary(cfg, self.stream.num_images) if main_process else None,
            # ... and leaving comes last.
            StopOnSignal(self.checkpointer),
        ]
        return [hook for hook in built if hook is not None]

    def _evaluate(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return without_nan(self._last_eval_results)

    @classmethod
    def evaluate_checkpoint(cls, cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
        """Score ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

        Args:
            cfg: the frozen config.
            resume: take the last checkpoint of ``OUTPUT_DIR`` instead, if there is one.

        Returns:
            The results on the main process, an empty dict on others.

        Raises:
            InputError: there are no weights or no dataset to score on, or the model has seen
                images of it.
        """
        if not cfg.DATASETS.TEST:
            raise InputError("DATASETS.TEST is empty: name a dataset to score on")
        model = cls.build_model(cfg)
        checkpointer = SafeCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER,
            allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
        )
        if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
            raise InputError("MODEL.WEIGHTS is empty: name the checkpoint to score")
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        seen = refuse_seen_images(cfg, checkpointer.history, roles=(TRAINED, TUNED))
        save_config(cfg, scoring=True)
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(cls.test_with_TTA(cfg, model))
        if comm.is_main_process():
            write_scores(cfg, checkpointer.path, without_nan(results), seen)
            verify_results(cfg, results)
        return results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model, its frozen FPN and its memory format as the config says."""
        model = super().build_model(cfg)
        if cfg.MODEL.FPN.FREEZE:
            freeze_fpn(model)
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Score on ``DATASETS.TEST``; ``evaluators``, if given, get what Detectron2's get."""
        return super().test(cfg, model if evaluators else fit_to_evaluators(cfg, model), evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: N802
        """Score on ``DATASETS.TEST`` with test-time augmentation, as ``TEST.AUG`` describes it.

        Detectron2's name and conventions: plain inference is scored too, by :meth:`test`.

        Returns:
            As :meth:`test`, each name ending in ``_TTA``. The files are in ``inference_TTA``.

        Raises:
            InputError: the model is not one that can be augmented.
        """
        augmented = with_test_time_augmentation(cfg, model)
        logger = logging.getLogger(__name__)
        logger.info("With test-time augmentation (_TTA), on each image of %s:", cfg.DATASETS.TEST)
        evaluators = [cls.build_evaluator(cfg, name, "inference_TTA") for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, augmented, evaluators)
        logger.info("The scores since then are those with test-time augmentation (_TTA)")
        return OrderedDict((f"{name}_TTA", scores) for name, scores in results.items())

    @classmethod
    def build_train_stream(cls, cfg: CfgNode, seed: int) -> tuple[TrainingStream, Any]:
        """Build the stream of training examples and the loader that batches it."""
        dicts = training_dicts(cfg, log_classes=True)
        batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        # DatasetFromList keeps the dicts as one array, which worker processes share.
        stream = TrainingStream(
            DatasetFromList(dicts, copy=False), CityscapesMapper(cfg, True), seed, batch_size
        )
        loader = build_batch_data_loader(
            stream,
            None,
            cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
            # A generator of its own: starting a loader draws a number, which must not be one that
            # the first step after a resume would have drawn.
            seed=seed,
        )
        return stream, loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the loader of one dataset to score on; one image a batch, in order."""
        return build_detection_test_loader(
            cfg, dataset_name, mapper=CityscapesMapper(cfg, is_train=False)
        )

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode) -> Any:
        """Build a loader of ``DATASETS.TEST`` with ground truth, at the size of inference."""
        dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        mapper = CityscapesMapper(cfg, is_train=True, augmentations=[resize])
        return build_detection_test_loader(
            dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer that ``SOLVER.OPTIMIZER`` names, for the trainable parameters."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        adaptive = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
        if cfg.SOLVER.OPTIMIZER not in adaptive:
            raise InputError(
                f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r}: it must be SGD, Adam or AdamW"
            )
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer = maybe_add_gradient_clipping(cfg, adaptive[cfg.SOLVER.OPTIMIZER])
        # Fused: one pass over all parameters instead of a dozen operations for each tensor.
        return optimizer(
            parameters,
            lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            # Under AMP a fused optimizer unscales gradients itself, after they would be clipped.
            fused=not (cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.ENABLED),
        )

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names."""
        if cfg.SOLVER.LR_SCHEDULER_NAME != "ReduceLROnPlateau":
            return super().build_lr_scheduler(cfg, optimizer)
        return ReduceLROnPlateau(
            optimizer, "min", factor=cfg.SOLVER.PLATEAU.FACTOR, patience=cfg.SOLVER.PLATEAU.PATIENCE
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder_name: str = "inference"
    ) -> DatasetEvaluator:
        """Build the evaluator for a dataset by its ``evaluator_type``.

        Its files go to a folder of ``OUTPUT_DIR``; with several datasets, each has one in it.
        """
        return build_evaluator(cfg, dataset_name, Path(cfg.OUTPUT_DIR) / folder_name)
