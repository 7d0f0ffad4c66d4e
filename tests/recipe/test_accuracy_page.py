"""docs/accuracy.md: its published scores are those of the performance table, its configs exist."""

from __future__ import annotations

import re
from pathlib import Path

from cityscapes_maskrcnn.recipe import performance_table
from cityscapes_maskrcnn.utils.yaml_files import read_yaml

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "accuracy.md").read_text(encoding="utf-8")


def test_published_scores_are_those_of_the_file() -> None:
    file = Path(performance_table.__file__).with_name("published_scores.yaml")
    entries = read_yaml(file)["published"]
    assert len(entries) >= 11
    cells = {
        tuple(cell.strip() for cell in line.split("|")[1:-1])
        for line in PAGE.splitlines()
        if line.startswith("|")
    }
    for entry in entries:
        val, test = entry.get("val", {}), entry.get("test", {})
        scores = (val.get("AP", ""), test.get("AP", ""), test.get("AP50", ""))
        assert (entry["name"], *map(str, scores), entry["source"]) in cells


def test_configs_that_are_named_exist() -> None:
    names = set(re.findall(r"`(?:configs/)?([\w*]+\.yaml)`", PAGE))
    assert names
    assert not [name for name in names if not list((PROJECT / "configs").glob(name))]
