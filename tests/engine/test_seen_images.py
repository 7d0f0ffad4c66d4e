"""The data that a model has seen: with a tiny network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from cityscapes_maskrcnn.data.provenance import read_history
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer
from cityscapes_maskrcnn.engine.seen_images import data_of_run, refuse_seen_images
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

Train = Callable[..., Trainer]
Config = Callable[..., CfgNode]
TRAIN, OTHER = "cityscapes_instance_train_part1of8", "cityscapes_instance_train_part2of8"
VAL, VAL_1, VAL_3 = (f"cityscapes_instance_val{part}" for part in ("", "_part1of4", "_part3of4"))


def data(train: str = "", test: str = "", tuned_on: str = "") -> list[str]:
    names = {"TRAIN": train, "TEST": test, "TUNED_ON": tuned_on}
    return [
        word
        for key, name in names.items()
        for word in (f"DATASETS.{key}", f"('{name}',)" if name else "()")
    ]


# Trained on one image, tuned on two: 8 images of train in 8 parts, 6 of val in 4 (2 2 1 1).
PARENT = data(TRAIN, test=VAL_3, tuned_on=VAL_1)


def history(checkpoint: Path) -> list[tuple[str, str, int]]:
    content = torch.load(checkpoint, weights_only=True)
    return [
        (used.dataset, used.role, len(used.contents))
        for used in read_history(content, "checkpoint")
    ]


def test_scoring_a_checkpoint_on_what_it_used(config: Config, tmp_path: Path) -> None:
    cfg = config(*PARENT)
    checkpointer = SafeCheckpointer(Trainer.build_model(cfg), str(tmp_path))
    checkpointer.history = tuple(data_of_run(cfg))
    checkpointer.save("model_final")
    weights = tmp_path / "model_final.pth"
    # Watching part 3 is no use of it.
    assert history(weights) == [(TRAIN, "trained", 1), (VAL_1, "tuned", 2)]

    def score(dataset: str, *options: object) -> dict[str, Any]:
        output = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "scores"]
        Trainer.evaluate_checkpoint(config(*data(test=dataset), *output, *options))
        return json.loads((tmp_path / "scores" / "scores.json").read_text())

    with pytest.raises(InputError, match=f"2 of the 6 images of {VAL} were tuned on, as {VAL_1}"):
        score(VAL)
    assert not (tmp_path / "scores" / "scores.json").exists()
    (seen,) = score(VAL, "TEST.ALLOW_SEEN_IMAGES", True)["seen"]
    assert f"2 of the 6 images of {VAL} were tuned on" in seen
    content = score(VAL_3)
    assert content["seen"] == []
    assert content["weights"] == str(weights)
    assert content["datasets"][VAL_3]["images"] == 1


def test_children_inherit_it_and_a_resume_adds_nothing(
    train: Train, config: Config, tmp_path: Path
) -> None:
    train(*PARENT, "SOLVER.MAX_ITER", 1)
    child, weights = tmp_path / "child", tmp_path / "child" / "model_final.pth"
    options = ["MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", child]
    options += data(OTHER, test=VAL_3)
    expected = [(TRAIN, "trained", 1), (VAL_1, "tuned", 2), (OTHER, "trained", 1)]
    for iterations in (1, 2):
        train(*options, "SOLVER.MAX_ITER", iterations, resume=True)
        assert history(weights) == expected
    # An ancestor's training image is refused as much as one of its own.
    with pytest.raises(InputError, match=rf"{TRAIN} were trained on, as {TRAIN} \(.*_leftImg8bit"):
        Trainer.evaluate_checkpoint(config(*data(test=TRAIN), "MODEL.WEIGHTS", weights))

    summary = json.loads((child / "summary.json").read_text())
    assert (summary["train"], summary["images"], summary["iterations"]) == ([OTHER], 1, 2)
    assert summary["epochs"] == 2 * 2 / 1  # two iterations of two images, of which there is one
    assert 0 < summary["trainable_parameters"] == summary["parameters"]
    assert 0 < summary["seconds"] < 300
    assert summary["memory"] == "RAM"
    assert 2**27 < summary["peak_memory_bytes"] < 2**36


def test_what_steers_a_run_is_tuned_on(config: Config) -> None:
    def uses(*options: object, tuned_on: str = "") -> list[tuple[str, str]]:
        cfg = config(*data(TRAIN, test=VAL_1, tuned_on=tuned_on), *options)
        return [(used.dataset, used.role) for used in data_of_run(cfg)]

    watched = [(TRAIN, "trained")]
    steered = [*watched, (VAL_1, "tuned")]
    early_stopping = ["SOLVER.EARLY_STOPPING.ENABLED", True]
    assert uses("TEST.VALIDATION_LOSS", True) == watched
    assert uses(*early_stopping) == steered
    assert uses("SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau") == steered
    assert uses(*early_stopping, tuned_on=VAL_1) == steered

    # In training it may be watched, of course.
    cfg = config(*data(TRAIN, test=VAL_1), *early_stopping)
    assert refuse_seen_images(cfg, data_of_run(cfg), ("trained",)) == []
    with pytest.raises(InputError, match="tuned on"):
        refuse_seen_images(cfg, data_of_run(cfg), ("trained", "tuned"))


@pytest.mark.parametrize(
    ("trained", "scored", "message"),
    [
        # Stage 0 sees the images of Bremen, a city of fine train, with coarse annotations.
        ("coarse_semantic_train", "instance_train", "8 of the 8 images"),
        ("coarse_semantic_pretrain", "instance_train", "1 of the 8 images"),
        # All of val were trained on; so a part of it is refused, with fine or coarse annotations.
        ("coarse_semantic_val", "instance_val_part3of4", "1 of the 1 images"),
    ],
)
def test_coarse_images_count_for_fine_ones(
    config: Config, trained: str, scored: str, message: str
) -> None:
    used = data_of_run(config(*data(f"cityscapes_{trained}")))
    cfg = config(*data(test=f"cityscapes_{scored}"))
    message += f" of cityscapes_{scored} were trained on, as cityscapes_{trained}"
    with pytest.raises(InputError, match=message):
        refuse_seen_images(cfg, used, ("trained",))
