"""The best checkpoint by one dataset, and its score on another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cityscapes_maskrcnn.data.provenance import read_history
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

CHOSEN_BY = "cityscapes_instance_val_part1and2of4"
REPORTED = "cityscapes_instance_val_part3and4of4"
HALVES = ["DATASETS.VAL", f"('{CHOSEN_BY}',)", "DATASETS.TEST", f"('{REPORTED}',)"]
QUICK = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "TEST.VALIDATION_LOSS", True]

Config = Callable[..., CfgNode]


def test_one_half_chooses_and_the_other_is_reported_on(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each score is below the one before, so that the first average is the best.
    scored: list[tuple[str, tuple[str, ...]]] = []
    plain = Trainer.test.__func__

    def test(cls: type[Trainer], cfg: CfgNode, *rest: object) -> dict[str, dict[str, float]]:
        scored.append((Path(cfg.MODEL.WEIGHTS).name, cfg.DATASETS.TEST))
        results = plain(cls, cfg, *rest)
        return {"segm": {**results["segm"], "AP": 90.0 - len(scored)}}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    metric = "segm_EMA/AP"
    average = ["SOLVER.EMA_DECAY", 0.9, "SOLVER.BEST_CHECKPOINT_METRIC", metric]
    cfg = config(*HALVES, *QUICK, *average)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    # Weights and average after each of two iterations, and the best at the end.
    assert scored == [("", (CHOSEN_BY,))] * 4 + [("model_best.pth", (REPORTED,))]
    assert results["segm"]["AP"] == 85.0
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (best["metric"], best["value"], best["iteration"]) == (metric, 89.0, 0)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["weights"] == str(tmp_path / "model_best.pth")
    assert list(scores["datasets"]) == [REPORTED]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("report/segm/AP")] == [(2, 85.0)]
    roles = {used.dataset: used.role for used in read_history(best, "model_best.pth")}
    assert roles == {"cityscapes_instance_train": "trained", CHOSEN_BY: "tuned"}
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    roles = {used.dataset: used.role for used in read_history(final, "model_final.pth")}
    assert roles == {"cityscapes_instance_train": "trained"}
    # What has chosen it does not score it, as a whole or in part.
    for name in ("cityscapes_instance_val", "cityscapes_instance_val_part2of4"):
        keys = ("MODEL.WEIGHTS", tmp_path / "model_best.pth", "DATASETS.TEST", f"('{name}',)")
        with pytest.raises(InputError, match=rf"images of {name} were tuned on, as {CHOSEN_BY}"):
            Trainer.evaluate_checkpoint(config(*HALVES[:2], *keys))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["DATASETS.TEST", "('cityscapes_instance_val_part2of4',)"],
            rf"2 of the 2 images of \w+part2of4 were tuned on, as {CHOSEN_BY} .*in DATASETS\.TEST",
        ),
        (
            ["DATASETS.TRAIN", "('cityscapes_instance_val_part1of4',)"],
            rf"2 of the 4 images of {CHOSEN_BY} were trained on, as .* others in DATASETS\.VAL",
        ),
        (["DATASETS.VAL", "('cityscapes_instance_val_part5of4',)"], "unknown dataset"),
        (["DATASETS.VAL", "('cityscapes_fine_semantic_val',)"], "its semantic labels are not"),
    ],
)
def test_halves_that_overlap_are_refused_before_training(
    options: list[str], message: str, config: Config
) -> None:
    with pytest.raises(InputError, match=message):
        Trainer(config(*HALVES, *QUICK, *options)).resume_or_load(resume=False)


def test_a_best_checkpoint_that_another_machine_does_not_see_is_not_waited_for(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "model_best.pth").touch()
    monkeypatch.setattr(comm, "all_gather", lambda found: [found, False])
    assert Trainer._report(SimpleNamespace(cfg=config(*HALVES))) == {}
    assert "model_best.pth is not on all machines, so it is not scored on" in caplog.text
