from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    to_terminal,
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


def test_the_csv_holds_raw_numbers(output: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv([*stage_rows(output), *other_rows()]))))
    assert [line["name"] for line in lines[:3]] == ["0 backbone", "1 heads", "3 refined"]
    expected = {
        "official_AP": "20.04",
        "official_AP50": "40.0",
        "coco_AP": "27.06",
        # No large objects in this split: no score, and not a zero.
        "coco_APl": "",
        "scored_images": "250",
        "trained_images": "2965",
        "trainable_parameters": "20500000",
        "seconds": "5400.0",
    }
    assert {key: lines[1][key] for key in expected} == expected
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
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (heading, stage_1))
    assert dict(zip(*cells, strict=True)) == {
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


def test_the_table_of_the_terminal_fits_into_80_columns(output: Path) -> None:
    rows = stage_rows(output)
    lines = to_terminal(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Scores in percent, on val parts 3-4 of 4 (250 images)"
    assert lines[2].split() == ["stage", "official", "AP", "AP50", "COCO-style", "AP", "time"]
    assert lines[5].split() == ["1", "heads", "20.0", "40.0", "27.1", "1", "h", "30", "min"]
    assert "3 refined: not honest: 125 of the 250 images" in " ".join(lines)
    # Scored on several parts: each row says on which.
    rows.append(replace(rows[1], split="val part 1 of 4"))
    lines = to_terminal(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Scores in percent"
    assert lines[2].split()[:3] == ["stage", "scored", "on"]


def test_the_report_writes_all_and_says_where(output: Path) -> None:
    printed = write_recipe_report(output)
    for name in ("performance.md", "performance.csv", "performance.png", "overfitting.png"):
        assert (output / name).stat().st_size > 300
        assert str(output / name) in printed
    assert "mean IoU 30.5 %" in printed
    assert "|" not in printed
    assert "Swin-L" in (output / "performance.md").read_text()
    assert str(output / "stage_3") in printed


def test_sizes_without_objects_have_a_note_and_no_bars(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in output.glob("scores/*/scores.json"):
        content = json.loads(file.read_text())
        for scored in content["datasets"].values():
            scored["results"]["coco_segm"] |= {"APs": 3.0, "APm": 20.0, "APl": None}
        file.write_text(json.dumps(content))
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "cityscapes_maskrcnn.recipe.report.plot_performance", lambda _, **given: drawn.update(given)
    )
    write_recipe_report(output)
    assert {name.partition(":")[0] for name, *_ in drawn["by_size"]} == {"small", "medium"}
    assert "There are no large objects in the scored images." in drawn["remark"]


def test_pictures_name_the_images_of_training_and_of_validation(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "cityscapes_maskrcnn.recipe.report.plot_performance",
        lambda _, **given: drawn.update(performance=given["about"]),
    )
    monkeypatch.setattr(
        "cityscapes_maskrcnn.recipe.report.plot_overfitting",
        lambda runs, _, about: drawn.update(panels=list(runs), overfitting=about),
    )
    (output / "stage_1" / "config.yaml").write_text(
        "DATASETS: {VAL: [cityscapes_instance_val_part2of4], TEST: [cityscapes_instance_val]}\n"
        "MODEL: {META_ARCHITECTURE: GeneralizedRCNN, MASK_ON: true, RESNETS: {DEPTH: 50}, "
        "BACKBONE: {NAME: build_resnet_fpn_backbone}}\n"
    )
    write_recipe_report(output)
    model = f"Mask R-CNN ResNet-50, stages in {output}"
    assert str(drawn["performance"]) == (
        f"val parts 3-4 of 4 · 250 images · {model} · official and COCO-style mask AP"
    )
    assert str(drawn["overfitting"]) == (
        f"train · 2,965 images · {model} · training loss of the batches, smoothed; "
        "validation loss without augmentation"
    )
    assert "1 heads\n2,965 images of train\nvalidation: val part 2 of 4" in drawn["panels"]
    # A damaged one costs its names alone.
    (output / "stage_1" / "config.yaml").write_text("DATASETS: {VAL: [")
    write_recipe_report(output)
    assert "1 heads\n2,965 images of train" in drawn["panels"]


def colored(picture: Path, color: tuple[int, int, int]) -> int:
    with Image.open(picture) as image:
        return int((np.asarray(image.convert("RGB")) == color).all(axis=2).sum())


@pytest.mark.parametrize("noted", [{}, {"generated": False}, {"generated": True}])
def test_generated_scenes_are_named_wherever_scores_are(
    tmp_path: Path, noted: dict[str, bool]
) -> None:
    """In all three files and on the terminal; files without the note are of real scenes."""
    for stage in ("stage_0", "stage_1"):
        write_stage(tmp_path, stage, **noted)
    warning = "generated scenes cannot be compared with published ones on Cityscapes."
    printed = write_recipe_report(tmp_path)
    markdown = (tmp_path / "performance.md").read_text()
    table = (tmp_path / "performance.csv").read_text().splitlines()
    expected = bool(noted.get("generated"))
    assert (warning in printed, warning in markdown) == (expected, expected)
    # The two stages of this run, and neither the reference study nor published methods.
    warned = [line.startswith("this run,") for line in table if warning in line]
    assert warned == [True] * 2 * expected
    assert ("val parts 3-4 of 4 (250 generated images)" in markdown) is expected
    with Image.open(tmp_path / "performance.png") as image:
        red = (np.asarray(image.convert("RGB")) == (0xD5, 0x5E, 0x00)).all(axis=2).sum()
    assert red > 500 if expected else red == 0


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[3]", "not a JSON object"),
        ('{"images": 3}', "has no epochs and .*; another program or version wrote it"),
    ],
)
def test_a_damaged_file_gets_one_line(output: Path, text: str, message: str) -> None:
    (output / "stage_1" / "summary.json").write_text(text)
    with pytest.raises(InputError, match=rf"stage_1/summary\.json: {message}"):
        stage_rows(output)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("stage_1/summary.json", "epochs", "4"),
        ("stage_1/summary.json", "seconds", [1]),
        ("stage_1/summary.json", "memory", None),
        ("stage_1/summary.json", "trainable_parameters", 10**400),
        ("scores/stage_1/scores.json", "datasets", ["val"]),
        ("scores/stage_1/scores.json", "datasets", {"val": {"images": 1}}),
        ("scores/stage_1/scores.json", "datasets", {"val": {"images": "{0}", "results": {}}}),
        (
            "scores/stage_1/scores.json",
            "datasets",
            {"val": {"images": 1, "results": {"segm": {"AP": "x"}}}},
        ),
        ("scores/stage_1/scores.json", "seen", "val"),
    ],
)
def test_a_damaged_value_gets_one_line(output: Path, name: str, key: str, value: object) -> None:
    content = json.loads((output / name).read_text())
    (output / name).write_text(json.dumps({**content, key: value}))
    with pytest.raises(InputError) as caught:
        stage_rows(output)
    problem = f"{output / name}: {key} is damaged; another program or version wrote it"
    assert str(caught.value) == problem


def test_a_score_without_ground_truth_is_not_known(output: Path) -> None:
    """It is NaN, which is written as null."""
    scores = {"datasets": {"val": {"images": 1, "results": {"segm": {"AP": None}}}}}
    (output / "scores/stage_1/scores.json").write_text(json.dumps(scores))
    (row,) = (row for row in stage_rows(output) if "scores" not in row.note and row.split == "val")
    assert (dict(row.official), cell(row, "official AP")) == ({}, "-")


def test_texts_of_files_reach_no_terminal_raw(output: Path) -> None:
    file = output / "scores/stage_1/scores.json"
    file.write_text(file.read_text().replace("cityscapes_instance_val", r"\u001b[2Jval"))
    assert r"\x1b[2Jval" in to_markdown(stage_rows(output))
    assert "\x1b" not in to_markdown(stage_rows(output))
