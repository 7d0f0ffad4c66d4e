"""Detectron2's trainer, on Cityscapes."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from inspect import getattr_static
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cityscapes_maskrcnn.config_check import check_ranges
from cityscapes_maskrcnn.data import loaders
from cityscapes_maskrcnn.data.cache import own_cache_folder
from cityscapes_maskrcnn.data.provenance import TRAINED, TUNED, merge
from cityscapes_maskrcnn.data.registration import register_datasets_of
from cityscapes_maskrcnn.data.training_stream import TrainingStream
from cityscapes_maskrcnn.engine import inference, solver
from cityscapes_maskrcnn.engine.accumulation import check_accumulation
from cityscapes_maskrcnn.engine.auto_batch import choose_accumulation
from cityscapes_maskrcnn.engine.best_checkpoint import BEST_FILE
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.checkpoint_origin import origin_of_run
from cityscapes_maskrcnn.engine.class_check import check_classes, class_names
from cityscapes_maskrcnn.engine.data_wait import WarnOfWaiting
from cityscapes_maskrcnn.engine.distillation import build_distillation
from cityscapes_maskrcnn.engine.drift_report import DriftReport
from cityscapes_maskrcnn.engine.ema import SUFFIX, FinalAverage, WeightAverage
from cityscapes_maskrcnn.engine.event_writers import RunStorage, TensorboardWriter
from cityscapes_maskrcnn.engine.explained_errors import explained_errors, explained_keys
from cityscapes_maskrcnn.engine.hooks import (
    AverageNormStatistics,
    CheckFrozen,
    MeasurementHook,
    SeedEveryStep,
    StopOnSignal,
    WriteEvents,
    finished_hooks,
)
from cityscapes_maskrcnn.engine.measurement_hooks import build_measurement_hooks
from cityscapes_maskrcnn.engine.precision import build_step_trainer
from cityscapes_maskrcnn.engine.run_progress import ShowProgress, with_progress
from cityscapes_maskrcnn.engine.run_setup import environment
from cityscapes_maskrcnn.engine.seen_images import (
    data_of_run,
    data_of_selection,
    refuse_seen_images,
)
from cityscapes_maskrcnn.engine.summary import RunSummary, about_run
from cityscapes_maskrcnn.engine.tracking_services import (
    TrackRun,
    check_tracking,
    service_writers,
    write_final_scores,
)
from cityscapes_maskrcnn.engine.validation import check_validation, measured_in_training
from cityscapes_maskrcnn.modeling.activation_checkpointing import checkpoint_activations
from cityscapes_maskrcnn.modeling.compiling import compile_parts
from cityscapes_maskrcnn.modeling.determinism import make_deterministic
from cityscapes_maskrcnn.modeling.folding import activate_in_place, fold_frozen_norms
from cityscapes_maskrcnn.modeling.freezing import freeze_fpn, parameter_table
from cityscapes_maskrcnn.modeling.narrowing import narrow_layers
from cityscapes_maskrcnn.modeling.pooling import pool_at_exact_boxes
from cityscapes_maskrcnn.utils.config_keys import changed
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.training_metrics import METRICS_FILE, measured_on
from cityscapes_maskrcnn.visualization.training_curves import (
    plot_training_curves,
    training_protocol,
)


class Trainer(DefaultTrainer):
    """Detectron2's :class:`DefaultTrainer` with this project's data, evaluation and checkpoints.

    Override its ``build_*`` methods as with Detectron2. Differences from :class:`DefaultTrainer`:

    * The order of the data and every random choice depend only on ``SEED`` and the iteration, so
      ``--resume`` continues exactly. A custom ``build_train_loader`` decides its own order.
    * Checkpoints are written atomically and loaded without running code.
    * Several processes work on CPUs too.

    Args:
        cfg: the frozen config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer.__init__ hands DistributedDataParallel a GPU number, which fails on CPUs,
        # and loads checkpoints by unpickling; the rest of it is repeated here.
        TrainerBase.__init__(self)
        check_ranges(cfg)
        with explained_keys("SOLVER", "a schedule for this number of processes"):
            cfg = self.auto_scale_workers(cfg, comm.get_world_size()).clone()
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise InputError("TEST.PRECISE_BN.ENABLED: not supported in this project's trainer")
        if cfg.INCLUDE:
            raise InputError(
                f"INCLUDE {tuple(cfg.INCLUDE)}: the tools merge these files; from Python, merge "
                "them with cfg.merge_from_file and empty the key"
            )
        register_datasets_of(cfg)
        check_classes(cfg)
        measured = measured_in_training(cfg)
        check_validation(measured)
        # The evaluators of a subclass may measure anything.
        if getattr_static(type(self), "build_evaluator") is vars(Trainer)["build_evaluator"]:
            inference.check_metric(measured)
        check_accumulation(cfg)
        check_tracking(cfg)
        cfg.defrost()
        solver.resolve_epochs(cfg)
        if cfg.SEED < 0:
            # Data and random choices share the seed, and so do all processes.
            cfg.SEED = comm.shared_random_seed()
        cfg.freeze()
        # Data that are missing or cannot be scored must be found now: not after the first epoch,
        # and not after a page of log about the model.
        data_loader = self.build_train_loader(cfg)
        for name in (*cfg.DATASETS.VAL, *cfg.DATASETS.TEST):
            self.build_evaluator(cfg, name)

        def build_exact_model(cfg: CfgNode) -> nn.Module:
            # Not in build_model, which a subclass may override.
            return pool_at_exact_boxes(self.build_model(cfg))

        model = build_exact_model(cfg)
        logging.getLogger(__name__).info("Trainable parameters:\n%s", parameter_table(model))
        optimizer = self.build_optimizer(cfg, model)
        distillation = build_distillation(cfg, model, build_exact_model)

        on_gpu = next(model.parameters()).is_cuda
        # Detectron2 takes the local rank for the number of the GPU, which under srun it may not be.
        device_ids = [torch.cuda.current_device()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self._trainer.distillation = distillation
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer.of_config(
            cfg,
            model,
            may_differ=cfg.MODEL.WEIGHTS_MAY_DIFFER,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        if cfg.DATASETS.TEST and cfg.TEST.AUG.ENABLED:
            inference.with_test_time_augmentation(cfg, model)

    @property
    def stream(self) -> TrainingStream | None:
        """The order of the training data; None with a custom loader."""
        stream = getattr(self._trainer.data_loader, "dataset", None)
        return stream if isinstance(stream, TrainingStream) else None

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or the whole state from the last checkpoint in ``OUTPUT_DIR``.

        Args:
            resume: continue from the last checkpoint if there is one.

        Raises:
            InputError: the model was, or would be, trained on images of ``DATASETS.TEST``, or the
                processes found different checkpoints; see also :meth:`SafeCheckpointer.load`.
        """
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise InputError(
                f"--resume: the processes would continue from iterations {starts}; all machines "
                f"must see the same OUTPUT_DIR {self.cfg.OUTPUT_DIR} (a shared folder)"
            )
        distillation = self._trainer.distillation
        self.checkpointer.history = merge(
            self.checkpointer.history,
            distillation.history if distillation else (),
            data_of_run(self.cfg),
        )
        # Scores may steer training, but their images must not be trained on.
        history = self.checkpointer.history
        refuse_seen_images(measured_in_training(self.cfg), history, roles=(TRAINED,))
        if self.cfg.DATASETS.VAL:
            # What the best checkpoint, which is scored at the end, will have seen.
            history = merge(history, data_of_selection(self.cfg))
            refuse_seen_images(self.cfg, history, roles=(TRAINED, TUNED))
        # A run that is resumed goes on with the seed that it drew.
        seed = next((h.seed for h in self._hooks if isinstance(h, SeedEveryStep)), self.cfg.SEED)
        if comm.is_main_process():
            on_gpu = next(self.model.parameters()).is_cuda
            device = torch.cuda.get_device_name() if on_gpu else "cpu"
            self.checkpointer.origin = origin_of_run(
                config=self.cfg.dump(),
                seed=seed,
                device=f"{comm.get_world_size()} x {device}",
                environment=environment(),
                parents=self.checkpointer.parents(),
                classes=class_names(self.cfg),
            )
        if self.stream is not None:
            self.stream.start_batch = self.start_iter
            self.stream.seed = seed

    def choose_micro_batch(self) -> None:
        """Set ``SOLVER.ACCUMULATE`` to fit the GPUs' memory; call it after loading the weights.

        Raises:
            InputError: see :func:`.auto_batch.choose_accumulation`.
        """
        self._trainer.accumulate = choose_accumulation(self)
        self.cfg = changed(self.cfg, {"SOLVER.ACCUMULATE": self._trainer.accumulate})
        if self.checkpointer.origin:
            self.checkpointer.origin["config"] = self.cfg.dump()

    def train(self) -> dict[str, Any]:
        """Run the remaining iterations, with evaluations and checkpoints.

        Returns:
            The results of the last evaluation; empty in all but the main process. With
            ``DATASETS.VAL``, those of the best checkpoint on ``DATASETS.TEST``.

        Raises:
            InputError: a file is broken, the loss became infinite, or a GPU is out of memory.
        """
        logging.getLogger(__name__).info(
            "Starting training from iteration %d of %d", self.start_iter, self.max_iter
        )
        # Another config may have chosen other classes since.
        register_datasets_of(self.cfg)
        self.iter = self.start_iter
        # Detectron2's loop is fixed in length; this one ends where a hook lowers max_iter.
        with (
            RunStorage(self.start_iter) as self.storage,
            finished_hooks(self),
            explained_errors(self),
        ):
            self.before_train()
            self._repeat_measurements()
            while self.iter < self.max_iter:
                self.before_step()
                self.run_step()
                self.after_step()
                self.iter += 1
        results = self._report() or getattr(self, "_last_eval_results", {})
        if comm.is_main_process():
            folder = Path(self.cfg.OUTPUT_DIR)
            try:
                plot_training_curves(
                    folder / METRICS_FILE,
                    folder / "training_curves.png",
                    about=about_run(
                        self.cfg,
                        self.cfg.DATASETS.TRAIN,
                        num_images=self._num_images,
                        protocol=training_protocol(measured_on(self.cfg)),
                    ),
                    batch_size=self.cfg.SOLVER.IMS_PER_BATCH,
                )
            except InputError as error:
                logging.getLogger(__name__).warning("No training curves: %s", error)
            verify_results(self.cfg, results)
        return results

    def _report(self) -> dict[str, Any]:
        """Score the best checkpoint on ``DATASETS.TEST``, if ``DATASETS.VAL`` has chosen it."""
        if not (self.cfg.DATASETS.VAL and self.cfg.DATASETS.TEST):
            return {}
        logger = logging.getLogger(__name__)
        best = Path(self.cfg.OUTPUT_DIR, BEST_FILE)
        # The main process may have written it to a disk that other machines do not see.
        found = comm.all_gather(best.is_file())
        if not all(found):
            if any(found):
                logger.warning(
                    "%s is not on all machines, so it is not scored on %s; score it on the one that"
                    " has it: tools/train_net.py --eval-only MODEL.WEIGHTS %s",
                    best,
                    self.cfg.DATASETS.TEST,
                    best,
                )
            return {}
        logger.info("%s on %s:", best, self.cfg.DATASETS.TEST)
        results = self.evaluate_checkpoint(changed(self.cfg, {"MODEL.WEIGHTS": str(best)}))
        if comm.is_main_process():
            write_final_scores(self.cfg, results, self.max_iter)
        return results

    def _repeat_measurements(self) -> None:
        """Make up for what the checkpoint does not have: what followed it in its iteration."""
        if not self.start_iter:
            return
        self.iter = self.storage.iter = self.start_iter - 1
        final = Path(self.cfg.OUTPUT_DIR, "model_final.pth")
        if self.start_iter == self.max_iter and comm.is_main_process() and not final.is_file():
            self.checkpointer.save(final.stem, iteration=self.iter)
        for hook in self._hooks:
            if isinstance(hook, MeasurementHook):
                hook.repeat()
        self.iter = self.start_iter

    @property
    def _num_images(self) -> int | None:
        """The number of images of an epoch; None with a custom loader."""
        return self.stream.num_images if self.stream else None

    def build_hooks(self) -> list[HookBase]:
        """Build the hooks, in the order in which they run; the last one writes the events."""
        cfg, main_process = self.cfg, comm.is_main_process()
        built: list[HookBase] = [SeedEveryStep(cfg.SEED), hooks.IterationTimer()]
        progress = ShowProgress(cfg)
        if main_process:
            built += [WarnOfWaiting(cfg), progress]
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            built.append(hooks.LRScheduler())
        periods = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD
        built.append(AverageNormStatistics(*periods))
        average = None
        if cfg.SOLVER.EMA_DECAY:
            average = WeightAverage(self.model, cfg.SOLVER.EMA_DECAY, *periods)
            built.append(average)
        # The checkpoint comes before the measurements: an interruption of them loses no iteration.
        if main_process:
            built += [
                CheckFrozen(),
                hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
            ]
        stop = StopOnSignal(self.checkpointer)
        built.append(stop)
        if cfg.DATASETS.VAL or cfg.DATASETS.TEST:
            built += build_measurement_hooks(self, stop, average)
        if main_process:
            if average:
                built.append(FinalAverage(average))
            if cfg.SOLVER.DRIFT_REPORT:
                built.append(DriftReport(cfg, self._num_images))
            writers = with_progress(self.build_writers(), progress, self.max_iter)
            built += [
                RunSummary(cfg, self._num_images, progress.clock),
                TrackRun(writers),
                WriteEvents(writers, cfg.TEST.EVAL_PERIOD),
            ]
        return built

    def build_writers(self) -> list[EventWriter]:
        """Build the log's line, ``metrics.json``, TensorBoard and ``TRACKING.BACKENDS``."""
        log, metrics, _ = super().build_writers()
        return [log, metrics, *service_writers(self.cfg), TensorboardWriter(self.cfg)]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model: pruned, frozen, folded, channels-last and compiled as the config says.

        With ``DETERMINISTIC`` this process computes reproducibly from then on.

        Raises:
            InputError: Detectron2 cannot build a model from these keys, ``MODEL.PRUNED_WIDTHS``
                belong to another model, or ``MODEL.COMPILE`` requires a compiler that does not work
                here.
        """
        make_deterministic(cfg)
        with explained_keys("MODEL", "a model"):
            if ":" in cfg.MODEL.DEVICE:
                # Batches are copied to the current GPU, whose memory --auto-batch looks at.
                torch.cuda.set_device(cfg.MODEL.DEVICE)
            model = super().build_model(cfg)
        if cfg.MODEL.PRUNED_WIDTHS:
            narrow_layers(model, cfg.MODEL.PRUNED_WIDTHS)
        if cfg.MODEL.FPN.FREEZE:
            freeze_fpn(model)
        if cfg.MODEL.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        if cfg.MODEL.FOLD_FROZEN_NORM:
            fold_frozen_norms(model)
        activate_in_place(model)
        checkpoint_activations(model, cfg.MODEL.ACTIVATION_CHECKPOINTING)
        return compile_parts(model, cfg.MODEL.COMPILE, own_cache_folder() / "compiled")

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer that ``SOLVER.OPTIMIZER`` names, for the trainable parameters."""
        with explained_keys("SOLVER", "an optimizer"):
            return solver.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names."""
        with explained_keys("SOLVER", "a learning rate schedule"):
            return solver.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build the endless loader of training batches; an override may return any iterable."""
        return loaders.build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the loader of one dataset to score, with batches of up to ``TEST.BATCH_SIZE``."""
        return loaders.build_test_loader(cfg, dataset_name)

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode) -> Any:
        """Build a loader of ``DATASETS.TEST`` with ground truth, at the size of inference.

        Args:
            cfg: what :func:`.validation.measured_in_training` returns.
        """
        return loaders.build_validation_loader(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Build the evaluator for a dataset by its ``evaluator_type``.

        It writes to ``output_folder``, by default ``OUTPUT_DIR/inference``; with several datasets,
        each has a folder in it.
        """
        folder = Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference")
        return inference.build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Score on ``DATASETS.TEST``, as Detectron2; masks are pasted where evaluators need it."""
        if evaluators is None:
            register_datasets_of(cfg)
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        model = inference.for_inference(cfg, inference.fit_to_evaluators(cfg, model, evaluators))
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(  # noqa: N802
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Score on ``DATASETS.TEST`` with the test-time augmentation of ``TEST.AUG``.

        Returns:
            As :meth:`test`, with names that end in ``_TTA``. The files are in ``inference_TTA``.

        Raises:
            InputError: test-time augmentation does not support this model.
        """
        augmented = inference.with_test_time_augmentation(cfg, model)
        evaluators = evaluators or cls.build_evaluators(cfg, "_TTA")
        return cls._test_as("_TTA", "with test-time augmentation", cfg, augmented, evaluators)

    @classmethod
    def test_average(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator]
    ) -> dict[str, Any]:
        """Score a model with averaged weights on ``DATASETS.TEST``.

        Args:
            cfg: the frozen config.
            model: with the averaged weights.
            evaluators: of the datasets, see :meth:`build_evaluators`.

        Returns:
            As :meth:`test`, with names that end in ``_EMA``.
        """
        return cls._test_as(SUFFIX, "with averaged weights", cfg, model, evaluators)

    @classmethod
    def _test_as(
        cls,
        suffix: str,
        how: str,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator],
    ) -> dict[str, Any]:
        """Score a model; names end in ``suffix``, and the log says ``how`` it is done."""
        logger = logging.getLogger(__name__)
        logger.info("Scoring on %s %s (%s):", cfg.DATASETS.TEST, how, suffix)
        results = cls.test(cfg, model, evaluators)
        logger.info("The scores above are those %s (%s)", how, suffix)
        return OrderedDict((f"{name}{suffix}", scores) for name, scores in results.items())

    @classmethod
    def build_evaluators(cls, cfg: CfgNode, suffix: str) -> list[DatasetEvaluator]:
        """Build the evaluators of ``DATASETS.TEST``; files go to ``inference`` and the suffix."""
        folder = str(Path(cfg.OUTPUT_DIR) / f"inference{suffix}")
        return [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]

    @classmethod
    def evaluate_checkpoint(cls, cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
        """Score ``MODEL.WEIGHTS``; see :func:`.engine.inference.evaluate_checkpoint`."""
        return inference.evaluate_checkpoint(cls, cfg, resume)
