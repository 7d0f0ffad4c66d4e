"""The table of the ablation: its arithmetic and what stands in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cityscapes_maskrcnn.benchmarks.ablation_arms import STAGED
from cityscapes_maskrcnn.benchmarks.ablation_table import Result, format_tables, summarise
from cityscapes_maskrcnn.utils.files import read_json, to_json

DOCS = Path(__file__).parents[2] / "docs"
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


def result_of(row: Mapping[str, Any]) -> Result:
    """Get the row that ``Result.as_json`` has written, with null where it had NaN."""

    def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
        return {key: math.nan if each is None else each for key, each in values.items()}

    return Result(
        name=row["name"],
        ap_by_seed={int(seed): ap for seed, ap in numbers(row["ap_by_seed"]).items()},
        mean=numbers(row["mean"]),
        spread=None if row["spread"] is None else numbers(row["spread"]),
        gain=row["gain"],
        gain_spread=row["gain_spread"],
    )


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
    assert (steady.ap_by_seed, steady.gain) == ({2: 7.0, 3: 9.0}, 2.5)
    assert (erratic.spread, erratic.gain, erratic.gain_spread) == (None, 4.0, None)
    assert not erratic.pays


def test_table_has_the_numbers() -> None:
    kinds = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    names = ("AP50", "APs", "APm", "APl", *(f"AP-{kind}" for kind in kinds))
    scores = {
        name: {seed: {**each, **dict.fromkeys(names, math.nan)} for seed, each in values.items()}
        for name, values in scores_of(AP).items()
    }
    table = format_tables(
        summarise(scores, base=STAGED),
        base=STAGED,
        num_train=240,
        num_reported=80,
    ).splitlines()
    rows = json.loads(to_json([row.as_json() for row in summarise(scores, base=STAGED)]))
    again = [result_of(row) for row in rows]
    assert table == (format_tables(again, base=STAGED, num_train=240, num_reported=80).splitlines())
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert cells[2][5:] == ["pays", "< 100 px", "between", "> 400 px"]
    assert cells[5] == ["steady", "3", "7.00 ± 2.00", "-", "+2.00 ± 1.00", "yes", "-", "-", "-"]
    assert cells[6][4:6] == ["+1.00 ± 2.65", "no"]


def test_the_table_of_the_page_is_that_of_its_file() -> None:
    """``tools/benchmark.py recipe --json docs/recipe_ablation.json`` wrote and printed the same."""
    content = read_json(DOCS / "recipe_ablation.json", advice="restore it from git")
    settings = content["settings"]
    tables = format_tables(
        [result_of(row) for row in content["rows"]],
        base=STAGED,
        num_train=settings["train"],
        num_reported=settings["val"] // 2,
    )
    assert tables in (DOCS / "accuracy.md").read_text(encoding="utf-8")
    assert all(len(row["ap_by_seed"]) == len(settings["seeds"]) for row in content["rows"])
