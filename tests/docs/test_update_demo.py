"""The README's table and picture, taken from a finished demo."""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PERFORMANCE = """\
group,name,scored_images,official_AP,official_AP50,coco_AP,coco_AP50,trained_images
this run,0 backbone,,,,,,240
this run,1 heads,24,5.288,17.146,4.78,15.51,230
this run,3 refined,24,4.6,12.0,5.04,12.2,22
published,PANet,,36.5,,,,
"""
TABLE = """\
Before.
<!-- demo -->
| stage | trained on | official AP | official AP50 | COCO-style AP | COCO-style AP50 |
|---|---|---|---|---|---|
| 1 heads | 230 images | 5.3 | 17.1 | 4.8 | 15.5 |
| 3 refined | 22 images | 4.6 | 12.0 | 5.0 | 12.2 |

Scores in percent, of 24 generated images on which no stage has trained; they cannot be compared
with those of Cityscapes.
<!-- end of demo -->
After.
"""


def test_table_and_picture(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    (demo / "pictures").mkdir(parents=True)
    (tmp_path / "docs/images").mkdir(parents=True)
    (demo / "performance.csv").write_text(PERFORMANCE)
    (demo / "pictures/ulm_prediction.png").write_bytes(b"a picture")
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n<!-- demo -->\nold\n<!-- end of demo -->\nAfter.\n")
    update = runpy.run_path(str(PROJECT / "docs/update_demo.py"))["main"]
    for _ in range(2):
        update(demo, "ulm", tmp_path)
        assert readme.read_text() == TABLE
    assert (tmp_path / "docs/images/demo.png").read_bytes() == b"a picture"


def test_a_picture_that_the_demo_has_not_drawn_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "performance.csv").write_text(PERFORMANCE)
    before = "<!-- demo -->\nold\n<!-- end of demo -->\n"
    (tmp_path / "README.md").write_text(before)
    update = runpy.run_path(str(PROJECT / "docs/update_demo.py"))["main"]
    with pytest.raises(
        SystemExit, match=r"^error: .*/pictures/ulm_prediction\.png: no such picture"
    ):
        update(tmp_path, "ulm", tmp_path)
    assert (tmp_path / "README.md").read_text() == before


def test_the_image_that_documents_name_is_one_that_the_demo_draws() -> None:
    (pattern,) = re.findall(r"/val/(\S+\.png)'", (PROJECT / "Makefile").read_text())
    script = (PROJECT / "docs/update_demo.py").read_text()
    assert f"val/{pattern}" in script
    places = [script, (PROJECT / "CONTRIBUTING.md").read_text()]
    named = [re.findall(r"update_demo\.py output/demo (\w+)", text) for text in places]
    assert named[0] == named[1]
    ((name,), _) = named
    city = name.partition("_")[0]
    assert fnmatch(f"{city}/{name}_leftImg8bit.png", pattern)
    # The one that the README shows and predicts on.
    assert f"{city}/{name}_leftImg8bit.png" in (PROJECT / "README.md").read_text()
