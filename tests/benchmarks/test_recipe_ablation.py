"""The ablation of the recipe: equal compute and what it chooses."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cityscapes_maskrcnn.benchmarks import recipe_ablation
from cityscapes_maskrcnn.benchmarks.ablation_arms import (
    AVERAGE,
    MAIN,
    PIECES,
    STAGED,
    STRONGEST,
    Arm,
    choose_pieces,
    combined,
)
from cityscapes_maskrcnn.benchmarks.ablation_training import equal_iterations
from cityscapes_maskrcnn.benchmarks.ablation_workers import helpers
from cityscapes_maskrcnn.benchmarks.recipe_ablation import FULL, SMALL, Ablation, Size
from cityscapes_maskrcnn.utils.config_keys import value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.yaml_files import read_yaml

DEMO = str(Path(__file__).parents[2] / "configs" / "demo")
ARMS = (*MAIN, *PIECES)
BY_NAME = {piece.name: piece for piece in PIECES}


def ablation_in(folder: Path, size: Size = SMALL, pieces: tuple[Arm, ...] = PIECES) -> Ablation:
    return Ablation(
        config_dir=Path(DEMO),
        folder=folder,
        size=size,
        pieces=pieces,
        report=print,
    )


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_has_a_config(arm: Arm, tmp_path: Path) -> None:
    for stage in arm.stages:
        cfg = ablation_in(tmp_path)._stage_config(arm, stage, arm.inference)
        for key, value in {**stage.opts, **arm.opts, **arm.inference}.items():
            found = value_at(cfg, key)
            assert type(found)(value) == found  # type: ignore[call-arg]
        assert cfg.SOLVER.IMS_PER_BATCH == 2
        if arm.of_demo:
            demo = read_yaml(Path(DEMO) / "stage_1_heads.yaml")
            assert demo["SOLVER"]["BASE_LR"] == cfg.SOLVER.BASE_LR
            assert cfg.SOLVER.OPTIMIZER == "AdamW"


def test_the_strongest_arm_is_the_strongest_config() -> None:
    def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            is_node = isinstance(value, dict)
            found |= flat(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
        return found

    changes = flat(read_yaml(Path(DEMO).parent / "coco_strongest.yaml"))
    (arm,) = (piece for piece in PIECES if piece.name == STRONGEST)
    # Start and backbone, which all arms share; a norm that the demo's heads do not have; and which
    # weights are chosen, which the arm says by the file that it scores.
    shared = {"_BASE_", "MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH", "MODEL.ROI_MASK_HEAD.NORM"}
    assert changes.pop("SOLVER.BEST_CHECKPOINT_METRIC").startswith("segm_EMA")
    assert arm.weights == "model_final_ema.pth"
    # The heads' sizes, in proportion to the demo's other layers.
    smaller = {
        "MODEL.ROI_MASK_HEAD.FC_DIM",
        "MODEL.POINT_HEAD.FC_DIM",
        "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK",
    }
    assert shared <= changes.keys()
    of_arm = {**BY_NAME[arm.of].opts, **arm.inference}
    assert changes.keys() - shared == of_arm.keys() - smaller
    assert all(changes[key] == of_arm[key] for key in changes.keys() - shared)


def test_a_folder_is_for_one_kind_of_results(tmp_path: Path) -> None:
    ablation = ablation_in(tmp_path, pieces=PIECES[:1])
    ablation.claim()
    # Again, and with other pieces.
    ablation.claim()
    ablation_in(tmp_path, pieces=PIECES[1:]).claim()
    arms = json.loads((tmp_path / "settings.json").read_text())["arms"]
    assert list(arms) == [arm.name for arm in ARMS]
    assert len(set(arms.values())) == len(arms)
    with pytest.raises(InputError, match=r"are of other settings \(val, iterations\): choose"):
        ablation_in(tmp_path, replace(SMALL, val=12, iterations=13)).claim()
    jitter = BY_NAME["colour jitter"]
    other = replace(jitter, opts={**jitter.opts, "INPUT.COLOR_JITTER.CONTRAST": 0.3})
    with pytest.raises(InputError, match=r"other settings \(colour jitter\): choose another --out"):
        ablation_in(tmp_path, pieces=(other,)).claim()
    assert json.loads((tmp_path / "settings.json").read_text())["arms"] == arms


def test_results_without_settings_are_not_reused(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    with pytest.raises(InputError, match=r"has results but no settings\.json: choose another"):
        ablation_in(tmp_path).claim()


def touch(folder: Path) -> None:
    """What a helper does in the test below."""
    (folder / str(os.getpid())).touch()


def test_helpers_do_the_same_work(tmp_path: Path) -> None:
    with helpers(3, touch, {"folder": tmp_path}):
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 2
    assert not (tmp_path / str(os.getpid())).exists()
    with helpers(1, touch, {"folder": tmp_path}):
        pass
    assert not (tmp_path / str(os.getpid())).exists()


def test_a_piece_comes_with_the_one_whose_models_it_scores() -> None:
    assert choose_pieces(None) == list(PIECES)
    other = f"{STRONGEST}, NMS"
    assert [piece.name for piece in choose_pieces([other, "EMA"])] == [other, "EMA", "PointRend"]


def test_what_cannot_be_put_together() -> None:
    with pytest.raises(ValueError, match="both PointRend and copy-paste train a model"):
        combined([BY_NAME["PointRend"], BY_NAME["copy-paste"]])
    average = Arm(name="average", of=STAGED, weights=AVERAGE)
    with pytest.raises(ValueError, match=r"the weights of both average\.pth and model_final_ema"):
        combined([BY_NAME["EMA"], average])


def test_loggers_are_as_before() -> None:
    logger = logging.getLogger("detectron2")
    before = logger.level
    with recipe_ablation._quiet():
        assert logger.level == logging.ERROR
    assert logger.level == before != logging.ERROR


def test_equal_compute() -> None:
    # 100 x 10 + 150 x 10 + 50 x 20 = 3,500
    assert equal_iterations(3500, [10, 10, 20], [4, 6, 2]) == [100, 150, 50]
    # 3,500 / 17 = 205.9
    assert equal_iterations(3500, [17], [1]) == [206]
    # 3,500 / 158 = 22.15; 89 x 11 + 44 x 24 = 2,035; (3,500 - 2,035) / 11 = 133.2
    assert equal_iterations(3500, [11, 11, 24], [4, 6, 2]) == [89, 133, 44]
    assert equal_iterations(1, [10, 10], [1, 1]) == [1, 1]


def test_best_of_each_group_is_chosen_where_it_pays(tmp_path: Path) -> None:
    size = Size(train=1, val=4, start=1, iterations=1, seeds=(1, 2, 3), counted=1)
    ablation = ablation_in(tmp_path, size)
    gains = {
        STAGED: 0.0,
        STRONGEST: 3.0,  # not a piece, but several
        f"{STRONGEST}, NMS": 2.5,
        "copy-paste": 1.0,
        "PointRend": 2.0,
        "colour jitter": 0.5,
        "EMA": 0.1,
        "checkpoint average": 0.3,
        "soft-NMS, linear": -0.2,
        "TTA, flip": 0.0,  # none: does not pay
    }
    for seed in size.seeds:
        for name, gain in gains.items():
            file = ablation._scores_file(name, seed)
            file.parent.mkdir(parents=True)
            # The reported part says the opposite, and must not be looked at.
            content = {"choice": {"AP": 4.0 + seed + gain}, "report": {"AP": 9.0 - gain}}
            file.write_text(json.dumps(content))
    best = ablation.best_pieces()
    # Of those that train only one is chosen, so that nothing is trained for it.
    assert [piece.name for piece in best] == ["PointRend", "checkpoint average"]
    paying = combined(best)
    assert paying.name == "PointRend + checkpoint average"
    assert paying.opts["MODEL.ROI_MASK_HEAD.NAME"] == "PointRendMaskHead"
    assert (paying.inference, paying.weights, paying.of) == ({}, "average.pth", "PointRend")
    flipped = BY_NAME["TTA, flip"]
    ways = combined([best[1], flipped])
    assert (ways.opts, ways.weights, ways.of) == ({}, "average.pth", STAGED)
    assert ways.inference == flipped.inference


def test_sizes() -> None:
    assert set(SMALL.seeds) <= set(FULL.seeds)
    # Every part of val has as many images as the others.
    assert FULL.val % 4 == SMALL.val % 4 == 0
