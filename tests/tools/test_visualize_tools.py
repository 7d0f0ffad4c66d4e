from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Mask R-CNN on a ResNet-18, for images of 64 x 128.
CONFIG = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  WEIGHTS: ""
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 8}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 64}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1}
DATASETS: {TRAIN: [], TEST: []}
INPUT: {MIN_SIZE_TEST: 64}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A datasets folder with two validation images, and one test image without labels."""
    for split, number in [("val", 0), ("val", 1), ("test", 0)]:
        stem = f"ulm_{number:06d}_000019"
        image = tmp_path / "cityscapes/leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png"
        truth = tmp_path / "cityscapes/gtFine" / split / "ulm" / f"{stem}_gtFine_polygons.json"
        image.parent.mkdir(parents=True, exist_ok=True)
        truth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 128, 3), 100, np.uint8)).save(image)
        car = {"label": "car", "polygon": [[20, 20], [99, 20], [99, 49], [20, 49]]}
        truth.write_text(json.dumps({"imgHeight": 64, "imgWidth": 128, "objects": [car]}))
        label_ids = np.full((64, 128), 7, np.uint8)  # road
        Image.fromarray(label_ids).save(truth.with_name(f"{stem}_gtFine_labelIds.png"))
    (tmp_path / "model.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run(root, tool):
    return partial(tool, root=root, cwd=root)


@pytest.fixture
def predict(run):
    return partial(run, "tools/visualize_predictions.py", "--config-file", "model.yaml")


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last


def test_predictions_beside_ground_truth(root, predict):
    result = predict(
        *("--input", "cityscapes/leftImg8bit/val", "cityscapes/leftImg8bit/test/ulm/*.png"),
        *("--output", "new/pictures", "--score-thresh", "0.05"),
        *("INPUT.MIN_SIZE_TEST", "48"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "3 pictures are in new/pictures\n"
    assert "MODEL.WEIGHTS is empty" in result.stderr
    assert "3/3" in result.stderr  # the progress bar
    sizes = {path.name: Image.open(path).size for path in (root / "new/pictures").iterdir()}
    # A panel is 1024 x 512 below 41 of caption (see test_predictor); letters 23, gap 23 / 2 = 12
    assert sizes == {
        "ulm_000000_000019_prediction.png": (2 * 1024 + 12, 512 + 41),
        "ulm_000001_000019_prediction.png": (2 * 1024 + 12, 512 + 41),
        "ulm_000000_000019_2_prediction.png": (1024, 512 + 41),  # test: no ground truth
    }
    truth = np.asarray(Image.open(root / "new/pictures/ulm_000000_000019_prediction.png"))
    # Inside the car, ((100 + 0) / 2, (100 + 0) / 2, (100 + 142) / 2)
    np.testing.assert_allclose(truth[41 + 8 * 46, 8 * 24].astype(int), (50, 50, 121), atol=2)


def test_truncated_image(root, predict):
    image = root / "street.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:9000])
    result = predict("--input", image, "--output", "pictures")
    assert_one_line(result, "street.png", "truncated")
    assert not list((root / "pictures").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--input": "missing.png"}, ("missing.png", "no such file")),
        # Detectron2's name of the flag.
        ({"--confidence-threshold": "1.5"}, ("--score-thresh 1.5", "between 0 and 1")),
        ({"--output": "model.yaml/pictures"}, ("--output model.yaml/pictures",)),
        ({"MODEL.WEIGHTS": "nowhere.pth"}, ("nowhere.pth", "no such file")),
        ({"MODEL.ROI_HEADS.NUM_CLASSES": "80"}, ("MODEL.ROI_HEADS.NUM_CLASSES is 80",)),
    ],
)
def test_bad_input_of_predictions(predict, change, words):
    arguments = {
        "--input": "cityscapes/leftImg8bit/val",
        "--output": "pictures",
        **change,
    }
    flags = [each for pair in arguments.items() for each in pair]
    assert_one_line(predict(*flags), *words)


def test_dataset(root, run):
    result = run(
        "tools/visualize_data.py",
        *("--dataset", "cityscapes_instance_val", "--output", "pictures", "--num-images", "1"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "1 pictures are in pictures\n"
    (picture,) = (root / "pictures").iterdir()
    assert picture.name in {f"ulm_{number:06d}_000019_ground_truth.png" for number in (0, 1)}
    pixels = np.asarray(Image.open(picture)).astype(int)
    assert pixels.shape == (512, 1024, 3)
    np.testing.assert_allclose(pixels[8 * 46, 8 * 24], (50, 50, 121), atol=2)


def test_semantic_dataset(root, run):
    flags = ("--dataset", "cityscapes_fine_semantic_val", "--output", "pictures")
    result = run("tools/visualize_data.py", *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "2 pictures are in pictures\n"
    pixels = np.asarray(Image.open(root / "pictures/ulm_000001_000019_ground_truth.png"))
    # Road is (128, 64, 128): ((100 + 128) / 2, (100 + 64) / 2, (100 + 128) / 2)
    np.testing.assert_allclose(pixels[500, 20].astype(int), (114, 82, 114), atol=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--dataset": "cityscapes_instance_vall"}, ("cityscapes_instance_val",)),
        ({"--dataset": "cityscapes_instance_test"}, ("cityscapes_instance_test", "no labels")),
        ({"--dataset": "cityscapes_instance_train"}, ("no such folder", "train")),
        ({"--num-images": "0"}, ("--num-images 0",)),
    ],
)
def test_bad_input_of_data(run, change, words):
    arguments = {"--dataset": "cityscapes_instance_val", "--output": "pictures", **change}
    flags = [each for pair in arguments.items() for each in pair]
    assert_one_line(run("tools/visualize_data.py", *flags), *words)
