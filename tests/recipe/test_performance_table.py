from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.recipe.performance_table import (
    Row,
    cell,
    other_rows,
    stage_rows,
    to_csv,
    to_markdown,
)
from cityscapes_maskrcnn.recipe.report import write_recipe_report
from cityscapes_maskrcnn.utils.errors import InputError

SUMMARY = {
    "train": ["cityscapes_instance_train"],
    "images": 2965,
    "iterations": 2968,
    "epochs": 4.004,
    "parameters": 44_000_000,
    "trainable_parameters": 20_500_000,
    "seconds": 5400.0,
    "peak_memory_bytes": 13 * 2**30,
    "memory": "GPU",
}
RESULTS = {
    "segm": {"AP": 20.04, "AP50": 40.0, "AP-car": 50.0},
    "coco_segm": {"AP": 27.06, "AP50": 50.81, "APs": 4.97, "APm": 20.63, "AR100": 37.6},
    "coco_bbox": {"AP": 99.0},
}


def write_stage(output: Path, stage: str, seen: list[str] | None = None, **noted: bool) -> None:
    """Write the files of a stage; ``noted`` is what older ones did not have."""
    (output / stage).mkdir(parents=True)
    (output / stage / "summary.json").write_text(json.dumps({**SUMMARY, **noted}))
    lines = [{"iteration": i, "total_loss": 2 - i / 100} for i in range(0, 100, 20)]
    lines += [{"iteration": i, "validation/total_loss": 2.0, "sem_seg/IoU": 30.5} for i in (49, 99)]
    (output / stage / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    if stage != "stage_0":
        (output / "scores" / stage).mkdir(parents=True)
        part = {"images": 250, "results": RESULTS, **noted}
        scores = {"datasets": {"cityscapes_instance_val_part3and4of4": part}, "seen": seen or []}
        (output / "scores" / stage / "scores.json").write_text(json.dumps(scores))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_stage(tmp_path, "stage_0")
    write_stage(tmp_path, "stage_1")
    write_stage(tmp_path, "stage_3", ["125 of the 250 images of val were tuned on, as part1"])
    return tmp_path


def test_protocols_are_kept_apart(output: Path) -> None:
    rows = stage_rows(output)
    assert [row.name for row in rows] == ["0 backbone", "1 heads", "3 refined"]
    assert rows[1].official == {"AP": 20.04, "AP50": 40.0}
    # No large objects in this split: no score, and not a zero.
    assert rows[1].coco == RESULTS["coco_segm"]
    assert "APl" not in rows[1].coco


def test_the_csv_holds_raw_numbers(output: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv([*stage_rows(output), *other_rows()]))))
    stage_1 = lines[1]
    assert stage_1["official_AP"] == "20.04"
    assert stage_1["coco_AP"] == "27.06"
    assert stage_1["coco_APl"] == ""
    assert (stage_1["scored_images"], stage_1["trained_images"]) == ("250", "2965")
    assert (stage_1["trainable_parameters"], stage_1["seconds"]) == ("20500000", "5400.0")
    published = [line for line in lines if line["group"] == "published"]
    # Every published number has a source, and is of the official protocol.
    assert all(line["source"] and line["official_AP"] and not line["coco_AP"] for line in published)
    mask_rcnn = [line for line in published if line["name"] == "Mask R-CNN R50-FPN, COCO"]
    assert [(x["split"], x["official_AP"], x["official_AP50"]) for x in mask_rcnn] == [
        ("val", "36.4", ""),
        ("test", "32.0", "58.1"),
    ]
    assert sum(line["group"] == "reference study" for line in lines) == 3


def test_the_markdown_names_protocols_and_units(output: Path) -> None:
    text = to_markdown([*stage_rows(output), *other_rows()])
    heading, _, _, stage_1, _ = [line for line in text.splitlines() if line.startswith("|")][:5]
    cells = [cell.strip() for cell in heading.strip("|").split("|")]
    values = dict(zip(cells, (cell.strip() for cell in stage_1.strip("|").split("|")), strict=True))
    assert values == {
        "stage": "1 heads",
        "scored on": "val parts 3-4 of 4 (250 images)",
        "official AP": "20.0",
        "official AP50": "40.0",
        "COCO-style AP": "27.1",
        "COCO-style AP50": "50.8",
        "COCO-style APs": "5.0",
        "COCO-style APm": "20.6",
        "COCO-style APl": "-",
        "COCO-style AR100": "37.6",
        "images": "2,965",
        "epochs": "4",
        "parameters trained": "20.5 M",
        "time": "1 h 30 min",
        "peak memory": "13.0 GiB GPU",
    }
    assert "**3 refined, val parts 3-4 of 4**: not honest: 125 of the 250 images" in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(42.4, "42 s"), (160.0, "160 s"), (690.0, "12 min"), (3599.0, "1 h 00 min")],
)
def test_time(seconds: float, expected: str) -> None:
    assert cell(Row(group="this run", name="1 heads", seconds=seconds), "time") == expected


def test_the_report_writes_all_and_says_where(output: Path) -> None:
    printed = write_recipe_report(output)
    for name in ("performance.md", "performance.csv", "performance.png", "overfitting.png"):
        assert (output / name).stat().st_size > 300
        assert str(output / name) in printed
    assert "mean IoU 30.5 %" in printed
    assert "Swin-L" in (output / "performance.md").read_text()
    assert str(output / "stage_3") in printed


def colored(picture: Path, color: tuple[int, int, int]) -> int:
    with Image.open(picture) as image:
        return int((np.asarray(image.convert("RGB")) == color).all(axis=2).sum())


def test_generated_scenes_are_named_wherever_scores_stand(output: Path, tmp_path: Path) -> None:
    """In all three files and on the terminal; files that do not say it are of real scenes."""
    made, real = tmp_path / "made", tmp_path / "real"
    for folder, generated in ((made, True), (real, False)):
        for stage in ("stage_0", "stage_1"):
            write_stage(folder, stage, generated=generated)
    warning = "generated scenes, not Cityscapes. Its scores cannot be compared with published ones."
    printed = {folder: write_recipe_report(folder) for folder in (made, real, output)}
    for folder, text in printed.items():
        markdown = (folder / "performance.md").read_text()
        table = (folder / "performance.csv").read_text().splitlines()
        expected = folder == made
        assert (warning in text, warning in markdown) == (expected, expected)
        # The two stages of this run, and neither the reference study nor published methods.
        assert [line.startswith("this run,") for line in table if warning in line] == (
            [True, True] if expected else []
        )
        assert ("val parts 3-4 of 4 (250 generated images)" in markdown) is expected
        red = colored(folder / "performance.png", (0xD5, 0x5E, 0x00))
        assert (red > 500) is expected
        assert (red == 0) is not expected


def test_a_stage_without_scores_is_generated_as_its_training_was(tmp_path: Path) -> None:
    write_stage(tmp_path, "stage_0", generated=True)
    (row,) = stage_rows(tmp_path)
    assert row.generated
    # What real scenes were scored with may have learnt from generated ones.
    write_stage(tmp_path, "stage_1", generated=False)
    (tmp_path / "stage_1" / "summary.json").write_text(json.dumps({**SUMMARY, "generated": True}))
    assert [row.generated for row in stage_rows(tmp_path)] == [True, False]


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage has ended"):
        write_recipe_report(tmp_path)


def test_a_damaged_file_gets_one_line(output: Path) -> None:
    (output / "stage_1" / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: cannot be read"):
        stage_rows(output)
    (output / "stage_1" / "summary.json").write_text('{"images": 3}')
    with pytest.raises(InputError, match=r"stage_1/summary\.json: has no 'epochs'"):
        stage_rows(output)
