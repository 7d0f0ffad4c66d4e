from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.run_anchors import dataset_boxes, write_anchor_report
from cityscapes_maskrcnn.modeling.anchors import Anchors, best_iou, fit_anchors

PROJECT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster_anchors(tool: Run) -> Run:
    return partial(tool, "tools/cluster_anchors.py")


def test_a_dataset_at_network_scale(cluster_anchors: Run, small_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "anchors.yaml"
    done = cluster_anchors(
        *("--dataset", "cityscapes_instance_train", "--output", output, "--num-ratios", 2),
        *("INPUT.MIN_SIZE_TEST", 384),
    )
    assert done.returncode == 0, done.stderr
    files = {path.name for path in output.parent.iterdir()}
    assert files == {"anchors.json", "anchors.png", "anchors.yaml"}
    # The images are 96x192: boxes are four times as large at network scale.
    register_all(str(small_root))
    boxes = dataset_boxes("cityscapes_instance_train", 384, 2048)
    expected = fit_anchors(boxes, 5, 2)
    cfg = build_config(str(output), [])
    node = cfg.MODEL.ANCHOR_GENERATOR
    assert node.NAME == "KMeansAnchorGenerator"
    assert [[size] for size in expected.sizes] == node.SIZES
    assert [list(expected.ratios)] == node.ASPECT_RATIOS
    numbers = json.loads((tmp_path / "new" / "anchors.json").read_text())
    assert "cityscapes_instance_train, shorter side 384" in numbers["boxes"]
    assert numbers["fitted"]["fit"][0]["boxes"] == len(boxes)
    assert numbers["fitted"]["fit"][0]["mean_iou"] == best_iou(boxes, expected).mean()
    assert f"-> {best_iou(boxes, expected).mean():.3f}" in done.stdout
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (1440, 741)  # 6 inches, and 0.18 for the line below the title
    # A score on these images is not of unseen ones: they chose the anchors.
    assert cfg.DATASETS.TUNED_ON == ("cityscapes_instance_train",)
    stage_2 = str(PROJECT / "configs" / "stage_2_tuned.yaml")
    assert build_config(stage_2, ["INCLUDE", f"('{output}',)"]).DATASETS.TUNED_ON == (
        "cityscapes_instance_val_part1of4",
        "cityscapes_instance_train",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "anchors: 20 boxes have 10 different sizes, too few for 11 clusters; ask for fewer"),
        (["--boxes", ""], "--boxes: the name is empty; give a file of width,height lines"),
        (["--seed", "-1"], "anchors: seed -1; give --seed, or the config's SEED, as a number"),
        (["--output", "anchors.png"], "--output anchors.png: the output is a config fragment"),
    ],
)
def test_bad_input_is_one_line(
    cluster_anchors: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("width,height\n" + "".join(f"{side},{side}\n" for side in range(10, 20)) * 2)
    common = ["--num-sizes", 11, "--num-ratios", 1, "--output", tmp_path / "anchors.yaml"]
    done = cluster_anchors("--boxes", boxes, *common, *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.csv"]


def test_boxes_of_a_file_leave_no_trace_of_a_dataset(tmp_path: Path) -> None:
    output = tmp_path / "anchors.yaml"
    write_anchor_report([[8, 8]], Anchors((8.0,), (1.0,)), output, source="one box")
    assert build_config(str(output), []).DATASETS.TUNED_ON == ()


def test_help(cluster_anchors: Run) -> None:
    done = cluster_anchors("--help")
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_in_a_process_of_its_own(tool_process: Run, tmp_path: Path) -> None:
    (tmp_path / "anchors.yaml").mkdir()
    (tmp_path / "boxes.csv").write_text("8,8\n")
    flags = ("--boxes", tmp_path / "boxes.csv", "--num-sizes", 1, "--num-ratios", 1)
    done = tool_process("tools/cluster_anchors.py", *flags, "--output", tmp_path / "anchors.yaml")
    assert done.returncode == 1
    assert "anchors.yaml: cannot be written" in done.stderr.splitlines()[-1]
