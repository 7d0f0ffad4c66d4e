"""A run of the recipe, written by hand: every file that the report reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY

SPLIT = "cityscapes_instance_val_part3and4of4"
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
# Official AP of each stage: the second stage is the best one.
AP = {"stage_1": 11.25, "stage_2": 14.5, "stage_3": 13.0}
START = {
    "stage_0": "torchvision://deeplabv3_resnet50",
    "stage_1": "stage_0/model_final.pth",
    "stage_2": "stage_1/model_final.pth",
    "stage_3": "stage_2/model_final.pth",
}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_csv(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_picture(path: Path, width: int, height: int, tone: int) -> None:
    """A street in a few colours, which is small as a file."""
    pixels = np.full((height, width, 3), (150, 180, 210), np.uint8)
    pixels[height // 2 :] = 90
    pixels[height // 2 : height * 3 // 4, width // 3 : width // 2] = (0, 0, tone)
    pixels[height // 2 : height * 2 // 3, width * 2 // 3 : width * 3 // 4] = (tone, 20, 60)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_stage(run: Path, stage: str, hostile: str) -> None:
    folder = run / stage
    trained_on = f"cityscapes_instance_train{hostile}"
    write_json(
        folder / "inputs.json",
        {
            "settings": {},
            "files": {},
            "commands": [f"python tools/train_net.py OUTPUT_DIR '{folder}' {hostile}"],
        },
    )
    summary = {
        "train": [trained_on],
        "generated": True,
        "images": 240,
        "iterations": 400,
        "epochs": 3.333,
        "parameters": 44_000_000,
        "trainable_parameters": 20_500_000,
        "seconds": 400.0,
        "peak_memory_bytes": 3 * 2**30,
        "memory": "RAM",
    }
    write_json(folder / "summary.json", summary)
    config = {
        "MODEL": {
            "META_ARCHITECTURE": "SemanticSegmentor" if stage == "stage_0" else "GeneralizedRCNN",
            "MASK_ON": True,
            "SEM_SEG_HEAD": {"NAME": "TorchvisionDeepLabV3Head"},
            "WEIGHTS": str(run / START[stage]) if "/model" in START[stage] else START[stage],
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {"DEPTH": 50},
        },
        "SOLVER": {"MAX_ITER": 400, "BASE_LR": 0.002, "IMS_PER_BATCH": 2},
        "DATASETS": {"TRAIN": [trained_on]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    for number in range(400):
        line = {"iteration": number, "total_loss": 2.5 / (1 + number / 80) + 0.2, "lr": 0.002}
        if number % 100 == 99:
            line["validation/total_loss"] = 2.4 / (1 + number / 100) + 0.5
        if number % 100 == 99 and stage == "stage_0":
            line["sem_seg/IoU"] = 20 + number / 40
        elif number % 100 == 99:
            line |= {"segm/AP": number / 30, "coco_segm/AP": number / 22}
        lines.append(json.dumps(line))
    (folder / "metrics.json").write_text("\n".join(lines))
    origin = {
        "code": "0.1.0, sources 0123456789ab",
        "command": f"tools/train_net.py --resume {hostile}",
        "seed": 42,
        "device": "1 x cpu",
        "environment": {"torch": f"2.14.1{hostile}", "detectron2": "0.6"},
        "parents": [{"file": f"{START[stage]}{hostile}", "sha256": "ab" * 32}],
        "classes": list(CLASSES),
        "config": "SEED: 42",
    }
    seen = [{"dataset": trained_on, "role": "trained", "images": 1, "contents": "0" * 12}]
    checkpoint = {
        "model": {"weight": torch.zeros(2)},
        ORIGIN_KEY: origin,
        SEEN_IMAGES_KEY: [{**seen[0], "names": "1" * 12, "generated": False}],
    }
    torch.save(checkpoint, folder / "model_final.pth")
    write_json(folder / "complete.json", {"outputs": {}})


def write_scores(run: Path, stage: str, hostile: str) -> None:
    folder = run / "scores" / stage
    results = {
        "segm": {"AP": AP[stage], "AP50": 2 * AP[stage]},
        "coco_segm": {
            "AP": 1.4 * AP[stage],
            "AP50": 2.5 * AP[stage],
            "APs": 3.0,
            "APm": 20.0,
            "AR100": 25.0,
        },
    }
    scored = {"images": 24, "generated": True, "results": results}
    seen = [f"3 of the 24 images were tuned on {hostile}"] if hostile else []
    write_json(folder / "scores.json", {"datasets": {SPLIT + hostile: scored}, "seen": seen})
    write_json(folder / "complete.json", {"outputs": {}})
    analysis = folder / "inference" / "analysis"
    names = [*CLASSES[:7], CLASSES[7] + hostile]
    rows = [
        [name, 2.5 * number, 5.0 * number, 0.5, 10, number, 10 - number, 2, "", ""]
        for number, name in enumerate(names)
    ]
    # No objects: no score.
    rows[5] = [names[5], "", "", 0.5, 0, 0, 0, 1, "", ""]
    heading = ["class", "AP", "AP50", "confidence_threshold", "objects", "found", "missed"]
    write_csv(
        analysis / "per_class.csv",
        [[*heading, "false_positives", "precision", "recall"], *rows],
    )
    causes = ["duplicate", "wrong class", "poor mask", "background"]
    write_csv(
        analysis / "false_positives.csv",
        [["class", *causes], *([name, number, 0, 1, 2] for number, name in enumerate(names))],
    )
    confusion = [[name, *([0] * 8), 5] for name in [*names, "unmatched"]]
    confusion[4][3 + 1] = 4  # buses as trucks
    write_csv(analysis / "confusion.csv", [["truth", *names, "unmatched"], *confusion])
    groups = [("size", each) for each in ("small", "medium", "large")]
    groups += [("occlusion", each) for each in ("none", "partial", "heavy")]
    misses = [
        [name, *group, 10, number] for name in names for number, group in enumerate(groups, 3)
    ]
    write_csv(analysis / "misses.csv", [["class", "by", "group", "objects", "missed"], *misses])
    write_picture(analysis / "misses.png", 300, 200, 200)


def write_run(run: Path, hostile: str = "") -> Path:
    """Write a complete run, with its texts from outside ending in ``hostile``."""
    for stage in START:
        write_stage(run, stage, hostile)
    for stage in AP:
        write_scores(run, stage, hostile)
    drift = [
        [group, 1000, 0.01 * number, 0.01, 0.02, 0.5]
        for number, group in enumerate(("stem", "res2", "res3", "res4", "res5", "backbone"))
    ]
    header = ["group", "num_parameters", "parameters", "convolutions", "norms", "statistics"]
    write_csv(run / "stage_0" / "drift.csv", [header, *drift])
    fit = {"group": "all", "boxes": 115, "mean_iou": 0.2, "above_50": 0.1, "above_70": 0.0}
    default = {"sizes": [32.0, 64.0], "ratios": [0.5, 1.0], "fit": [fit]}
    fitted = {**default, "sizes": [10.0, 31.5], "fit": [{**fit, "mean_iou": 0.75}]}
    boxes = f"cityscapes_instance_train{hostile}, shorter side 160"
    write_json(
        run / "anchors" / "anchors.json", {"boxes": boxes, "default": default, "fitted": fitted}
    )
    write_json(run / "anchors" / "complete.json", {"outputs": {}})
    write_picture(run / "anchors" / "anchors.png", 400, 200, 80)
    heading = ["trial", "state", "value", "fg_iou_thresh", "seconds", "iterations", "reason"]
    trials = [
        [2, "complete", 12.5, 0.45, 60.0, 30, ""],
        [0, "complete", 9.75, 0.4154, 61.0, 30, ""],
        [1, "failed", "", 0.7, 3.0, "", f"loss is NaN {hostile}"],
    ]
    write_csv(run / "search" / "trials.csv", [heading, *trials])
    best = {"DATASETS": {"TUNED_ON": [f"cityscapes_instance_val_part1of4{hostile}"]}}
    (run / "search" / "best.yaml").write_text(f"# trial 2\n{yaml.safe_dump(best)}")
    write_json(
        run / "search" / "inputs.json",
        {"settings": {"SEARCH.OBJECTIVE": "segm/AP"}, "files": {}, "commands": []},
    )
    write_json(run / "search" / "complete.json", {"outputs": {}})
    examples = [
        ("best", "munster_000008", "Best image AP of 24 images: 41.0%"),
        ("class:car", "munster_000008", "Car: 3 of 4 found"),
        ("misses", f"lindau_000012{hostile}", f"Most misses: 7 {hostile}"),
    ]
    write_json(
        run / "gallery" / "gallery.json",
        {
            "model": f"Mask R-CNN ResNet-50, {run}/stage_3/model_final.pth{hostile}",
            "dataset": SPLIT,
            "images": 24,
            "examples": [
                {
                    "reason": reason,
                    "image": image,
                    "caption": caption,
                    "ap": 0.41,
                    "gt": f"{image[:6]}_gt.png",
                    "pred": f"{image[:6]}_pred.png",
                    "counts": {"objects": 4},
                }
                for reason, image, caption in examples
            ],
        },
    )
    for city in ("munste", "lindau"):
        write_picture(run / "gallery" / f"{city}_gt.png", 640, 320, 142)
        write_picture(run / "gallery" / f"{city}_pred.png", 640, 320, 240)
    write_json(
        run / "recipe.json",
        {
            "commands": [f"python tools/train_stages.py --output '{run}'"],
            "datasets": str(run / "data"),
        },
    )
    arguments = {
        "version": 1,
        "counts": {"train": 240, "val": 48},
        "height": 128,
        "width": 256,
        "seed": 7,
    }
    write_json(run / "data" / "cityscapes" / "synthetic.json", {"arguments": arguments})
    return run


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """``make_run(folder, hostile="")``: write a run into a folder that does not exist."""
    return write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; never written to by tests."""
    return write_run(tmp_path_factory.mktemp("runs") / "streets")
