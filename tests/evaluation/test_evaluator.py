"""Detectron2's evaluator: the same score as the files', on one process and on two."""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.logger import setup_logger
from PIL import Image

from cityscapes_maskrcnn.data.tree import image_name
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.instance_ap import average_precision, averages, match_image
from cityscapes_maskrcnn.evaluation.instances import (
    instances_to_predictions,
    leave_masks_unpasted,
    masks_from_device,
)
from cityscapes_maskrcnn.evaluation.masks import mask_from_bitmap
from cityscapes_maskrcnn.evaluation.result_files import (
    find_ground_truth,
    ground_truth_file,
    map_result_files,
)
from cityscapes_maskrcnn.utils.errors import InputError

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("evaluate_on_processes.py")
HEIGHT, WIDTH = 60, 90
LABEL_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
NOTHING = {
    "masks": np.zeros((0, HEIGHT, WIDTH), dtype=bool),
    "classes": [],
    "scores": [],
    "boxes": [],
}


script = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def make_case(folder: Path, num_images: int = 7) -> dict[str, Any]:
    """Ground truth files and, per image, arrays like a model's output."""
    random = np.random.default_rng(5)
    case: dict[str, Any] = {"gt_dir": str(folder / "gtFine" / "val"), "files": [], "outputs": []}
    for index in range(num_images):
        city = ["ulm", "bonn"][index % 2]
        ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
        for number in range(6):
            y0, x0 = random.integers(0, 40), random.integers(0, 60)
            label = int(random.choice([24, 26, 26, 33]))
            value = 4 if number == 0 else label if number == 1 else label * 1000 + number
            ids[y0 : y0 + random.integers(8, 25), x0 : x0 + random.integers(8, 35)] = value
        name = f"{city}_{index:06}_000019"
        (folder / "gtFine" / "val" / city).mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(
            folder / "gtFine" / "val" / city / f"{name}_gtFine_instanceIds.png"
        )
        case["files"].append(str(folder / "leftImg8bit" / city / f"{name}_leftImg8bit.png"))
        values = [value for value in np.unique(ids).tolist() if value >= 24] * 2
        masks = np.zeros((len(values), HEIGHT, WIDTH), dtype=bool)
        for row, value in enumerate(values):
            shift = random.integers(-2, 3, size=2).tolist()
            masks[row] = np.roll(ids == value, shift, axis=(0, 1))
        case["outputs"].append(
            {
                "masks": masks,
                "classes": [LABEL_IDS.index(v if v < 1000 else v // 1000) for v in values],
                # Few values: between equal ones COCO's result depends on the images' order.
                "scores": random.integers(1, 6, len(values)).astype(float).tolist(),
                "boxes": [[5.5, 6.5, 30.25, 40.0]] * len(values),
            }
        )
    case["outputs"][4] = NOTHING
    return case


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    case = make_case(tmp_path)
    script.register("evaluator_test", case)
    return case


def process(
    evaluator: CityscapesInstanceEvaluator, case: dict[str, Any], indices: list[int]
) -> None:
    for index in indices:
        output = script.to_output(case["outputs"][index])
        evaluator.process([{"file_name": case["files"][index]}], [output])


def score(case: dict[str, Any], output_dir: Path | None = None) -> dict[str, dict[str, float]]:
    evaluator = CityscapesInstanceEvaluator("evaluator_test", output_dir)
    evaluator.reset()
    process(evaluator, case, list(range(len(case["files"]))))
    return evaluator.evaluate()


def test_equals_the_score_of_the_written_files(
    case: dict[str, Any], tmp_path: Path, write_results: Callable[..., Path]
) -> None:
    results = score(case, tmp_path / "inference")
    for file, arrays in zip(case["files"], case["outputs"], strict=True):
        output = script.to_output(arrays)
        predictions = instances_to_predictions(output["instances"], HEIGHT, WIDTH)
        write_results(tmp_path / "results", image_name(file), predictions)
    matches = map_result_files(
        match_image, tmp_path / "results", find_ground_truth(case["gt_dir"]), num_workers=1
    )
    expected = averages(average_precision(matches))

    assert results["segm"]["AP"] == 100 * expected["allAp"]
    assert results["segm"]["AP50"] == 100 * expected["allAp50%"]
    assert results["segm"]["AP-car"] == 100 * expected["classes"]["car"]["ap"]
    assert results["segm"]["AP50-bicycle"] == 100 * expected["classes"]["bicycle"]["ap50%"]
    assert math.isnan(results["segm"]["AP-train"])
    assert 5 < results["segm"]["AP"] < 95
    assert list(results) == ["segm", "coco_segm", "coco_bbox"]
    assert list(results["coco_bbox"])[:7] == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]
    # Boxes come from pred_boxes, which are far off here.
    assert results["coco_bbox"]["AP"] < 1 < results["coco_segm"]["AP"]

    written = json.loads((tmp_path / "inference" / "cityscapes_results.json").read_text())
    assert written["averages"]["allAp"] == expected["allAp"]
    assert written["averages"]["classes"]["train"] == {"ap": None, "ap50%": None}
    print_csv_format(results)


def test_two_processes_and_a_padding_sampler_give_the_same_score(
    case: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(case))
    subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "case.pkl", "2", tmp_path / "out.json"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "CUDA_VISIBLE_DEVICES": "",
        },
        check=True,
        timeout=300,
        capture_output=True,
    )
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["processes"] == 2
    np.testing.assert_equal(out["results"], dict(score(case)))


def test_counts_each_image_once_and_forgets_on_reset(case: dict[str, Any]) -> None:
    evaluator = CityscapesInstanceEvaluator("evaluator_test")
    process(evaluator, case, [0, 0, 1, 2, 3, 4, 5, 6, 6])
    np.testing.assert_equal(dict(evaluator.evaluate()), dict(score(case)))
    evaluator.reset()
    process(evaluator, case, [1])
    with pytest.raises(InputError) as error:
        evaluator.evaluate()
    assert str(error.value) == (
        "cannot score evaluator_test: 6 images were not predicted: bonn_000003_000019, "
        "bonn_000005_000019, ulm_000000_000019, ulm_000002_000019, ulm_000004_000019, "
        "ulm_000006_000019"
    )


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(case: dict[str, Any]) -> None:
    nothing = {**case, "outputs": [NOTHING] * len(case["files"])}
    results = score(nothing)
    assert [results[task]["AP"] for task in results] == [0.0, 0.0, 0.0]
    assert results["segm"]["AP-car"] == results["coco_segm"]["AR100"] == 0.0
    for file in case["files"]:
        road = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
        Image.fromarray(road).save(ground_truth_file(case["gt_dir"], file))
    for scores in score(nothing).values():
        assert all(math.isnan(value) for value in scores.values())


def test_workers_give_the_same_score_and_their_errors(case: dict[str, Any]) -> None:
    evaluator = CityscapesInstanceEvaluator("evaluator_test", num_workers=2)
    # Workers are started for the 17th image.
    process(evaluator, case, [*range(7)] * 3)
    np.testing.assert_equal(dict(evaluator.evaluate()), dict(score(case)))
    evaluator.reset()
    process(evaluator, case, [*range(7)] * 3)
    broken = {**case["outputs"][0], "scores": [float("nan")] * len(case["outputs"][0]["scores"])}
    process(evaluator, {**case, "outputs": [broken] * 7}, [0])
    with pytest.raises(InputError, match="ulm_000000_000019: a prediction's confidence is NaN"):
        evaluator.evaluate()


def unpasted(random: np.random.Generator, gt_file: Path) -> Instances:
    """What a Mask R-CNN's heads give for an image that was resized by 1.5."""
    ids = np.asarray(Image.open(gt_file))
    boxes, classes = [[-9.0, -9.0, -1.0, -1.0]], [2]  # outside: Detectron2 drops it
    for value in np.unique(ids[ids >= 1000]).tolist() * 2:
        rows, columns = np.nonzero(ids == value)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append((np.array(box) * 1.5 + random.uniform(-3, 3, size=4)).tolist())
        classes.append(LABEL_IDS.index(value // 1000))
    instances = Instances((HEIGHT * 3 // 2, WIDTH * 3 // 2))
    instances.pred_boxes = Boxes(torch.tensor(boxes))
    masks = np.clip(random.normal(0.8, 0.2, size=(len(boxes), 1, 28, 28)), 0, 1)
    instances.pred_masks = torch.tensor(masks, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes)
    instances.scores = torch.from_numpy(random.random(len(boxes), dtype=np.float32))
    return instances


def test_unpasted_masks_score_like_pasted_ones(case: dict[str, Any]) -> None:
    """The same raw outputs through Detectron2's own post-processing and without pasting."""
    random = np.random.default_rng(0)
    raw = {
        file: unpasted(random, ground_truth_file(case["gt_dir"], file)) for file in case["files"]
    }

    size = (HEIGHT * 3 // 2, WIDTH * 3 // 2)

    class Heads(GeneralizedRCNN):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.backbone = torch.nn.Identity()
            self.proposal_generator = lambda *_: (None, None)

        def preprocess_image(self, batched_inputs: Any) -> Any:
            given = [copy.deepcopy(raw[image["file_name"]]) for image in batched_inputs]
            self.roi_heads = lambda *_: (given, None)
            return ImageList(torch.zeros(1, 3, *size), [size] * len(given))

    model = Heads().eval()
    other = torch.nn.Sequential()
    assert leave_masks_unpasted(other) is other
    loader = [[{"file_name": file, "height": HEIGHT, "width": WIDTH}] for file in case["files"]]
    results = []
    for each in (model, leave_masks_unpasted(model)):
        evaluator = CityscapesInstanceEvaluator("evaluator_test")
        results.append(inference_on_dataset(each, loader, evaluator))
    np.testing.assert_equal(results[0], results[1])
    assert 5 < results[0]["segm"]["AP"] < 95

    (output,) = leave_masks_unpasted(model)(loader[0])
    instances, (pasted,) = output["instances"], model(loader[0])
    assert instances.image_size == (HEIGHT, WIDTH)
    assert len(instances) == len(raw[case["files"][0]]) - 1
    full = instances.pred_masks.to_bitmasks(instances.pred_boxes, HEIGHT, WIDTH).tensor
    assert torch.equal(full, pasted["instances"].pred_masks)


def test_tables_are_logged_under_a_plain_setup_logger(
    case: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("detectron2")
    for name, value in [("level", logger.level), ("propagate", True), ("handlers", [])]:
        monkeypatch.setattr(logger, name, value)
    setup_logger.cache_clear()
    setup_logger()
    score(case)
    setup_logger.cache_clear()
    out = capsys.readouterr().out
    assert "evaluator_test, 7 images\nCityscapes instance protocol (official)" in out
    assert "\nmotorcycle " in out
    assert out.count("evaluator_test, 7 images\nCOCO-style protocol (pycocotools)") == 1


def test_analysis_lies_beside_the_score(case: dict[str, Any], tmp_path: Path) -> None:
    drawn: list[tuple[Any, ...]] = []
    evaluator = CityscapesInstanceEvaluator(
        "evaluator_test",
        tmp_path,
        analysis_confidence=0.0,
        draw=lambda *args: drawn.append(args),
    )
    process(evaluator, case, list(range(7)))
    results = evaluator.evaluate()
    ((folder, summary, ap),) = drawn
    assert folder == tmp_path / "analysis"
    assert summary is evaluator.error_summary
    assert 100 * ap[2, 0] == results["segm"]["AP50-car"]
    with (tmp_path / "analysis" / "per_class.csv").open() as file:
        car = list(csv.DictReader(file))[2]
    assert float(car["AP50"]) == results["segm"]["AP50-car"]
    assert (car["class"], car["confidence_threshold"]) == ("car", "0.0")
    assert int(car["objects"]) == int(car["found"]) + int(car["missed"]) > 0


def test_analysis_that_cannot_be_written_costs_no_score(
    case: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "analysis").write_text("a file in its place")
    results = score(case, tmp_path)
    assert results["segm"]["AP"] > 0
    assert "the error analysis is incomplete" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "evaluator_bad has no labels"),
        ({"gt_dir": "x", "thing_classes": ["car", "car"]}, r"each once, .* not car"),
        ({"gt_dir": "x", "thing_classes": []}, "not empty"),
        (
            {
                "gt_dir": "x",
                "thing_classes": ["car", "person"],
                "thing_dataset_id_to_contiguous_id": {24: 0, 26: 1},
            },
            "has class 0 for label 24, person, but its thing_classes are car, person",
        ),
        (
            {"gt_dir": "x", "thing_classes": ["cat", "dog"]},
            r"evaluator_bad: thing_classes must be some of .* not cat, dog",
        ),
    ],
)
def test_datasets_that_cannot_be_scored(metadata: dict[str, Any], message: str) -> None:
    MetadataCatalog.pop("evaluator_bad", None)
    MetadataCatalog.get("evaluator_bad").set(**metadata)
    with pytest.raises(InputError, match=message):
        CityscapesInstanceEvaluator("evaluator_bad")


def test_some_of_the_classes_in_another_order(case: dict[str, Any], tmp_path: Path) -> None:
    """A model of cars (class 0) and persons (1): the scores of all 8 are those of its two."""
    full = score(case, tmp_path / "full")
    MetadataCatalog.get("evaluator_test").set(
        thing_classes=["car", "person"], thing_dataset_id_to_contiguous_id={26: 0, 24: 1}
    )
    for output in case["outputs"]:
        kept = [index for index, label in enumerate(output["classes"]) if label in (0, 2)]
        output["classes"] = [{2: 0, 0: 1}[output["classes"][index]] for index in kept]
        output["masks"] = output["masks"][kept]
        output |= {key: [output[key][index] for index in kept] for key in ("scores", "boxes")}
    results = score(case, tmp_path / "two")
    assert sorted(results["segm"]) == sorted(
        ["AP", "AP50", "AP-person", "AP50-person", "AP-car", "AP50-car"]
    )
    for task in ("segm", "coco_segm", "coco_bbox"):
        for name in ("person", "car"):
            assert results[task][f"AP-{name}"] == full[task][f"AP-{name}"]
        both = [results[task][f"AP-{name}"] for name in ("person", "car")]
        assert results[task]["AP"] == pytest.approx(sum(both) / 2)
    assert results["segm"]["AP"] > 5
    for table, classes in [("per_class", 2), ("confusion", 3), ("false_positives", 2)]:
        with (tmp_path / "two" / "analysis" / f"{table}.csv").open(newline="") as file:
            rows = [row[0] for row in csv.reader(file)][1:]
        assert rows == ["person", "car", "unmatched"][:classes]


def test_boxes_of_detectors_without_masks(case: dict[str, Any], tmp_path: Path) -> None:
    full = score(case)
    evaluator = CityscapesInstanceEvaluator("evaluator_test", tmp_path / "out", masks=False)
    evaluator.reset()
    for file, arrays in zip(case["files"], case["outputs"], strict=True):
        output = script.to_output(arrays)
        output["instances"].remove("pred_masks")
        evaluator.process([{"file_name": file}], [output])
    results = evaluator.evaluate()
    assert results == {"coco_bbox": pytest.approx(full["coco_bbox"], nan_ok=True)}
    assert not (tmp_path / "out").exists()
    instances = script.to_output(case["outputs"][0])["instances"]
    small = Instances((HEIGHT, WIDTH - 1), **instances.get_fields())
    small.remove("pred_masks")
    with pytest.raises(InputError, match="predictions are for 60 x 89"):
        evaluator.process([{"file_name": case["files"][0]}], [{"instances": small}])


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("pred_classes", lambda classes: classes * 0 + 8, "the class 8; the dataset has 8"),
        ("pred_classes", lambda classes: classes * 0 - 1, "the class -1"),
        ("scores", lambda scores: scores * math.nan, "confidence is NaN"),
        (
            "pred_masks",
            lambda m: m[:, :, 1:],
            r"predictions are for 60 x 89 .* ground truth is 60 x 90",
        ),
        ("pred_masks", None, "MODEL.MASK_ON"),
    ],
)
def test_invalid_predictions(case: dict[str, Any], field: str, change: Any, message: str) -> None:
    evaluator = CityscapesInstanceEvaluator("evaluator_test")
    instances = script.to_output(case["outputs"][0])["instances"]
    value = instances.get(field)
    instances.remove(field)
    if change is not None:
        instances.set(field, change(value))
    with pytest.raises(InputError, match=f"ulm_000000_000019: .*{message}"):
        evaluator.process([{"file_name": case["files"][0]}], [{"instances": instances}])


def test_outputs_and_images_of_another_dataset(case: dict[str, Any]) -> None:
    evaluator = CityscapesInstanceEvaluator("evaluator_test")
    with pytest.raises(InputError, match="predicts sem_seg, but no instances"):
        evaluator.process([{"file_name": case["files"][0]}], [{"sem_seg": torch.zeros(19, 2, 2)}])
    with pytest.raises(InputError, match="bonn_000009_000019 does not belong to it"):
        evaluator.process([{"file_name": "bonn_000009_000019_leftImg8bit.png"}], [{}])


def test_images_of_one_name_and_of_another_suffix_are_refused(case: dict[str, Any]) -> None:
    evaluator = CityscapesInstanceEvaluator("evaluator_test")
    case["files"].append(case["files"][0])
    with pytest.raises(InputError, match="evaluator_test: 2 images have the name ulm_000000_0000"):
        evaluator.load_ground_truth()
    case["files"][-1] = "/a/ulm/ulm_000000_000019_leftImg8bit_foggy_beta_0.01.png"
    with pytest.raises(
        InputError, match=r"beta_0.01.png: its name does not end in _leftImg8bit\.p"
    ):
        evaluator.load_ground_truth()


def test_masks_are_the_same_by_both_ways() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((20, 9, 14)) < 0.03)
    masks[3] = False
    masks[4] = True
    for mask, on_device in zip(masks, masks_from_device(masks), strict=True):
        np.testing.assert_equal(vars(on_device), vars(mask_from_bitmap(mask.numpy())))
    assert masks_from_device(masks[:0]) == []


@pytest.mark.gpu
def test_predictions_on_a_gpu(case: dict[str, Any]) -> None:
    instances: Instances = script.to_output(case["outputs"][0])["instances"]
    here = instances_to_predictions(instances, HEIGHT, WIDTH)
    there = instances_to_predictions(instances.to("cuda"), HEIGHT, WIDTH)
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.mask.frame(), other.mask.frame())
        assert (one.confidence, one.box) == (other.confidence, other.box)
