"""The moving average of the weights: its values, files and scores."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from cityscapes_maskrcnn.data.provenance import read_history
from cityscapes_maskrcnn.engine import hooks as engine_hooks
from cityscapes_maskrcnn.engine import inference
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.ema import WeightAverage
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

Config = Callable[..., CfgNode]
Train = Callable[..., Trainer]

# Evaluated after 2 and 4 iterations; the rate does not depend on the length of training.
OPTIONS = ["SOLVER.EMA_DECAY", 0.9, "SOLVER.BASE_LR_END", 1e-4, "SOLVER.MAX_ITER", 4]
OPTIONS += ["DATASETS.TEST", "('cityscapes_instance_val_part3of4',)", "TEST.EVAL_PERIOD", 2]
OPTIONS += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def average_in(path: Path) -> dict[str, Tensor]:
    return load(path)["trainer"]["hooks"]["WeightAverage"]


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_the_average_moves_at_first_fast_and_then_by_the_decay() -> None:
    layer = nn.BatchNorm1d(1)
    layer.bias.requires_grad_(False)
    average = WeightAverage(nn.Sequential(layer), 0.25)
    average.trainer = SimpleNamespace(iter=0, max_iter=9)
    average.before_train()  # weight 1, mean 0, variance 1
    nn.init.constant_(layer.weight, 3.0)
    layer.running_mean.fill_(2.0)
    average.after_step()  # keeps min(0.25, 1 / 10): 0.1 * 1 + 0.9 * 3, 0.9 * 2
    values = {name: value.item() for name, value in average.values.items()}
    assert values == pytest.approx({"0.weight": 2.8, "0.running_mean": 1.8, "0.running_var": 1.0})
    nn.init.constant_(layer.weight, -1.0)
    average.trainer.iter = 4
    average.after_step()  # keeps min(0.25, 5 / 14): 0.25 * 2.8 - 0.75
    assert average.values["0.weight"].item() == pytest.approx(-0.05)
    assert layer.weight.item() == -1.0


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """Filled by the first test that needs it."""
    return {}


@pytest.fixture
def whole(train: Train, undisturbed: dict[str, Any], tmp_path_factory: Any) -> Path:
    """The folder of an undisturbed run of ``OPTIONS``."""
    if not undisturbed:
        undisturbed["folder"] = tmp_path_factory.mktemp("whole")
        train(*OPTIONS, "OUTPUT_DIR", undisturbed["folder"])
    return undisturbed["folder"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_it_is_scored_and_saved_beside_the_weights(whole: Path, config: Config) -> None:
    average = average_in(whole / "model_final.pth")
    trained = load(whole / "model_final.pth")["model"]
    averaged = load(whole / "model_final_ema.pth")
    assert different(averaged["model"], {**trained, **average}) == []
    # All that learns, and the statistics.
    names = {name for name in trained if not name.endswith("num_batches_tracked")}
    assert average.keys() == names
    assert len(different(trained, averaged["model"])) > 200
    assert [entry.dataset for entry in read_history(averaged, "model_final_ema.pth")] == [
        "cityscapes_instance_train"
    ]
    scored = [each for each in lines(whole) if "segm/AP" in each]
    for iteration in (1, 4):
        (line,) = [each for each in scored if each["iteration"] == iteration]
        assert {"segm_EMA/AP", "coco_segm_EMA/AP"} <= line.keys()
    assert (whole / "inference_EMA" / "cityscapes_results.json").is_file()
    assert (whole / "last_checkpoint").read_text() == "model_final.pth"
    # Any tool can load it, and scores it as it was scored in training.
    cfg = config(
        "MODEL.WEIGHTS", whole / "model_final_ema.pth", "OUTPUT_DIR", whole / "again", *OPTIONS
    )
    model = Trainer.build_model(cfg)
    assert len(load_for_inference(model, cfg).history) == 1
    again = Trainer.test(cfg, model)
    assert again["coco_bbox"]["AP"] == pytest.approx(lines(whole)[-1]["coco_bbox_EMA/AP"])


class Asked(Trainer):
    """Is asked to stop while it scores averaged weights, which it has at that time."""

    left: ClassVar[list[int]] = []
    loaders = 0

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        cls.loaders += 1
        loader = super().build_test_loader(cfg, dataset_name)
        return Endless(loader, cls) if cls.loaders == 1 else loader


class Endless:
    def __init__(self, loader: Any, kind: type[Asked]) -> None:
        self.batch = next(iter(loader))
        self.kind = kind

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[Any]:
        yield self.batch
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 20
        while not self.kind.left:
            assert time.monotonic() < end, "the measurement goes on"
            time.sleep(0.01)
        raise SystemExit(self.kind.left[0])


def test_a_run_that_is_stopped_while_it_scores_the_average_resumes_exactly(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_hooks, "end_all", Asked.left.append)
    with pytest.raises(SystemExit):
        train(*OPTIONS, "SOLVER.CHECKPOINT_PERIOD", 100, kind=Asked)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    trainer = train(*OPTIONS, "SOLVER.CHECKPOINT_PERIOD", 100, resume=True)
    assert trainer.start_iter == 2
    for name in ("model_final.pth", "model_final_ema.pth"):
        assert different(load(whole / name)["model"], load(tmp_path / name)["model"]) == []
    assert different(*(average_in(each / "model_final.pth") for each in (whole, tmp_path))) == []
    expected, found = (
        {
            (each["iteration"], name): value
            for each in lines(folder)
            for name, value in each.items()
            if name.startswith(("segm", "coco", "validation"))
        }
        for folder in (whole, tmp_path)
    )
    assert found == pytest.approx(expected)


def test_it_may_choose_the_best_checkpoint_and_be_switched_on_and_off(
    train: Train, tmp_path: Path
) -> None:
    off = [*OPTIONS, "SOLVER.EMA_DECAY", 0.0, "DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False]
    off.append("SOLVER.MAX_ITER")
    train(*off, 1)
    assert "WeightAverage" not in load(tmp_path / "model_final.pth")["trainer"]["hooks"]
    assert not (tmp_path / "model_final_ema.pth").exists()
    metric = ["SOLVER.BEST_CHECKPOINT_METRIC", "coco_bbox_EMA/AP"]
    train(*OPTIONS, "SOLVER.MAX_ITER", 2, *metric, resume=True)
    best = load(tmp_path / "model_best.pth")
    assert (best["metric"], best["iteration"]) == ("coco_bbox_EMA/AP", 1)
    assert different(best["model"], load(tmp_path / "model_final_ema.pth")["model"]) == []
    train(*off, 3, resume=True)
    assert "WeightAverage" not in load(tmp_path / "model_final.pth")["trainer"]["hooks"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": torch.zeros(2)},
            "its average of the weights has no weight of the model",
        ),
        ({"weight": None}, "its average of the weights has no weight of the model"),
        ({"weight": torch.tensor([[torch.nan]])}, "weight in its average of the weights is not of"),
        (
            {"weight": torch.zeros(1, 1).half()},
            "weight in its average of the weights is not of",
        ),
    ],
)
def test_an_average_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    average = WeightAverage(nn.Linear(1, 1), 0.5)
    average.before_train()
    with pytest.raises(ValueError, match=message):
        average.load_state_dict({**average.state_dict(), **change})


@pytest.mark.parametrize("state", [None, 5, [1]])
def test_a_state_that_is_no_average_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"^its average of the weights has no weight of the model"):
        WeightAverage(nn.Linear(1, 1), 0.5).load_state_dict(state)


def test_a_decay_that_keeps_all_is_refused(config: Config) -> None:
    with pytest.raises(
        InputError, match=r"^SOLVER\.EMA_DECAY 1\.0: it must be 0 or more and below 1$"
    ):
        Trainer(config("SOLVER.EMA_DECAY", 1.0))


def test_errors_are_drawn_once_at_the_end(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        inference, "plot_errors", lambda folder, *_: drawn.append(folder.parent.name)
    )
    train(*OPTIONS, "TEST.ANALYSIS_PICTURES", True)
    assert sorted(drawn) == ["inference", "inference_EMA"]
