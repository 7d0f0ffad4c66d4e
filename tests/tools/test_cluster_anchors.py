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
from cityscapes_maskrcnn.engine.anchor_report import write_anchor_report
from cityscapes_maskrcnn.engine.run_anchors import dataset_boxes
from cityscapes_maskrcnn.modeling.anchors import Anchors, best_iou, fit_anchors
from cityscapes_maskrcnn.utils.errors import InputError

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
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "anchors.json",
        "anchors.png",
        "anchors.yaml",
    ]
    # The images are 96x192: boxes are four times as large at network scale.
    register_all(str(small_root))
    boxes = dataset_boxes("cityscapes_instance_train", 384, 2048)
    expected = fit_anchors(boxes, 5, 2)
    cfg = build_config(str(output), [])
    node = cfg.MODEL.ANCHOR_GENERATOR
    assert node.NAME == "KMeansAnchorGenerator"
    assert (
        [[size] for size in expected.sizes],
        [list(expected.ratios)],
    ) == (node.SIZES, node.ASPECT_RATIOS)
    numbers = json.loads((tmp_path / "new" / "anchors.json").read_text())
    assert "cityscapes_instance_train, shorter side 384" in numbers["boxes"]
    assert numbers["fitted"]["fit"][0]["boxes"] == len(boxes)
    assert numbers["fitted"]["fit"][0]["mean_iou"] == best_iou(boxes, expected).mean()
    assert f"-> {best_iou(boxes, expected).mean():.3f}" in done.stdout
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (1440, 672)


def test_more_sizes_than_distinct_boxes_is_one_line(cluster_anchors: Run, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("width,height\n" + 20 * "10,20\n30,40\n")
    done = cluster_anchors("--boxes", boxes, "--output", tmp_path / "anchors.yaml")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: anchors: 40 boxes have 2 different sizes, too few for 5 clusters; ask for fewer or "
        "give more boxes"
    )
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--boxes", ""], "--boxes: the name is empty; give a file of width,height lines"),
        (["--seed", "-1"], "anchors: seed -1; give --seed, or the config's SEED, as a number"),
    ],
)
def test_bad_input_is_one_line(
    cluster_anchors: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("".join(f"{side},{3 * side}\n{side},{side}\n" for side in range(10, 20)))
    output = ["--num-ratios", 2, "--output", tmp_path / "anchors.yaml"]
    done = cluster_anchors("--boxes", boxes, *output, *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.csv"]


@pytest.mark.parametrize("suffix", [".yaml", ".png", ".json"])
def test_a_folder_in_the_way_leaves_nothing_half_written(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"anchors{suffix}"
    folder.mkdir()
    with pytest.raises(InputError, match=rf"--output .*/anchors\.yaml: .*{suffix} is a folder"):
        write_anchor_report([[8, 8]], Anchors((8.0,), (1.0,)), tmp_path / "anchors.yaml", "one box")
    assert list(tmp_path.iterdir()) == [folder]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    anchors = Anchors((8.0,), (1.0,))
    with pytest.raises(InputError, match=r"ends in \.yaml"):
        write_anchor_report([[8, 8]], anchors, tmp_path / "anchors.png", "one box")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_anchor_report([[8, 8]], anchors, tmp_path / "file" / "a.yaml", "one box")
