"""Put the table and a picture of a finished `make demo` into the README.

    python docs/update_demo.py output/demo frankfurt_000026_000019

The picture shows the image of that name, one of those that the demo draws; choose one where the
model does well, and say in the README what it missed.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
COLUMNS = {
    "official AP": "official_AP",
    "official AP50": "official_AP50",
    "COCO-style AP": "coco_AP",
    "COCO-style AP50": "coco_AP50",
}


def demo_table(performance: Path) -> str:
    """Make a Markdown table of the stages with masks from the demo's ``performance.csv``."""
    with performance.open(newline="") as file:
        stages = [row for row in csv.DictReader(file) if row["official_AP"]]
    stages = [row for row in stages if row["group"] == "this run"]
    (images,) = {row["scored_images"] for row in stages}
    lines = [f"| stage | trained on | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for row in stages:
        scores = " | ".join(f"{float(row[column]):.1f}" for column in COLUMNS.values())
        lines.append(f"| {row['name']} | {row['trained_images']} images | {scores} |")
    return (
        "\n".join(lines) + f"\n\nScores in percent, of {images} generated images on which no stage"
        " has trained; they cannot be compared\nwith those of Cityscapes.\n"
    )


def main(demo: Path, image: str, project: Path = PROJECT) -> None:
    """Rewrite the README between its marks, and the picture."""
    readme = project / "README.md"
    table = f"<!-- demo -->\n{demo_table(demo / 'performance.csv')}<!-- end of demo -->"
    marked = r"<!-- demo -->.*?<!-- end of demo -->"
    text, count = re.subn(marked, lambda _: table, readme.read_text(), flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"error: {readme}: the marks <!-- demo --> and <!-- end of demo --> once")
    picture = demo / "pictures" / f"{image}_prediction.png"
    if not picture.is_file():
        raise SystemExit(
            f"error: {picture}: no such picture; the demo draws val/*/*_00002[4-7]_*.png"
        )
    shutil.copy(picture, project / "docs/images/demo.png")
    readme.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
