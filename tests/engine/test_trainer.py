"""Trainer as a Detectron2 user extends it, stops it and resumes it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ROIMasks

from cityscapes_maskrcnn.data.provenance import read_history
from cityscapes_maskrcnn.engine import hooks as engine_hooks
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.folding import FoldedConv2d
from cityscapes_maskrcnn.utils.errors import InputError

Config = Callable[..., CfgNode]
Train = Callable[..., Trainer]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


class MaskTypes(DatasetEvaluator):
    """Counts the images whose masks are pasted."""

    def reset(self) -> None:
        self.pasted = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            masks = output["instances"].pred_masks
            assert not isinstance(masks, ROIMasks)
            assert masks.shape[1:] == (image["height"], image["width"])
            self.pasted += 1

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"mine": {"pasted": float(self.pasted)}}


class Mine(Trainer):
    """Everything that a Detectron2 user overrides."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        loader = super().build_train_loader(cfg)
        return (batch[:1] for batch in loader)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[Any]:
        return list(super().build_test_loader(cfg, dataset_name))[:2]

    @classmethod
    def build_evaluator(cls, *_: object) -> DatasetEvaluator:
        return MaskTypes()

    def build_hooks(self) -> list[HookBase]:
        built = super().build_hooks()
        self.mine = Mark()
        built.insert(-1, self.mine)
        return built


class Detectron2s(Trainer):
    """Detectron2's own loader and hooks."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        return build_detection_train_loader(cfg)

    def build_hooks(self) -> list[HookBase]:
        return DefaultTrainer.build_hooks(self)


class Finite(Trainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        return islice(super().build_train_loader(cfg), 2)


class Mark(HookBase):
    def after_step(self) -> None:
        self.trainer.storage.put_scalar("mark", self.trainer.iter, smoothing_hint=False)


def test_overridden_builders_are_used_as_in_detectron2(train: Train, tmp_path: Path) -> None:
    trainer = train("TEST.EVAL_PERIOD", 1, kind=Mine)
    assert trainer.stream is None
    assert isinstance(trainer.mine, Mark)
    # What a hook before the last one records is written, and so are the user's scores.
    scores = {each["iteration"]: each.get("mine/pasted") for each in lines(tmp_path)}
    assert scores == {0: 2.0, 1: None, 2: 2.0}
    assert [each["mark"] for each in lines(tmp_path) if "mark" in each] == [0.0, 1.0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["images"], summary["epochs"], summary["iterations"]) == (None, None, 2)


def test_folding_changes_neither_what_is_learnt_nor_what_is_saved(
    train: Train, tmp_path: Path
) -> None:
    options = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2]
    options += ["SOLVER.BASE_LR", 1e-5, "SOLVER.CHECKPOINT_PERIOD", 1]
    options += ["DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False]
    runs = {}
    for fold in (True, False):
        folder = tmp_path / str(fold)
        trainer = train(*options, "MODEL.FOLD_FROZEN_NORM", fold, "OUTPUT_DIR", folder)
        layer = trainer.model.backbone.bottom_up.stem.conv1
        assert isinstance(layer, FoldedConv2d) is fold
        runs[fold] = [
            {name: value for name, value in each.items() if "loss" in name}
            for each in lines(folder)
        ]
    assert len(runs[True][0]) > 5
    for ours, theirs in zip(runs[True], runs[False], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)

    # A checkpoint of the one is the other's.
    (tmp_path / "True" / "last_checkpoint").write_text("model_0000000.pth")
    train(*options, "MODEL.FOLD_FROZEN_NORM", False, "OUTPUT_DIR", tmp_path / "True", resume=True)
    resumed, whole = (
        torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]
        for folder in ("True", "False")
    )
    assert list(resumed) == list(whole)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-6)


def test_detectron2s_loader_and_hooks_work(train: Train, tmp_path: Path) -> None:
    trainer = train("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2, kind=Detectron2s)
    assert trainer.iter == 2
    assert (tmp_path / "model_final.pth").is_file()
    assert (tmp_path / "inference/cityscapes_results.json").is_file()


def test_a_loader_that_ends_gets_one_line(train: Train) -> None:
    with pytest.raises(InputError, match="the training loader ended before iteration 2 of 4: buil"):
        train("SOLVER.MAX_ITER", 4, kind=Finite)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"],
            "DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler: this project's training loader",
        ),
        (["MODEL.LOAD_PROPOSALS", True], "MODEL.LOAD_PROPOSALS True: this project's"),
        (["TEST.PRECISE_BN.ENABLED", True], "TEST.PRECISE_BN.ENABLED: not supported"),
        (
            ["MODEL.ROI_MASK_HEAD.NAME", "X"],
            "MODEL: Detectron2 cannot build a model of these keys: KeyError: .*'X' found in",
        ),
        (
            ["MODEL.FPN.NORM", "XN"],
            "MODEL: Detectron2 cannot build a model of these keys: KeyError",
        ),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "p5"],
            "SOLVER: Detectron2 cannot build a learning rate schedule of these keys: ValueError: ",
        ),
        (
            ["SOLVER.WARMUP_METHOD", "/dev/zero"],
            "of these keys: ValueError: Unknown warmup method:",
        ),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR", 0.0],
            "of these keys: ZeroDivisionError: float division by zero",
        ),
        (
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0],
            "SOLVER: Detectron2 cannot build an optimizer of these keys: ValueError: Nesterov",
        ),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "x"],
            "an optimizer of these keys: ValueError: 'x' is not a valid GradientClipType",
        ),
        (["SOLVER.IMS_PER_BATCH", 0], "SOLVER.IMS_PER_BATCH 0: it must be 1 to 65,536"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["DATASETS.TEST", "()"], "TEST.VALIDATION_LOSS is measured on DATASETS.TEST, which is em"),
        (
            ["TEST.VALIDATION_LOSS", False, "SOLVER.EARLY_STOPPING.ENABLED", True],
            "watch the validation loss: set TEST.VALIDATION_LOSS True",
        ),
        (
            ["SOLVER.PLATEAU.THRESHOLD", -0.1],
            "SOLVER.PLATEAU.THRESHOLD -0.1: it must be 0 or m",
        ),
        (
            ["SOLVER.PLATEAU.THRESHOLD", 1.0],
            "SOLVER.PLATEAU.THRESHOLD 1.0: it must be 0 or m",
        ),
        (
            ["SOLVER.PLATEAU.FACTOR", 1.0],
            "PLATEAU.FACTOR 1.0: it must be above 0 and below 1",
        ),
        (["SOLVER.PLATEAU.PATIENCE", -1], "SOLVER.PLATEAU.PATIENCE -1: it must be 0 or more"),
        (["SOLVER.EARLY_STOPPING.PATIENCE", 0], "EARLY_STOPPING.PATIENCE 0: it must be 1 or more"),
        (
            ["TEST.VALIDATION_LOSS", False, "SOLVER.BEST_CHECKPOINT_METRIC", "validation/loss_cls"],
            "SOLVER.BEST_CHECKPOINT_METRIC validation/loss_cls: is not measured",
        ),
        (
            ["SOLVER.BEST_CHECKPOINT_METRIC", "segm/mAP"],
            "SOLVER.BEST_CHECKPOINT_METRIC segm/mAP: is not measured; did you mean segm/AP?",
        ),
        (
            ["SOLVER.BEST_CHECKPOINT_METRIC", "segm/AP-cars"],
            "SOLVER.BEST_CHECKPOINT_METRIC segm/AP-cars: is not measured; did you mean segm/AP-car",
        ),
        (
            ["MODEL.MASK_ON", False, "SOLVER.BEST_CHECKPOINT_METRIC", "segm/AP"],
            "SOLVER.BEST_CHECKPOINT_METRIC segm/AP: is not measured; coco_bbox/AP, coco_bbox/AP50",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    config: Config, options: list[object], message: str
) -> None:
    with pytest.raises(InputError, match=re.sub(r"\.(?!\*)", r"\.", message)):
        Trainer(config(*options))


def test_values_that_python_has_set_are_checked_too(config: Config) -> None:
    cfg = config()
    cfg.MODEL.RPN.POSITIVE_FRACTION = 3.0
    message = r"^MODEL\.RPN\.POSITIVE_FRACTION 3\.0: it must be 0 to 1$"
    with pytest.raises(InputError, match=message):
        Trainer(cfg)
    with pytest.raises(InputError, match=message):
        Trainer.evaluate_checkpoint(cfg)


def test_an_error_of_a_users_own_module_keeps_its_traceback(config: Config) -> None:
    class Broken(torch.nn.Module):
        def __init__(self, *_: object) -> None:
            super().__init__()
            raise KeyError("mine")

    META_ARCH_REGISTRY.register(Broken)
    try:
        with pytest.raises(KeyError, match="mine"):
            Trainer(config("MODEL.META_ARCHITECTURE", "Broken"))
    finally:
        META_ARCH_REGISTRY._obj_map.pop("Broken")


def test_keys_of_this_project_count_without_its_tools(config: Config) -> None:
    cfg = config("SOLVER.IMS_PER_BATCH", 2)
    cfg.defrost()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS, cfg.TEST.EVAL_EPOCHS = 40000, 3, 2
    trainer = Trainer(cfg)
    images = trainer.stream.num_images
    assert trainer.max_iter == 3 * ((images + 1) // 2)  # batches of two, the last of one or two
    assert 2 * ((images + 1) // 2) == trainer.cfg.TEST.EVAL_PERIOD
    cfg.INCLUDE = ("best.yaml",)
    with pytest.raises(InputError, match=r"INCLUDE \('best.yaml',\): the tools merge these files"):
        Trainer(cfg)


def test_the_gpu_of_the_config_is_the_current_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches would be copied to another one first, and memory be looked at there."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    cfg = config()
    cfg.MODEL.DEVICE = "cuda:1"
    with suppress(InputError):  # few machines have it
        Trainer.build_model(cfg)
    assert chosen == ["cuda:1"]


def test_the_overfit_check_is_one_key_away(train: Train, tmp_path: Path) -> None:
    same = ["DATASETS.TRAIN", "('cityscapes_instance_train_part1of8',)", "DATASETS.TEST"]
    same.append(same[1])
    with pytest.raises(InputError, match=r"or set TEST\.ALLOW_SEEN_IMAGES True"):
        train(*same)
    train(*same, "TEST.ALLOW_SEEN_IMAGES", True)
    assert {"segm/AP", "validation/total_loss"} <= set().union(*lines(tmp_path))


def test_a_metric_that_is_not_measured_is_an_error_at_the_first_score(train: Train) -> None:
    message = r"SOLVER\.BEST_CHECKPOINT_METRIC validation/loss_msk: .* mean validation/loss_mask\?"
    with pytest.raises(InputError, match=message):
        train("SOLVER.MAX_ITER", 1, "SOLVER.BEST_CHECKPOINT_METRIC", "validation/loss_msk")


class Broken(Trainer):
    """One image of the second batch, or of the validation, has pixels that are not finite."""

    stage = "training"

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        loader = super().build_train_loader(cfg)
        return broken(loader, 1) if cls.stage == "training" else loader

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        return broken(super().build_validation_loader(cfg), 2)


def broken(loader: Any, number: int) -> Iterator[Any]:
    for index, batch in enumerate(loader):
        if index == number:
            batch[0]["image"] = batch[0]["image"] * float("inf")
        yield batch


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_a_loss_that_is_not_finite_names_the_images(train: Train, stage: str) -> None:
    kind = type("Broken", (Broken,), {"stage": stage})
    with pytest.raises(InputError, match=r" is nan|Inf/NaN") as caught:
        train(kind=kind)
    message = str(caught.value)
    images = message.partition("images of the batch: ")[2].partition(";")[0].split(", ")
    if stage == "training":
        assert "training diverged in iteration 1: " in message
        assert len(set(images)) == 2
        assert all("/train/" in name and Path(name).is_file() for name in images)
    else:
        assert message.startswith("validation loss: ")
        (image,) = images
        assert "/val/" in image
        assert Path(image).is_file()


def test_early_stopping_hands_on_and_scores_the_best_weights(train: Train, tmp_path: Path) -> None:
    # At this rate every step makes it worse than the first.
    trainer = train(
        *("SOLVER.MAX_ITER", 20, "TEST.EVAL_PERIOD", 1, "SOLVER.EARLY_STOPPING.ENABLED", True),
        *("SOLVER.EARLY_STOPPING.PATIENCE", 2, "SOLVER.BEST_CHECKPOINT_METRIC"),
        *("validation/total_loss", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.3),
    )
    losses = {
        each["iteration"]: each["validation/total_loss"]
        for each in lines(tmp_path)
        if "validation/total_loss" in each
    }
    lowest = min(losses, key=losses.__getitem__)
    assert len(losses) == lowest + 3 < 20
    best, final = (
        torch.load(tmp_path / f"model_{name}.pth", weights_only=True) for name in ("best", "final")
    )
    assert (best["iteration"], final["iteration"]) == (lowest, lowest + 2)
    assert best["value"] == losses[lowest]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best["model"][name])
        assert torch.equal(value, final["model"][name])
    # Each weights are scored once: those of the last step are not, whose loss is known to be worse.
    assert len([each for each in lines(tmp_path) if "coco_bbox/AP" in each]) == lowest + 3
    # The scores of model_final.pth stand at the end, as Detectron2's.
    assert "coco_bbox/AP" in lines(tmp_path)[-1]
    assert lines(tmp_path)[-1]["iteration"] == lowest + 3
    # Chosen by its loss on them, it is tuned on the images of DATASETS.TEST.
    roles = [(used.dataset, used.role) for used in read_history(best, "model_best.pth")]
    assert ("cityscapes_instance_val", "tuned") in roles
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


class Asked(Trainer):
    """Is asked to stop while it measures images that never end.

    A thread ends the process then; here it leaves the status, with which the main thread ends.
    """

    left: ClassVar[list[int]] = []

    signal = signal.SIGTERM
    stops_in = "evaluation"

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        loader = super().build_test_loader(cfg, dataset_name)
        return Endless(loader, cls) if cls.stops_in == "evaluation" else loader

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode) -> Any:
        loader = super().build_validation_loader(cfg)
        return Endless(loader, cls) if cls.stops_in == "validation" else loader


class Endless:
    """Batches without end, in the second of which the process gets a signal."""

    def __init__(self, loader: Any, kind: type[Asked]) -> None:
        self.batch = next(iter(loader))
        self.kind = kind

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[Any]:
        yield self.batch
        os.kill(os.getpid(), self.kind.signal)
        end = time.monotonic() + 20
        while not self.kind.left:
            assert time.monotonic() < end, "the measurement goes on"
            time.sleep(0.01)
        raise SystemExit(self.kind.left[0])


# Evaluated after 2 and 4 iterations.
MEASURED = ["SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]


def measured(folder: Path) -> dict[tuple[int, str], float]:
    """The measurements, by iteration and name."""
    return {
        (each["iteration"], name): value
        for each in lines(folder)
        for name, value in each.items()
        if name.startswith(("segm/", "coco_", "validation/"))
    }


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """Filled by the first test that needs it."""
    return {}


@pytest.mark.parametrize(
    ("stops_in", "number", "checkpoint_period"),
    [("evaluation", signal.SIGTERM, 100), ("validation", signal.SIGINT, 2)],
)
def test_a_measurement_is_left_at_once_and_made_up_for(
    train: Train,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops_in: str,
    number: int,
    checkpoint_period: int,
) -> None:
    if not undisturbed:
        undisturbed["trainer"] = train(*MEASURED, "OUTPUT_DIR", tmp_path / "whole")
        undisturbed["metrics"] = measured(tmp_path / "whole")
    options = [*MEASURED, "SOLVER.CHECKPOINT_PERIOD", checkpoint_period]
    before = signal.getsignal(number)
    kind = type("Asked", (Asked,), {"signal": number, "stops_in": stops_in, "left": []})
    monkeypatch.setattr(engine_hooks, "end_all", kind.left.append)
    with pytest.raises(SystemExit) as left:
        train(*options, kind=kind)
    assert left.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"

    trainer = train(*options, resume=True)
    assert trainer.start_iter == 2
    expected, resumed = (each.model.state_dict() for each in (undisturbed["trainer"], trainer))
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []
    metrics = measured(tmp_path)
    assert {iteration for iteration, _ in metrics} == {1, 3, 4}
    assert metrics == pytest.approx(undisturbed["metrics"])


class Refuse(HookBase):
    def before_train(self) -> None:
        raise InputError("refused")


class Refused(Trainer):
    def build_hooks(self) -> list[HookBase]:
        return [Refuse(), *super().build_hooks()]


def test_hooks_at_the_end_do_not_hide_the_first_error(train: Train) -> None:
    """CheckFrozen, for one, has nothing to compare with."""
    with pytest.raises(InputError, match=r"^refused$"):
        train(kind=Refused)


class Terminate(HookBase):
    """Its process gets SIGTERM while the files of the run are finished."""

    def after_train(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class TerminatedAtEnd(Trainer):
    def build_hooks(self) -> list[HookBase]:
        built = super().build_hooks()
        built.insert(-1, Terminate())
        return built


def test_a_signal_does_not_keep_a_run_from_writing_its_last_events(
    train: Train, tmp_path: Path
) -> None:
    """As the main process of several gets when another one has left already."""

    def end(*_: object) -> None:
        raise SystemExit("ended before the last hook")

    before = signal.signal(signal.SIGTERM, end)
    try:
        train(kind=TerminatedAtEnd)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "summary.json").exists()


def test_a_kill_before_the_final_checkpoint_is_made_up_for(train: Train, tmp_path: Path) -> None:
    """Of the last iteration there is a checkpoint of the period; the disk was full for another."""
    train("SOLVER.CHECKPOINT_PERIOD", 1)
    whole = (tmp_path / "model_final.pth").read_bytes()
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    train("SOLVER.CHECKPOINT_PERIOD", 1, resume=True)
    again = torch.load(tmp_path / "model_final.pth", weights_only=True)
    before = torch.load(io.BytesIO(whole), weights_only=True)
    assert (again["iteration"], before["iteration"]) == (1, 1)
    assert all(torch.equal(before["model"][name], value) for name, value in again["model"].items())


def test_a_kill_of_the_last_measurement_is_made_up_for(train: Train, tmp_path: Path) -> None:
    """model_final.pth was written; what it scores, with augmentation too, was not."""

    class Killed(Trainer):
        evaluations = 0

        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
            cls.evaluations += 1
            if cls.evaluations == 2:
                raise KeyboardInterrupt
            return super().build_test_loader(cfg, dataset_name)

    options = ["DATASETS.TEST", "('cityscapes_instance_val_part3of4',)", "TEST.EVAL_PERIOD", 1]
    options += ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,64)"]
    options += ["TEST.ANALYSIS_PICTURES", True]
    with pytest.raises(KeyboardInterrupt):
        train(*options, kind=Killed)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not (tmp_path / "summary.json").exists()
    # Errors are drawn once, when the training is through.
    analysis = tmp_path / "inference" / "analysis"
    assert (analysis / "confusion.csv").exists()
    assert not (analysis / "confusion.png").exists()
    train(*options, resume=True)
    assert (analysis / "confusion.png").exists()
    assert (tmp_path / "model_best.pth").is_file()
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == 2
    assert (tmp_path / "inference_TTA" / "cityscapes_results.json").exists()
    # Augmented scores come at the end only.
    for name, iterations in (("coco_segm/AP", [0, 2]), ("segm_TTA/AP", [2])):
        assert [each["iteration"] for each in lines(tmp_path) if name in each] == iterations
