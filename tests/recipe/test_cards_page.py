"""docs/cards.md: hours follow from the configs by its rule, scores are those of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.recipe import performance_table
from cityscapes_maskrcnn.recipe.stages import IMAGENET_WEIGHTS
from cityscapes_maskrcnn.utils.yaml_files import read_yaml

PROJECT = Path(__file__).parents[2]
CONFIGS = PROJECT / "configs"
PAGE = (PROJECT / "docs" / "cards.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ")
]
# Seconds of a step of four images, frozen and live, fastest first.
STEPS = {
    "L4": ((0.96, 1.47), (1.15, 1.47 * 2730 / 2063)),
    "A100": ((0.19,), (0.22,)),
    "H200": ((0.129, 0.156), (0.141, 0.178)),
}
WORK = {
    "stage_0_backbone.yaml": 1960 / 2063,
    "coco_mask_rcnn_R_101_FPN.yaml": 1.33,
    "coco_new_baseline_R_50_FPN.yaml": 1.34,
    "coco_torchvision_R_50_FPN_v2.yaml": 1.34,
    "coco_strongest.yaml": 1.67,
}
# Of the datasets of the stages; those of fine train have instances.
IMAGES = {
    "stage_0_backbone.yaml": 4120,
    "stage_2_search.yaml": 372,
    "stage_3_refine.yaml": 250,
}
HOURS = [row for row in ROWS if len(row) == 8 and row[0].startswith("`")]


@pytest.mark.parametrize("row", HOURS, ids=lambda row: row[0])
def test_batch_iterations_and_hours(row: list[str]) -> None:
    name = row[0].split("`")[1]
    cfg = build_config(str(CONFIGS / name), [])
    micro = cfg.SOLVER.ACCUMULATE
    size = f"{cfg.SOLVER.IMS_PER_BATCH // micro}"
    assert (row[1], size) == ("4" if micro == 1 else f"{micro} x 4", "4")
    iterations = cfg.SOLVER.MAX_ITER
    if cfg.SOLVER.EPOCHS:
        iterations = cfg.SOLVER.EPOCHS * -(-IMAGES.get(name, 2965) // 4)
    assert row[2] == f"{iterations:,}"
    is_live = cfg.MODEL.BACKBONE.FREEZE_AT < 5 and not name.startswith("stage_0")
    passes = micro + (micro - 1) * 898 / (2730 if is_live else 2063)
    for cell, steps in zip(row[5:], STEPS.values(), strict=True):
        hours = [iterations * passes * s * WORK.get(name, 1) / 3600 for s in steps[is_live]]
        if cell == "under 0.01 c":
            assert max(hours) < 0.01
            continue
        decimals = len(cell.split()[0].partition(".")[2])
        texts = dict.fromkeys(f"{each:.{decimals}f}" for each in hours)
        assert cell[:-2] == " to ".join(texts)


def test_every_config_to_train_by_has_a_card() -> None:
    names = {path.name for path in CONFIGS.glob("*.yaml") if path.name[:4] != "Base"}
    assert {row[0].split("`")[1] for row in HOURS} == names
    expected = {
        name for row in ROWS if len(row) == 3 for name in re.findall(r"`(\w+\.yaml)`", row[0])
    }
    assert expected == {name for name in names if not name.startswith("stage_")}


def test_scores_are_those_of_the_performance_table() -> None:
    file = Path(performance_table.__file__).with_name("published_scores.yaml")
    content = read_yaml(file)
    for name, scores in content["reference_study"]["coco"].items():
        texts = [f"{each:.2f}" for each in list(scores.values())[:-1]]
        assert [name, *texts, str(scores["AR100"])] in ROWS
    published = {entry["name"]: entry.get("val", {}).get("AP") for entry in content["published"]}
    cells = {row[0]: row[1] for row in ROWS if len(row) == 3}
    assert cells["`coco_mask_rcnn_R_50_FPN.yaml`"] == (
        f"{published['Mask R-CNN R50-FPN, COCO (Detectron2)']} p"
    )
    assert cells["`pointrend_rcnn_R_50_FPN.yaml`"] == f"{published['PointRend R50']} p"
    assert f"has {published['Mask R-CNN R50-FPN, ImageNet']} on val" in PAGE
    assert f"from COCO {published['Mask R-CNN R50-FPN, COCO']}, so" in PAGE


def test_weights_without_coarse_data_are_those_of_the_chain() -> None:
    folders = {"`configs`": "", "`configs/r101`": "r101", "`configs/convnext_t`": "convnext_t"}
    weights = {row[0]: row[1] for row in ROWS if len(row) == 2 and row[0] in folders}
    assert weights == {
        cell: f"`{IMAGENET_WEIGHTS[start]}`"
        for cell, folder in folders.items()
        for start in [
            build_config(str(CONFIGS / folder / "stage_0_backbone.yaml"), []).MODEL.WEIGHTS
        ]
    }
