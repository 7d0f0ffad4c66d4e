"""Scoring: this project against Detectron2's evaluator and the official script, in one run."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as Detectron2Evaluator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from tabulate import tabulate

from cityscapes_maskrcnn.benchmarks.official_evaluation import (
    result_folder,
    runnable_official_code,
    score_result_files,
)
from cityscapes_maskrcnn.benchmarks.predictions import RawPredictions, predict_from_ground_truth
from cityscapes_maskrcnn.data.cache import CACHE_VARIABLE
from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.instance_ap import (
    average_precision,
    averages,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.instances import to_image_scale
from cityscapes_maskrcnn.evaluation.result_files import find_ground_truth, map_result_files
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset
from cityscapes_maskrcnn.utils.errors import InputError

DATASET = "benchmark_evaluation"


@dataclass(frozen=True)
class Case:
    """Images with ground truth, and what a model's heads predict for them.

    Attributes:
        gt_dir: the split's folder.
        images: names of image files (which nobody opens), one per ground truth.
        gt_files: the ``*_instanceIds.png``, in the same order.
        raw: the predictions, in the same order.
        size: height and width of the images in pixels.
    """

    gt_dir: Path
    images: list[str]
    gt_files: list[Path]
    raw: list[RawPredictions]
    size: tuple[int, int]

    def instances(self, index: int) -> Instances:
        """What ``GeneralizedRCNN.inference(do_postprocess=False)`` returns, on the CPU."""
        raw = self.raw[index]
        instances = Instances(self.size)
        instances.pred_boxes = Boxes(torch.from_numpy(raw.boxes).clone())
        instances.pred_masks = torch.from_numpy(raw.probabilities)[:, None]
        instances.pred_classes = torch.from_numpy(raw.categories)
        instances.scores = torch.from_numpy(raw.scores)
        return instances


@dataclass(frozen=True)
class Times:
    """Seconds of one image: on the clock, and of the processor in this process."""

    wall: float
    processor: float


def benchmark_evaluation(
    num_images: int, num_predictions: int, height: int, width: int, repeats: int
) -> str:
    """Measure everything and lay it out.

    Args:
        num_images: generated scenes.
        num_predictions: per image.
        height: of the images in pixels.
        width: of the images in pixels.
        repeats: how often everything is measured; the median is reported.

    Returns:
        A table, and what is compared in it.

    Raises:
        InputError: a number is out of range, or the scores differ, which would make the times void.
    """
    if min(num_images, num_predictions, repeats) < 1:
        raise InputError("--images, --predictions and --repeats must be 1 or more")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="benchmark_evaluation_") as folder:
        case = make_case(
            Path(folder),
            num_images=num_images,
            num_predictions=num_predictions,
            height=height,
            width=width,
        )
        with (
            cache_in(Path(folder) / "cache"),
            runnable_official_code(Path(folder)) as official,
        ):
            runs = [measure(case, official) for _ in range(repeats)]
    medians = {
        step: Times(
            wall=float(np.median([run[step].wall for run in runs])),
            processor=float(np.median([run[step].processor for run in runs])),
        )
        for step in runs[0]
    }
    return _report(
        medians, f"{num_images} images of {height}x{width}, {num_predictions} predictions each"
    )


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Keep caches in a folder of the benchmark's own for the time of a ``with`` block."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[CACHE_VARIABLE]
        if before is not None:
            os.environ[CACHE_VARIABLE] = before


def make_case(
    folder: Path, *, num_images: int, num_predictions: int, height: int, width: int
) -> Case:
    """Generate scenes, and predictions from their ground truth; register them as a dataset."""
    counts = {"train": 0, "val": num_images, "test": 0, "train_extra": 0}
    root = generate_dataset(folder / "data", counts, height=height, width=width, seed=5)
    gt_dir = root / "gtFine" / "val"
    gt_files = sorted(gt_dir.glob("*/*_instanceIds.png"))
    random = np.random.default_rng(0)
    images = [
        str(file).replace("gtFine_instanceIds", "leftImg8bit").replace("/gtFine/", "/leftImg8bit/")
        for file in gt_files
    ]
    raw = [
        predict_from_ground_truth(ground_truth(read_instance_ids(file)), num_predictions, random)
        for file in gt_files
    ]
    register(images, gt_dir)
    return Case(gt_dir=gt_dir, images=images, gt_files=gt_files, raw=raw, size=(height, width))


def register(images: Sequence[str], gt_dir: Path) -> None:
    """Register the dataset, in the place of an earlier one."""
    DatasetCatalog.pop(DATASET, None)
    MetadataCatalog.pop(DATASET, None)
    DatasetCatalog.register(DATASET, lambda: [{"file_name": image} for image in images])
    MetadataCatalog.get(DATASET).set(gt_dir=str(gt_dir), thing_classes=list(THING_CLASSES))


def measure(case: Case, official: list[dict[str, Any]]) -> dict[str, Times]:
    """Measure every step once, on one core and without worker processes.

    Raises:
        InputError: the scores are not the same, bit by bit.
    """
    times: dict[str, Times] = {}
    num_images = len(case.images)

    def timed(step: str, function: Callable[[], Any]) -> Any:
        gc.collect()
        wall, processor = time.perf_counter(), time.process_time()
        result = function()
        spent = time.perf_counter() - wall, time.process_time() - processor
        before = times.get(step, Times(0, 0))
        times[step] = Times(
            before.wall + spent[0] / num_images, before.processor + spent[1] / num_images
        )
        return result

    cache = Path(os.environ[CACHE_VARIABLE])
    reference = Detectron2Evaluator(DATASET)
    reference.reset()
    ours: dict[str, CityscapesInstanceEvaluator] = {
        name: CityscapesInstanceEvaluator(DATASET, coco=False)
        for name in ("first", "cached", "full masks")
    }
    everything = CityscapesInstanceEvaluator(DATASET, cache.parent / "inference")
    for file in cache.glob("*"):
        file.unlink()
    for name, evaluator in [*ours.items(), ("everything", everything)]:
        evaluator.reset()
        # The first one fills the cache; the others find it and compare it with the files.
        timed(name, evaluator.load_ground_truth)
    for index, image in enumerate(case.images):
        inputs = [{"file_name": image}]
        full = timed("paste", partial(detector_postprocess, case.instances(index), *case.size))
        outputs = [{"instances": full}]
        timed("write", partial(reference.process, inputs, outputs))
        timed("full masks", partial(ours["full masks"].process, inputs, outputs))
        del full, outputs
        for name, evaluator in [
            ("first", ours["first"]),
            ("cached", ours["cached"]),
            ("everything", everything),
        ]:
            timed(name, partial(_process_unpasted, evaluator, case, index))
    scores = {name: timed(name, evaluator.evaluate) for name, evaluator in ours.items()}
    scores["everything"] = timed("everything", everything.evaluate)
    results = result_folder(reference)
    gt_files = find_ground_truth(case.gt_dir)
    for kind in ("smooth", "ragged"):
        if kind == "ragged":
            write_ragged_masks(results, *case.size)
        matches = timed(
            f"files, {kind}",
            lambda: map_result_files(match_image, results, gt_files, num_workers=1),
        )
        timed(f"official, {kind}", score_result_files(results, case.gt_files))
        found = _by_name(averages(average_precision(matches)))
        _refuse_difference(f"files, {kind}", found, _by_name(official[-1]))
    smooth = {key: 100 * value for key, value in _by_name(official[-2]).items()}
    for name, results_of in scores.items():
        _refuse_difference(name, results_of["segm"], smooth)
    return times


def _by_name(official: Mapping[str, Any]) -> dict[str, float]:
    """Name the official averages, which are fractions, as Detectron2 names its own."""
    named = {"AP": official["allAp"], "AP50": official["allAp50%"]}
    for category, scores in official["classes"].items():
        named[f"AP-{category}"] = scores["ap"]
        named[f"AP50-{category}"] = scores["ap50%"]
    return named


def _refuse_difference(
    system: str, found: Mapping[str, float], official: Mapping[str, float]
) -> None:
    for key, value in official.items():
        if not np.array_equal(found[key], value, equal_nan=True):
            raise InputError(f"{system}: {key} is {found[key]}, officially {value}")


def write_ragged_masks(results: Path, height: int, width: int) -> None:
    """Overwrite the masks of result files by the worst to decode: large, with ragged outlines."""
    random = np.random.default_rng(0)
    for file in sorted(results.glob("*.png")):
        soft = np.zeros((height, width), dtype=np.float32)
        centre = int(random.integers(width)), int(random.integers(height))
        cv2.ellipse(soft, centre, (width // 6, height // 4), 0, 0, 360, 255.0, -1)
        soft = cv2.blur(soft, (height // 32, height // 32))
        band = np.flatnonzero((soft > 0) & (soft < 255))
        soft.flat[band] += random.normal(0, 60, len(band))
        cv2.imwrite(str(file), 255 * (soft > 127).astype(np.uint8))


def _process_unpasted(evaluator: CityscapesInstanceEvaluator, case: Case, index: int) -> None:
    (unpasted,) = to_image_scale([case.instances(index)], [case.size])
    evaluator.process([{"file_name": case.images[index]}], [{"instances": unpasted}])


def _report(times: dict[str, Times], what: str) -> str:
    """Lay out the medians as a table."""

    def total(*steps: str) -> Times:
        return Times(sum(times[s].wall for s in steps), sum(times[s].processor for s in steps))

    from_heads = total("paste", "write", "official, smooth")
    from_masks = total("write", "official, smooth")
    rows: list[list[Any]] = [
        ["Detectron2: paste", times["paste"], None],
        ["Detectron2: write PNG files", times["write"], None],
        ["official script", times["official, smooth"], None],
        ["Detectron2 + official, from boxes and 28x28 masks", from_heads, None],
        ["here, first time", times["first"], from_heads],
        ["here, cached ground truth", times["cached"], from_heads],
        [
            "here, cached, with COCO's scores and the error analysis",
            times["everything"],
            from_heads,
        ],
        ["Detectron2 + official, from full-frame masks", from_masks, None],
        ["here, from full-frame masks", times["full masks"], from_masks],
        [
            "here, from result files (against the script)",
            times["files, smooth"],
            times["official, smooth"],
        ],
        ["official script, large masks with ragged outlines", times["official, ragged"], None],
        [
            "here, from the same files (against the script)",
            times["files, ragged"],
            times["official, ragged"],
        ],
    ]
    table = tabulate(
        [
            [
                name,
                f"{1000 * own.wall:.1f}",
                f"{1000 * own.processor:.1f}",
                "" if other is None else f"{other.wall / own.wall:.1f}x",
                "" if other is None else f"{other.processor / own.processor:.1f}x",
            ]
            for name, own, other in rows
        ],
        ["", "ms/image, clock", "ms/image, processor", "ratio, clock", "ratio, processor"],
        "github",
        disable_numparse=True,
        colalign=("left", "right", "right", "right", "right"),
    )
    return f"{what}; one core, no worker processes; scores equal bit by bit\n\n{table}"
