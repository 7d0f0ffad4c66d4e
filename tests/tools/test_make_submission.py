"""make_submission.py: from weights to a valid zip file, on two processes, and --check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, TRAINED, to_plain, used_data
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.evaluation.instance_ap import average_precision, ground_truth, match_image
from cityscapes_maskrcnn.evaluation.instances import instances_to_predictions
from cityscapes_maskrcnn.evaluation.result_files import (
    find_ground_truth,
    ground_truth_file,
    map_result_files,
)

PROJECT = Path(__file__).parents[2]
PART = "cityscapes_instance_val_part1of4"
TOOL = PROJECT / "tools" / "make_submission.py"

# Mask R-CNN on a narrow ResNet-18, for images of 96 x 192.
CONFIG = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], POST_NMS_TOPK_TEST: 20}
  ROI_HEADS:
    {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 8, SCORE_THRESH_TEST: 0.0}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16}
TEST: {DETECTIONS_PER_IMAGE: 6}
INPUT: {MIN_SIZE_TEST: 96}
DATASETS: {TRAIN: [], TEST: []}
DATALOADER: {NUM_WORKERS: 0}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yaml and random weights that find something."""
    folder = tmp_path_factory.mktemp("model")
    weights = f"WEIGHTS: {folder / 'model.pth'}"
    (folder / "config.yaml").write_text(CONFIG.replace("DEVICE: cpu", f"DEVICE: cpu\n  {weights}"))
    torch.manual_seed(0)
    model = build_model(build_config(str(folder / "config.yaml"), []))
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name.startswith("fpn_output"):
                parameter.mul_(0.01)
        model.roi_heads.mask_head.predictor.weight.mul_(500)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture
def root(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data set that may be damaged."""
    shutil.copytree(small_root / "cityscapes", tmp_path / "data" / "cityscapes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def submit(root: Path, tool: Run, model_folder: Path) -> Run:
    config = model_folder / "config.yaml"
    return partial(tool, "tools/make_submission.py", "--config-file", config, root=root)


def test_two_processes_and_check(root: Path, submit: Run, tmp_path: Path) -> None:
    """Also with test-time augmentation."""
    output = tmp_path / "submission.zip"
    augmented = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(96,)")
    done = submit("--output", output, "--num-gpus", 2, *augmented)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 images of cityscapes_instance_test are left to predict" in done.stdout
    assert "submission.zip: 2 images, complete, read back and valid" in done.stdout
    # The model's layers would be pages, and there is no log.txt for them.
    assert re.search(r"Model: \(\d{3} lines\)\n", done.stdout)
    with zipfile.ZipFile(output) as archive:
        names = archive.namelist()
    assert sum(name.endswith("_pred.txt") for name in names) == 2
    assert len(names) > 4

    # The check works where there is neither Detectron2 nor the data set.
    (tmp_path / "list.txt").write_text(
        "\n".join(map(str, sorted((root / "cityscapes/leftImg8bit/test").rglob("*.png"))))
    )
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['detectron2'] = sys.modules['torch'] = None\n"
    )
    done = subprocess.run(
        [sys.executable, TOOL, "--check", output, "--image-list", tmp_path / "list.txt"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "valid: no violations\n"), done.stderr


def test_what_is_read_back_scores_as_in_memory(
    root: Path, model_folder: Path, tmp_path: Path, submit: Run
) -> None:
    output = tmp_path / "val.zip"
    done = submit("--output", output, "--dataset", PART)
    assert done.returncode == 0, done.stderr

    cfg = build_config(str(model_folder / "config.yaml"), [])
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"])
    mapper = CityscapesMapper(cfg, is_train=False)
    val, part = root / "cityscapes/gtFine/val", tmp_path / "gtFine"
    matches = []
    for image in sorted(DatasetCatalog.get(PART), key=lambda each: each["file_name"]):
        gt_file = ground_truth_file(val, image["file_name"])
        ids = read_instance_ids(gt_file)
        with torch.no_grad():
            instances = model([mapper(image)])[0]["instances"]
        found = instances_to_predictions(instances, *ids.shape)
        matches.append(match_image(ground_truth(ids), found))
        (part / gt_file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(gt_file, part / gt_file.parent.name)
    read_back = map_result_files(match_image, output, find_ground_truth(part), num_workers=1)
    assert sum(len(image.overlaps) for image in matches) > 5
    for one, other in zip(read_back, matches, strict=True):
        for name in ("categories", "confidences", "overlaps", "targets", "ignored"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(average_precision(read_back), average_precision(matches))


def test_goes_on_after_a_failure(root: Path, tmp_path: Path, submit: Run) -> None:
    assert submit("--output", tmp_path / "whole.zip").returncode == 0
    output = tmp_path / "parts.zip"
    second = sorted((root / "cityscapes/leftImg8bit/test").rglob("*.png"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:3000])
    done = submit("--output", output)
    assert done.returncode == 1
    assert f"{second.name}: truncated" in done.stderr.splitlines()[-1]
    assert not output.exists()
    parts = tmp_path / "parts.zip.parts"
    assert len(list(parts.glob("*.zip"))) == 1

    second.write_bytes(content)
    done = submit("--output", output, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {parts}: holds images predicted with another MODEL.ROI_HEADS.SCORE_THRESH_TEST;"
        f" give another --output or delete {parts}"
    )
    # What predictions do not depend on may change.
    harmless = ("TEST.NUM_WORKERS", 0, "TEST.EVAL_PERIOD", 9, "INPUT.MIN_SIZE_TRAIN", "(64,)")
    done = submit("--output", output, *harmless)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 images of cityscapes_instance_test are left to predict" in done.stdout
    assert output.read_bytes() == (tmp_path / "whole.zip").read_bytes()
    assert not parts.exists()


def test_seen_images_and_missing_classes_are_named(
    root: Path, tmp_path: Path, submit: Run, model_folder: Path
) -> None:
    """A model of cars (class 0) and persons (1) that was trained on the first validation image."""
    register_all(str(root))
    images = DatasetCatalog.get("cityscapes_instance_val")[:1]
    name = "make_submission_two"
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(thing_classes=["car", "person"])

    options = ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATASETS.TRAIN", f"('{name}',)"]
    torch.manual_seed(0)
    model = build_model(
        build_config(str(model_folder / "config.yaml"), [str(each) for each in options])
    )
    with torch.no_grad():
        # The person's score of every region, higher than the background's.
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([-9.0, 9.0, 0.0]))
        model.roi_heads.mask_head.predictor.bias.fill_(9)
    history = to_plain([used_data(name, TRAINED, images)])
    weights = tmp_path / "two.pth"
    torch.save({"model": model.state_dict(), SEEN_IMAGES_KEY: history}, weights)

    output = tmp_path / "val.zip"
    options += ["MODEL.WEIGHTS", weights, "TEST.BATCH_SIZE", 4]
    done = submit("--output", output, "--dataset", "cityscapes_instance_val", *options)
    assert done.returncode == 0, done.stderr
    assert "Start inference on 2 batches" in done.stdout  # of 4 images, and of 2
    assert (
        "The model predicts 2 of the 8 classes; the benchmark scores the others with 0: rider,"
        " truck, bus, train, motorcycle, bicycle"
    ) in done.stdout
    assert (
        "The model has seen images that it predicts now: 1 of the 6 images of"
        f" cityscapes_instance_val were trained on, as {name}"
    ) in done.stdout
    with zipfile.ZipFile(output) as archive:
        labels = {
            line.split()[1]
            for text in archive.namelist()
            if text.endswith(".txt")
            for line in archive.read(text).decode().splitlines()
        }
    assert labels == {"24"}


def test_check_names_what_is_wrong(tmp_path: Path, submit: Run) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "notes.txt").write_text("hello")
    done = submit("--check", tmp_path / "results")
    assert done.returncode == 1
    assert "3 violations" in done.stdout
    assert "missing text file (2)" in done.stdout
    assert "  notes.txt" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "cityscapes_instance_tset"], "did you mean cityscapes_instance_test"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHTS", "gone.pth"], "gone.pth: no such file"),
        (["MODEL.MASK_ON", False], "MODEL.MASK_ON True"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 80], "MODEL.ROI_HEADS.NUM_CLASSES is 80"),
        (["--output", "."], "a folder; --output must name a zip file"),
    ],
)
def test_bad_input(tmp_path: Path, submit: Run, arguments: list[object], words: str) -> None:
    done = submit("--output", tmp_path / "s.zip", *arguments)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "s.zip").exists()


def test_a_backbone_is_not_submitted(tmp_path: Path, submit: Run, model_folder: Path) -> None:
    state = torch.load(model_folder / "model.pth", weights_only=True)["model"]
    backbone = {name: each for name, each in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    weights = ["MODEL.WEIGHTS", tmp_path / "backbone.pth"]
    done = submit("--output", tmp_path / "s.zip", *weights)
    assert done.returncode == 1
    assert (
        "backbone.pth: lacks 6 tensors of proposal_generator, 12 tensors of roi_heads"
    ) in done.stderr.splitlines()[-1]
    assert not (tmp_path / "s.zip").exists()


def test_nothing_to_do_is_a_wrong_flag(submit: Run) -> None:
    done = submit()
    assert done.returncode == 2
    assert "or --check" in done.stderr


def test_a_list_does_not_choose_what_is_predicted(tmp_path: Path, submit: Run) -> None:
    config = ["--config-file", "configs/stage_1_heads.yaml", "--output", tmp_path / "o.zip"]
    done = submit(*config, "--image-list", tmp_path / "list.txt")
    assert done.returncode == 2
    assert "--image-list: goes with --check" in done.stderr
