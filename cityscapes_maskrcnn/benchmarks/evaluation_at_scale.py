"""Scoring many images in worker processes: how long it takes and how much memory it holds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tabulate import tabulate

from cityscapes_maskrcnn.benchmarks.evaluation import (
    DATASET,
    Case,
    cache_in,
    make_case,
    register,
)
from cityscapes_maskrcnn.benchmarks.new_process import in_new_process
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.instances import leave_masks_unpasted, to_image_scale
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.memory import peak_resident_bytes

_SCENES = 8
_MEGABYTE = 2**20


@dataclass(frozen=True)
class Run:
    """What one process measured.

    Attributes:
        load: seconds until the ground truth was there.
        model: seconds that the model took for all images; 0 without one.
        process: seconds until all images were handed over, the model's included; but for a few,
            they are matched then.
        evaluate: seconds for the last of them, the scores of all protocols and the error analysis.
        growth: bytes, by how much the largest resident memory exceeded that before the evaluator,
            when the model had predicted once.
        half: the same, when half of the images were done.
    """

    load: float
    model: float
    process: float
    evaluate: float
    growth: int
    half: int


def benchmark_scale(
    num_images: int,
    num_predictions: int,
    height: int,
    width: int,
    workers: Sequence[int],
    config_file: Path,
    model_side: int = 0,
) -> str:
    """Score the same images once for every number of workers, each in a process of its own.

    A few generated scenes are used again under other names. With a model, a Mask R-CNN with
    random weights predicts before each image is scored, on one thread; what is scored are the
    same prepared predictions as without.

    Args:
        num_images: scored.
        num_predictions: per image.
        height: of the images in pixels.
        width: of the images in pixels.
        workers: numbers of worker processes to try; 0 is the calling process.
        config_file: of the model.
        model_side: height in pixels of the image that the model gets, half of its width; 0: no
            model runs.

    Returns:
        A table.

    Raises:
        InputError: a number is out of range.
    """
    if min(num_images, num_predictions) < 1 or min(*workers, model_side) < 0:
        raise InputError(
            "--images and --predictions must be 1 or more, --workers and --model-side 0 or more"
        )
    with tempfile.TemporaryDirectory(prefix="benchmark_evaluation_") as folder:
        case = make_case(
            Path(folder),
            num_images=min(_SCENES, num_images),
            num_predictions=num_predictions,
            height=height,
            width=width,
        )
        case = _repeat(case, num_images)
        register(case.images, case.gt_dir)
        rows = []
        with cache_in(Path(folder) / "cache"):
            start = time.perf_counter()
            CityscapesInstanceEvaluator(DATASET).load_ground_truth()
            first = time.perf_counter() - start
            for number in workers:
                # The process inherits the folder of the cache.
                run = in_new_process(
                    _measure,
                    case,
                    num_workers=number,
                    folder=Path(folder),
                    config_file=config_file,
                    model_side=model_side,
                )
                rows.append([number, *_cells(run, num_images)])
    head = ["workers", "load, s", "model, s", "model and match, s", "images/s", "score, s"]
    head += ["memory, half", "memory, all"]
    table = tabulate(rows, head, "github")
    return (
        f"{num_images} images of {height}x{width}, {num_predictions} predictions each; memory in MB"
        " above that of the process before, with its model\n"
        "First time, decoding the ground truth on all cores:"
        f" {first:.2f} s\n\n{table}"
    )


def _cells(run: Run, num_images: int) -> list[str]:
    memory = [f"{size / _MEGABYTE:.0f}" for size in (run.half, run.growth)]
    seconds = [f"{run.load:.2f}", f"{run.model:.1f}", f"{run.process:.1f}"]
    seconds.append(f"{num_images / run.process:.1f}")
    return [*seconds, f"{run.evaluate:.1f}", *memory]


def _repeat(case: Case, num_images: int) -> Case:
    """Give the scenes more names."""
    images, gt_files = [], []
    for index in range(num_images):
        source = case.gt_files[index % len(case.images)]
        city = source.parent.name
        name = source.parent / f"{city}_{100000 + index}_000019_gtFine_instanceIds.png"
        name.hardlink_to(source)
        gt_files.append(name)
        images.append(f"/none/{city}/{city}_{100000 + index}_000019_leftImg8bit.png")
    raw = [case.raw[index % len(case.raw)] for index in range(num_images)]
    return replace(case, images=images, gt_files=gt_files, raw=raw)


def _build_model(config_file: Path, side: int) -> Callable[[], None]:
    """Make what predicts one image."""
    if not side:
        return lambda: None
    cfg = build_config(str(config_file), ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model = leave_masks_unpasted(Trainer.build_model(cfg).eval())
    image = torch.randint(0, 256, (3, side, 2 * side), dtype=torch.uint8)

    def predict() -> None:
        with torch.no_grad():
            model([{"image": image}])

    return predict


def _measure(
    case: Case, *, num_workers: int, folder: Path, config_file: Path, model_side: int
) -> Run:
    """Score everything once."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    predict = _build_model(config_file, model_side)
    predict()
    register(case.images, case.gt_dir)
    evaluator = CityscapesInstanceEvaluator(DATASET, folder / "inference", num_workers)
    # One image, so that what is loaded on first use is not taken for growth.
    to_image_scale([case.instances(0)], [case.size])
    before = peak_resident_bytes()
    start = time.perf_counter()
    evaluator.reset()
    evaluator.load_ground_truth()
    loaded = time.perf_counter()
    half, model = before, 0.0
    for index, image in enumerate(case.images):
        began = time.perf_counter()
        predict()
        model += time.perf_counter() - began
        (unpasted,) = to_image_scale([case.instances(index)], [case.size])
        evaluator.process([{"file_name": image}], [{"instances": unpasted}])
        if index == len(case.images) // 2:
            half = peak_resident_bytes()
    matched = time.perf_counter()
    evaluator.evaluate()
    end = time.perf_counter()
    return Run(
        load=loaded - start,
        model=model,
        process=matched - loaded,
        evaluate=end - matched,
        growth=peak_resident_bytes() - before,
        half=half - before,
    )
