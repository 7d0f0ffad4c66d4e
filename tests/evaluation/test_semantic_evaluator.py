"""Detectron2's evaluator: the official script's score of the same predictions as files."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813
from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from PIL import Image

from cityscapes_maskrcnn.data.images import read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.data.registration import register_all, register_subset
from cityscapes_maskrcnn.evaluation.semantic_evaluator import (
    RESULTS_FILE,
    CityscapesSemanticEvaluator,
    logits_to_label_ids,
)
from cityscapes_maskrcnn.utils.errors import InputError

FINE, COARSE = "cityscapes_fine_semantic_val", "cityscapes_coarse_semantic_train_extra"
AVERAGES = {
    "IoU": "averageScoreClasses",
    "iIoU": "averageScoreInstClasses",
    "IoU_sup": "averageScoreCategories",
    "iIoU_sup": "averageScoreInstCategories",
}


def make_logits(image: dict[str, Any]) -> torch.Tensor:
    """The ground truth moved by a few pixels, under noise; always the same for an image."""
    random = np.random.default_rng(crc32(Path(image["file_name"]).name.encode()))
    train_ids = train_id_lookup()[read_label_image(image["sem_seg_file_name"])]
    moved = np.roll(train_ids, random.integers(-4, 5, size=2).tolist(), axis=(0, 1))
    logits = random.normal(size=(19, *moved.shape)).astype(np.float32)
    logits += 4 * (moved == np.arange(19)[:, None, None])
    return torch.from_numpy(logits)


@pytest.fixture(autouse=True)
def registered(small_root: Path) -> None:
    register_all(str(small_root))


def process(evaluator: CityscapesSemanticEvaluator, images: list[dict[str, Any]]) -> None:
    for image in images:
        # A mapper for inference leaves the ground truth out.
        given = {"file_name": image["file_name"], "height": image["height"]}
        evaluator.process([given], [{"sem_seg": make_logits(image)}])


def score(dataset: str, output_dir: Path | None = None) -> dict[str, dict[str, float]]:
    evaluator = CityscapesSemanticEvaluator(dataset, output_dir)
    evaluator.reset()
    process(evaluator, DatasetCatalog.get(dataset))
    return evaluator.evaluate()


def official_score(images: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What the official script makes of the predictions written by Detectron2's recipe."""
    folder.mkdir()
    predictions = []
    for image in images:
        train_ids = make_logits(image).argmax(dim=0).numpy()
        pixels = np.full(train_ids.shape, 255, np.uint8)
        for train_id in range(19):
            pixels[train_ids == train_id] = trainId2label[train_id].id
        predictions.append(str(folder / f"{Path(image['file_name']).stem}_pred.png"))
        Image.fromarray(pixels).save(predictions[-1])
    arguments = official.CArgs()
    arguments.__dict__.update(official.args.__dict__)
    arguments.quiet, arguments.JSONOutput = True, False
    gt_files = [image["sem_seg_file_name"] for image in images]
    result: dict[str, Any] = official.evaluateImgLists(predictions, gt_files, arguments)
    return result


@pytest.mark.usefixtures("numpy_with_in1d")
@pytest.mark.parametrize("dataset", [FINE, COARSE])
def test_equals_the_official_score_of_the_written_files(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="detectron2.cityscapes_maskrcnn")
    results = score(dataset, tmp_path / "inference")
    # The evaluator's order: by name.
    images = sorted(DatasetCatalog.get(dataset), key=lambda image: Path(image["file_name"]).name)
    expected = official_score(images, tmp_path / "files")
    assert list(results) == ["sem_seg"]
    assert len(results["sem_seg"]) == 4 + 19
    for mine, theirs in AVERAGES.items():
        assert results["sem_seg"][mine] == 100 * expected[theirs]
        assert 5 < results["sem_seg"][mine] < 95
    for name in ("road", "car", "person", "vegetation"):
        assert results["sem_seg"][f"IoU-{name}"] == 100 * expected["classScores"][name]
    print_csv_format(results)
    assert f"{dataset}, 6 images\nCityscapes pixel-level protocol (official), perc" in caplog.text
    assert re.search(r"^road +\d+\.\d\d +-$", caplog.text, re.MULTILINE)

    written = json.loads((tmp_path / "inference" / RESULTS_FILE).read_text())
    assert written["classScores"]["road"] == expected["classScores"]["road"]
    assert written["classInstScores"]["road"] is None  # no NaN in JSON
    assert written["confMatrix"] == expected["confMatrix"]
    assert written.keys() == expected.keys()


def test_part_of_a_split_and_missing_images() -> None:
    register_subset("semantic_part", FINE, 2)
    part = score("semantic_part")["sem_seg"]["IoU"]
    assert 0 < part != score(FINE)["sem_seg"]["IoU"]
    inside = DatasetCatalog.get("semantic_part")
    names = [image["file_name"] for image in inside]
    evaluator = CityscapesSemanticEvaluator("semantic_part")
    process(evaluator, inside[:1])
    with pytest.raises(InputError) as error:
        evaluator.evaluate()
    assert str(error.value) == (
        f"cannot score semantic_part: 1 images were not predicted: {names[1]}"
    )
    outside = [image for image in DatasetCatalog.get(FINE) if image not in inside]
    with pytest.raises(InputError, match=r"cannot score semantic_part: .*.png does not belong"):
        process(evaluator, outside[:1])


def test_datasets_that_cannot_be_scored() -> None:
    for name in ("cityscapes_instance_val", "cityscapes_fine_sem_seg_test"):
        with pytest.raises(InputError, match=f"{name} has no .*_labelIds.png to score against"):
            CityscapesSemanticEvaluator(name)
    MetadataCatalog.pop("semantic_pets", None)
    MetadataCatalog.get("semantic_pets").set(stuff_classes=["lawn", "sofa"])
    with pytest.raises(InputError, match=r"semantic_pets has not the 19 .*: lawn, sofa"):
        CityscapesSemanticEvaluator("semantic_pets")


def test_damaged_ground_truth(small_root: Path, tmp_path: Path) -> None:
    shutil.copytree(small_root, tmp_path / "copy")
    register_all(str(tmp_path / "copy"))
    images = DatasetCatalog.get(FINE)
    logits = [make_logits(image) for image in images]
    evaluator = CityscapesSemanticEvaluator(FINE)
    labels, instances = (
        [Path(image["sem_seg_file_name"].replace("labelIds", kind)) for image in images]
        for kind in ("labelIds", "instanceIds")
    )
    instances[0].unlink()
    labels[1].write_bytes(labels[1].read_bytes()[:200])
    Image.fromarray(np.full((96, 192), 77, np.uint8)).save(labels[2])
    for index, message in enumerate(
        [instances[0].name, labels[1].name, f"{labels[2].name}: 77 is no official label id"]
    ):
        with pytest.raises(InputError, match=message):
            evaluator.process([images[index]], [{"sem_seg": logits[index]}])


def test_ground_truth_without_instance_ids(
    small_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in ACDC: what instances do not weigh is scored; half of them is a mistake."""
    whole = score(FINE)["sem_seg"]
    shutil.copytree(small_root, tmp_path / "copy")
    register_all(str(tmp_path / "copy"))
    first, *others = sorted((tmp_path / "copy/cityscapes/gtFine/val").rglob("*_instanceIds.png"))
    first.unlink()
    with pytest.raises(InputError, match=f"{first}: no such file, one of 1 that are missing"):
        CityscapesSemanticEvaluator(FINE)
    for file in others:
        file.unlink()
    scores = score(FINE)["sem_seg"]
    assert f"{FINE} has no *_instanceIds.png: iIoU is not measured" in caplog.text
    assert math.isnan(scores.pop("iIoU")) and math.isnan(scores.pop("iIoU_sup"))
    np.testing.assert_equal(scores, {name: whole[name] for name in scores})


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(19, 96, 191), r"labelIds.png: prediction and .* not \(96, 191\)"),
        (torch.zeros(21, 96, 192), r"shape \(21, 96, 192\); expected \(19, height, width\)"),
        (torch.full((19, 96, 192), math.nan), "predicts NaN"),
    ],
)
def test_predictions_that_do_not_fit(logits: torch.Tensor, message: str) -> None:
    evaluator = CityscapesSemanticEvaluator(FINE)
    with pytest.raises(InputError, match=message):
        evaluator.process([DatasetCatalog.get(FINE)[0]], [{"sem_seg": logits}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_to_label_ids(dtype: torch.dtype) -> None:
    logits = torch.full((19, 1, 4), -2.0)
    for column, train_id in enumerate([0, 5, 13, 18]):
        logits[train_id, 0, column] = -1.0
    # The official ids of road, pole, car and bicycle.
    found = logits_to_label_ids(logits.to(dtype))
    assert found.dtype == np.uint8
    assert found.tolist() == [[7, 17, 26, 33]]
    assert logits_to_label_ids(torch.zeros(19, 0, 3)).shape == (0, 3)


@pytest.mark.gpu
def test_logits_on_a_gpu() -> None:
    logits = make_logits(DatasetCatalog.get(FINE)[0])
    np.testing.assert_array_equal(logits_to_label_ids(logits.cuda()), logits_to_label_ids(logits))
