"""The ablation of the recipe: its arithmetic, equal compute and what it chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cityscapes_maskrcnn.benchmarks.recipe_ablation import (
    FULL,
    PIECES,
    SMALL,
    STAGED,
    STRONGEST,
    Ablation,
    Size,
    combined,
    equal_iterations,
    format_tables,
    summarise,
)

DEMO = str(Path(__file__).parents[2] / "configs" / "demo")
# By name, AP of the seeds 1, 2 and 3.
AP = {
    STAGED: (4.0, 5.0, 6.0),
    "steady": (5.0, 7.0, 9.0),  # gains 1, 2, 3
    "erratic": (3.0, 5.0, 10.0),  # gains -1, 0, 4
}


def scores_of(ap: Mapping[str, Sequence[float]]) -> dict[str, dict[int, dict[str, float]]]:
    return {
        name: {seed: {"AP": value} for seed, value in enumerate(values, start=1)}
        for name, values in ap.items()
    }


def test_mean_spread_and_gain() -> None:
    base, steady, erratic = summarise(scores_of(AP), base=STAGED)
    assert (base.mean["AP"], base.spread) == (5.0, {"AP": 1.0})  # (4 + 5 + 6) / 3; n - 1 below
    assert (base.gain, base.pays) == (None, False)
    assert (steady.mean["AP"], steady.spread) == (7.0, {"AP": 2.0})
    assert (steady.gain, steady.gain_spread, steady.pays) == (2.0, 1.0, True)
    assert erratic.gain == 1.0
    # (4 + 1 + 9) / 2 = 7
    assert erratic.gain_spread == pytest.approx(math.sqrt(7))
    assert not erratic.pays


def test_gain_is_of_common_seeds_and_one_seed_has_no_spread() -> None:
    scores = scores_of(AP)
    del scores["steady"][1]
    scores["erratic"] = {3: {"AP": 10.0}}
    _, steady, erratic = summarise(scores, base=STAGED)
    assert (steady.seeds, steady.gain) == (2, 2.5)
    assert (erratic.spread, erratic.gain, erratic.gain_spread) == (None, 4.0, None)
    assert not erratic.pays


def test_table_has_the_numbers() -> None:
    kinds = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    names = ("AP50", "APs", "APm", "APl", *(f"AP-{kind}" for kind in kinds))
    scores = {
        name: {seed: {**each, **dict.fromkeys(names, math.nan)} for seed, each in values.items()}
        for name, values in scores_of(AP).items()
    }
    table = format_tables(summarise(scores, base=STAGED), FULL).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert cells[2][5:] == ["pays", "< 100 px", "between", "> 400 px"]
    assert cells[5] == ["steady", "3", "7.00 ± 2.00", "-", "+2.00 ± 1.00", "yes", "-", "-", "-"]
    assert cells[6][4:6] == ["+1.00 ± 2.65", "no"]


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
    ablation = Ablation(
        config_dir=Path(DEMO), folder=tmp_path, size=size, pieces=PIECES, report=print
    )
    gains = {
        STAGED: 0.0,
        STRONGEST: 3.0,  # not a piece, but several
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
    assert [piece.name for piece in best] == ["PointRend", "colour jitter", "checkpoint average"]
    paying = combined(best)
    assert paying.name == "PointRend + colour jitter + checkpoint average"
    assert paying.opts["MODEL.ROI_MASK_HEAD.NAME"] == "PointRendMaskHead"
    assert paying.opts["INPUT.COLOR_JITTER.CONTRAST"] == 0.4
    assert (paying.inference, paying.weights, paying.of) == ({}, "average.pth", "")
    assert combined(best[2:]).of == STAGED


def test_sizes() -> None:
    assert set(SMALL.seeds) <= set(FULL.seeds)
    # Every part of val has as many images as the others.
    assert FULL.val % 4 == SMALL.val % 4 == 0
