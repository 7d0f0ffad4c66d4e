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
# GFLOP of a region with an object, forward and backward; 2,730 include 128 of Mask R-CNN's.
REGION = {"mask_rcnn": 3.09, "pointrend": 0.40, "patchdct": 29.58}
POINTREND, PATCHDCT = (
    round((2730 + 128 * (REGION[name] - REGION["mask_rcnn"])) / 2730, 2)
    for name in ("pointrend", "patchdct")
)
WORK = {
    "stage_0_backbone.yaml": 1960 / 2063,
    "coco_mask_rcnn_R_101_FPN.yaml": 1.33,
    "coco_new_baseline_R_50_FPN.yaml": 1.34,
    "coco_torchvision_R_50_FPN_v2.yaml": 1.34,
    "pointrend_rcnn_R_50_FPN.yaml": POINTREND,
    "pointrend_coco_R_50_FPN.yaml": POINTREND,
    "patchdct_rcnn_R_50_FPN.yaml": PATCHDCT,
    "patchdct_coco_R_50_FPN.yaml": PATCHDCT,
    "coco_strongest.yaml": 1 + 0.33 + 0.34 - (1 - POINTREND),
}
# Of the datasets of the stages; those of fine train have instances.
IMAGES = {
    "stage_0_backbone.yaml": 4120,
    "stage_2_search.yaml": 372,
    "stage_3_refine.yaml": 250,
}
CARDS = [row for row in ROWS if len(row) == 9 and row[0].startswith("`")]
PARTS = [row for row in ROWS if len(row) == 8 and row[0].startswith("`")]
MEMORY = {row[0].split("`")[1]: row for row in ROWS if len(row) == 6 and row[0].startswith("`")}
STAGES = ("stage_0_backbone", "stage_1_heads", "stage_2_tuned", "stage_3_refine")
# By card, where it is not one config: how often each config is trained.
CHAINS = {
    "coco_staged_1_heads.yaml": {"coco_staged_1_heads": 1, "coco_staged_2_all": 1},
    "stage_*.yaml, all four": dict.fromkeys(STAGES, 1),
    "stage_*.yaml, all four and the search": {**dict.fromkeys(STAGES, 1), "stage_2_search": 48},
    "r101/stage_*.yaml, all four": dict.fromkeys(STAGES, 1),
    "convnext_t/stage_*.yaml, all four": dict.fromkeys(STAGES, 1),
    "stage_2_search.yaml, 42 trials and 6 repeats": {"stage_2_search": 48},
}
FACTORS = {"r101": 1.15, "convnext_t": 1.01}


def trainings(row: list[str]) -> dict[str, int]:
    name, text = row[0].split("`")[1], row[0].replace("`", "")
    return CHAINS.get(text) or CHAINS.get(name) or {name.removesuffix(".yaml"): 1}


def cost(name: str) -> tuple[str, int, dict[str, list[float]]]:
    """Batch, iterations and, by GPU, hours of a config, fastest first."""
    cfg = build_config(str(CONFIGS / name), [])
    micro = cfg.SOLVER.ACCUMULATE
    assert 4 * micro == cfg.SOLVER.IMS_PER_BATCH
    iterations = cfg.SOLVER.MAX_ITER
    if cfg.SOLVER.EPOCHS:
        iterations = cfg.SOLVER.EPOCHS * -(-IMAGES.get(name, 2965) // 4)
    is_live = cfg.MODEL.BACKBONE.FREEZE_AT < 5 and not name.startswith("stage_0")
    passes = micro + (micro - 1) * 898 / (2730 if is_live else 2063)
    work = iterations * passes * WORK.get(name, 1) / 3600
    hours = {gpu: [work * each for each in steps[is_live]] for gpu, steps in STEPS.items()}
    return "4" if micro == 1 else f"{micro} x 4", iterations, hours


@pytest.mark.parametrize("row", [*CARDS, *PARTS], ids=lambda row: row[0])
def test_batch_iterations_and_hours(row: list[str]) -> None:
    if row[0].startswith("`coco_staged") and len(row) == 8:
        costs = [(cost(row[0].split("`")[1]), 1)]
    else:
        costs = [(cost(f"{name}.yaml"), number) for name, number in trainings(row).items()]
    batch, iterations = row[-7:-5]
    assert {each for (each, _, _), _ in costs} == {batch}
    assert iterations == f"{sum(each * number for (_, each, _), number in costs):,}"
    factor = FACTORS.get(row[0][1:].partition("/")[0], 1)
    for cell, gpu in zip(row[-3:], STEPS, strict=True):
        lists = [[each * number for each in hours[gpu]] for (_, _, hours), number in costs]
        hours = [factor * sum(each) for each in zip(*lists, strict=True)]
        if cell == "under 0.01 c":
            assert max(hours) < 0.01
            continue
        # The study's trial is measured, and its figure is the rule's beginning.
        cell = cell.replace(" c to", " to").removesuffix(" c").removesuffix(" m")
        decimals = len(cell.split()[0].partition(".")[2])
        assert cell == " to ".join(dict.fromkeys(f"{each:.{decimals}f}" for each in hours))


@pytest.mark.parametrize("row", CARDS, ids=lambda row: row[0])
def test_a_card_has_ap_memory_and_hours(row: list[str]) -> None:
    """Each with its mark; the AP with a source that is there."""
    _, ap, _, _, *memory, on_l4, on_a100, on_h200 = row
    source = re.fullmatch(r"\d+(?:\.\d)?(?: to \d+)? [pe] \((\d+)\)", ap)
    assert source is not None
    assert f"\n{source[1]}. " in PAGE.partition("## Expected AP")[2]
    assert all(re.fullmatch(r"\d+\.\d GB [mc]", each) for each in memory)
    for hours in (on_l4, on_a100, on_h200):
        assert re.fullmatch(r"[\d.]+(?: to [\d.]+)? c", hours)


def kept(row: list[str]) -> float:
    """Gigabytes by the rule of the page, of a row of its table."""
    image, once, parameters, trained = (float(each.split()[0]) if each else 0 for each in row[1:5])
    return 4 * image + once + (4 * parameters + 8 * trained) / 1000 + 1.7


def test_memory_follows_from_its_table() -> None:
    rows = [row for row in ROWS if len(row) == 6 and row[1].endswith("GB")]
    assert len(rows) == len(MEMORY) + 2
    for row in rows:
        assert row[5] == f"{kept(row):.1f}"
    # The two that were measured.
    for row, measured, words in zip(
        rows, (5.2, 10.4), ("12 % too little", "6 % too much"), strict=False
    ):
        percent = round(100 * (float(row[5]) / measured - 1))
        assert words == f"{abs(percent)} % too {'little' if percent < 0 else 'much'}"
        assert words in PAGE
    alike = {
        "coco_staged_2_all.yaml": "coco_mask_rcnn_R_50_FPN.yaml",
        "coco_staged_1_heads.yaml": "coco_mask_rcnn_R_50_FPN.yaml",
        "coco_torchvision_R_50_FPN.yaml": "coco_mask_rcnn_R_50_FPN.yaml",
        "pointrend_rcnn_R_50_FPN.yaml": "pointrend_coco_R_50_FPN.yaml",
        "patchdct_rcnn_R_50_FPN.yaml": "patchdct_coco_R_50_FPN.yaml",
        "stage_*.yaml": "stage_0_backbone.yaml",
        "r101/stage_*.yaml": "r101/stage_0_backbone.yaml",
        "convnext_t/stage_*.yaml": "convnext_t/stage_3_refine.yaml",
    }
    for row in [*CARDS, *PARTS]:
        if row[-5].endswith(" m"):
            assert (row[-5], row[-4]) in [("5.2 GB m", "3.3 GB m"), ("10.4 GB m", "6.6 GB m")]
            continue
        name = row[0].split("`")[1]
        memory = kept(MEMORY[alike.get(name, name)])
        assert row[-5:-3] == [f"{memory:.1f} GB c", f"{0.635 * memory:.1f} GB c"]


def test_every_config_to_train_by_has_a_card() -> None:
    names = {path.stem for path in CONFIGS.glob("*.yaml") if path.name[:4] != "Base"}
    assert {name for row in CARDS for name in trainings(row)} == names
    assert {row[0].split("/")[0][1:] for row in CARDS if "/" in row[0]} == {
        path.parent.name for path in CONFIGS.glob("*/stage_1_heads.yaml")
    } - {"demo"}


def test_scores_are_those_of_the_performance_table() -> None:
    file = Path(performance_table.__file__).with_name("published_scores.yaml")
    content = read_yaml(file)
    for name, scores in content["reference_study"]["coco"].items():
        texts = [f"{each:.2f}" for each in list(scores.values())[:-1]]
        assert [name, *texts, str(scores["AR100"])] in ROWS
    published = {entry["name"]: entry.get("val", {}).get("AP") for entry in content["published"]}
    cells = {row[0]: row[1] for row in CARDS}
    assert cells["`coco_mask_rcnn_R_50_FPN.yaml`"] == (
        f"{published['Mask R-CNN R50-FPN, COCO (Detectron2)']} p (1)"
    )
    assert cells["`pointrend_rcnn_R_50_FPN.yaml`"] == f"{published['PointRend R50']} p (7)"
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
