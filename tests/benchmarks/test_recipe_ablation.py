"""The ablation of the recipe: equal compute and what it chooses."""

from __future__ import annotations

import json
from pathlib import Path

from cityscapes_maskrcnn.benchmarks.ablation_arms import PIECES, STAGED, STRONGEST, combined
from cityscapes_maskrcnn.benchmarks.recipe_ablation import (
    FULL,
    SMALL,
    Ablation,
    Size,
    equal_iterations,
)

DEMO = str(Path(__file__).parents[2] / "configs" / "demo")


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
