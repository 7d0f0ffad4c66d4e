from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.evaluation.instance_ap import Prediction, ground_truth
from cityscapes_maskrcnn.evaluation.result_files import find_ground_truth

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
VAL = "cityscapes_instance_val"
KEYS = {"reason", "image", "caption", "ap", "gt", "pred", "counts"}


@pytest.fixture
def gallery(tool, tmp_path):
    def make(*arguments):
        return tool("tools/make_gallery.py", "--output", tmp_path / "gallery", *arguments)

    return make


@pytest.fixture
def results(small_root, tmp_path, write_results) -> Path:
    """Of each image all objects, without a third of the classes in the first two images."""
    files = find_ground_truth(small_root / "cityscapes" / "gtFine" / "val")
    for number, (name, file) in enumerate(files.items()):
        gt = ground_truth(read_instance_ids(file))
        predictions = [
            Prediction(gt.instance_mask(index), int(gt.categories[index]), 0.9)
            for index in np.flatnonzero(gt.is_object)
            if number > 1 or gt.categories[index] > 2 * number
        ]
        write_results(tmp_path / "results", name, predictions)
    return tmp_path / "results"


def assert_complete(folder: Path) -> dict:
    """Every picture that is named is there, and those of an example have one size."""
    content = json.loads((folder / "gallery.json").read_text())
    assert set(content) == {"model", "dataset", "images", "examples"}
    page = (folder / "index.md").read_text()
    for example in content["examples"]:
        assert set(example) == KEYS
        sizes = [Image.open(folder / example[key]).size for key in ("gt", "pred")]
        # Enlarged to 1024 x 512; the strip below has 4.2 lines of 16 pixels.
        assert sizes == [(1024, 512 + 67)] * 2
        assert example["caption"] in page
    named = {example[key] for example in content["examples"] for key in ("gt", "pred")}
    assert {path.name for path in folder.glob("*.png")} == named
    return content


def test_result_files(gallery, results, tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "class_train_prediction.png").write_text("of an earlier gallery")
    (folder / "mine.txt").write_text("stays")
    done = gallery("--dataset", VAL, "--predictions", results)
    assert done.returncode == 0, done.stderr
    content = assert_complete(folder)
    assert (folder / "mine.txt").exists()
    assert (content["dataset"], content["images"]) == (VAL, 6)
    assert content["model"] == f"results in {results}"
    by_reason = {example["reason"]: example for example in content["examples"]}
    assert by_reason["best"]["ap"] == 1.0
    assert by_reason["best"]["counts"]["missed"] == 0
    first_two = sorted(path.name[: -len("_pred.txt")] for path in results.glob("*.txt"))[:2]
    assert by_reason["worst"]["image"] in first_two
    assert by_reason["misses"]["image"] in first_two
    assert "false_positives" not in by_reason
    assert done.stdout.splitlines()[:-1] == [each["caption"] for each in content["examples"]]


def test_model(gallery, trained, tmp_path):
    weights = ("MODEL.WEIGHTS", trained / "model_final.pth")
    done = gallery("--config-file", trained / "config.yaml", "--score-thresh", "0", *weights)
    assert done.returncode == 0, done.stderr
    content = assert_complete(tmp_path / "gallery")
    assert content["model"] == f"Mask R-CNN ResNet-50, {trained / 'model_final.pth'}"
    assert content["examples"]
    seen = gallery(
        "--config-file", trained / "config.yaml", "--dataset", "cityscapes_instance_train", *weights
    )
    assert seen.returncode == 1
    assert "has seen images that it is to be scored on" in seen.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("DATASETS.TEST is empty", "--dataset")),
        (("--dataset", "cityscapes_instance_vall"), ("cityscapes_instance_val",)),
        (("--dataset", "cityscapes_instance_test"), ("no labels",)),
        (("--dataset", VAL, "--predictions", "nowhere"), ("nowhere", "does not exist")),
        (("--dataset", VAL, "--score-thresh", "2"), ("--score-thresh 2.0", "between 0 and 1")),
        (("--dataset", VAL, "--config-file", STAGE_1, "MODEL.WEIGHTS", ""), ("is empty: name a",)),
    ],
)
def test_bad_input(gallery, arguments, words):
    done = gallery(*arguments)
    assert done.returncode == 1
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    for word in words:
        assert word in line
