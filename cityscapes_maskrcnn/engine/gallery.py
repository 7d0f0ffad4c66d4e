"""A gallery of a model's most informative images, each with ground truth and prediction.

A folder with ``index.md``, two pictures of the same size for each example, ground truth and
prediction, and ``gallery.json`` for programs::

    {"model": str, "dataset": str, "images": int, "examples": [{"reason": str, "image": str,
     "caption": str, "ap": float or null, "gt": "NAME.png", "pred": "NAME.png", "counts": {...}}]}

Reasons are :data:`.telling_examples.REASONS`. Examples of one image share its pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from cityscapes_maskrcnn.data.images import check_size, read_image
from cityscapes_maskrcnn.data.provenance import TRAINED, TUNED
from cityscapes_maskrcnn.data.registration import is_generated_dataset, register_datasets_of
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.engine.seen_images import refuse_seen_images
from cityscapes_maskrcnn.evaluation.evaluator import (
    CityscapesInstanceEvaluator,
    dataset_categories,
    ground_truth_files,
)
from cityscapes_maskrcnn.evaluation.instances import compact_instances
from cityscapes_maskrcnn.evaluation.result_files import map_result_files
from cityscapes_maskrcnn.evaluation.telling_examples import (
    GALLERY_FILE,
    OUTCOMES,
    REASONS,
    ExaminedImage,
    choose_examples,
    examine_image,
)
from cityscapes_maskrcnn.modeling.model_kind import model_kind
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_json, write_text
from cityscapes_maskrcnn.utils.object_limits import MIN_REGION_PIXELS
from cityscapes_maskrcnn.utils.text import counted, printable
from cityscapes_maskrcnn.utils.tool import check_score_thresh
from cityscapes_maskrcnn.visualization.drawing import RgbImage
from cityscapes_maskrcnn.visualization.image_files import write_picture
from cityscapes_maskrcnn.visualization.outcome_drawing import draw_outcomes, outcome_object
from cityscapes_maskrcnn.visualization.outcome_legend import GROUND_TRUTH_EDGES, PREDICTION_EDGES
from cityscapes_maskrcnn.visualization.style import GENERATED_SCENE

PAGE_FILE: Final = "index.md"


class _Image(NamedTuple):
    """An image of a dataset, by its name, its record there, and what was found in it."""

    dataset: str
    name: str
    record: dict[str, Any]
    examined: ExaminedImage


def write_gallery(
    cfg: CfgNode,
    folder: Path,
    score_thresh: float,
    results: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Score every image of ``DATASETS.TEST`` once, choose examples and draw them.

    Args:
        cfg: the model's config, not changed. With ``results``, no model is built from it.
        folder: where to write the gallery; an earlier gallery there is replaced.
        score_thresh: lowest score of a detection, between 0 and 1.
        results: official result files to show, a folder or zip file; None: predict with
            ``MODEL.WEIGHTS``.

    Returns:
        The captions of the examples.

    Raises:
        InputError: there is no dataset, or one without labels; the model has seen its images; or
            as :class:`.Predictor` and :func:`.map_result_files`.
    """
    check_score_thresh(score_thresh)
    if not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST is empty: name a dataset with --dataset")
    register_datasets_of(cfg)
    if results is None:
        model = f"{model_kind(cfg)}, {cfg.MODEL.WEIGHTS}"
        images = list(_predicted_images(cfg, score_thresh))
    else:
        model = f"results in {results}"
        images = list(_images_of_results(cfg, score_thresh, results))
    _clear(folder)
    examples: list[dict[str, Any]] = []
    pictures: dict[int, dict[str, str]] = {}
    for example in choose_examples([image.examined for image in images]):
        image = images[example.index]
        if example.index not in pictures:
            gt_file, pred_file = _picture_files(example.reason)
            gt, pred = _draw(image, score_thresh)
            write_picture(folder / gt_file, gt)
            write_picture(folder / pred_file, pred)
            pictures[example.index] = {"gt": gt_file, "pred": pred_file}
        examples.append(
            {
                "reason": example.reason,
                "image": printable(image.name),
                "caption": example.caption,
                "ap": image.examined.ap,
                **pictures[example.index],
                "counts": image.examined.counts(),
            }
        )
    content = {
        "model": printable(model),
        "dataset": ", ".join(cfg.DATASETS.TEST),
        "images": len(images),
        "examples": examples,
    }
    write_text(folder / PAGE_FILE, _page(content, score_thresh))
    write_json(folder / GALLERY_FILE, content)
    return [example["caption"] for example in examples]


def _predicted_images(cfg: CfgNode, score_thresh: float) -> Iterator[_Image]:
    """Predict and examine one image after the other."""
    gts = {
        name: CityscapesInstanceEvaluator(name).load_ground_truth() for name in cfg.DATASETS.TEST
    }
    # What is below the threshold of the gallery counts for the AP.
    predictor = Predictor(cfg, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
    refuse_seen_images(cfg, predictor.history, roles=(TRAINED, TUNED))
    for dataset, by_name in gts.items():
        categories = dataset_categories(dataset)
        records = DatasetCatalog.get(dataset)
        outputs = predictor((record["file_name"] for record in records), paste_masks=False)
        progress = tqdm(by_name.items(), desc="Predicting", unit="image")
        for (name, gt), record, output in zip(progress, records, outputs, strict=True):
            try:
                compact = compact_instances(output, categories)
                predictions = compact.predictions(gt.height, gt.width)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            examined = examine_image(gt, predictions, score_thresh, categories)
            yield _Image(dataset, name, record, examined)


def _images_of_results(
    cfg: CfgNode, score_thresh: float, results: str | os.PathLike[str]
) -> Iterator[_Image]:
    """Examine the images of official result files."""
    for dataset in cfg.DATASETS.TEST:
        categories = dataset_categories(dataset)
        gt_files = ground_truth_files(dataset)
        examined = map_result_files(
            partial(examine_image, score_thresh=score_thresh, categories=categories),
            results,
            gt_files,
            categories=categories,
        )
        for name, record, image in zip(
            gt_files, DatasetCatalog.get(dataset), examined, strict=True
        ):
            yield _Image(dataset, name, record, image)


def _picture_files(reason: str) -> tuple[str, str]:
    stem = reason.replace(":", "_")
    return f"{stem}_ground_truth.png", f"{stem}_prediction.png"


def _clear(folder: Path) -> None:
    """Remove an earlier gallery, whose examples may have been others."""
    pictures = [file for reason in REASONS for file in _picture_files(reason)]
    for file in (GALLERY_FILE, PAGE_FILE, *pictures):
        (folder / file).unlink(missing_ok=True)


def _draw(image: _Image, score_thresh: float) -> tuple[RgbImage, RgbImage]:
    """Draw ground truth and prediction of an image, in pictures of the same size."""
    pixels = read_image(image.record["file_name"], "RGB")
    check_size(image.record["file_name"], pixels, image.record)
    examined, gt = image.examined, image.examined.gt
    outcomes = dict.fromkeys(range(len(gt.ids)), "not counted")
    for index, found in zip(examined.objects.tolist(), examined.found.tolist(), strict=True):
        outcomes[index] = "found" if found else "missed"
    objects = [
        outcome_object(
            gt.instance_mask(index),
            category=int(gt.categories[index]),
            outcome=outcome,
            edges=GROUND_TRUTH_EDGES,
            is_group=bool(gt.is_group[index]),
        )
        for index, outcome in outcomes.items()
        if gt.categories[index] in dataset_categories(image.dataset)
    ]
    detections = [
        outcome_object(
            detection.mask,
            category=detection.category,
            outcome=OUTCOMES[outcome],
            edges=PREDICTION_EDGES,
            score=detection.confidence,
        )
        for detection, outcome in zip(examined.detections, examined.outcomes.tolist(), strict=True)
    ]
    warning = GENERATED_SCENE * is_generated_dataset(image.dataset)
    counts = examined.counts()
    gt_title = f"Ground truth: {counts['found']} of {counted(counts['objects'], 'object')} found"
    if not counts["objects"]:
        gt_title = "Ground truth: no object to find"
    pred_title = f"Prediction: {len(detections) or 'nothing'} with score ≥ {score_thresh:g}"
    return (
        draw_outcomes(pixels, objects, GROUND_TRUTH_EDGES, gt_title, warning),
        draw_outcomes(pixels, detections, PREDICTION_EDGES, pred_title, warning),
    )


def _page(content: dict[str, Any], score_thresh: float) -> str:
    """Write the gallery in Markdown, each image once."""
    lines = [
        "# Gallery",
        "",
        f"{content['model']}; {content['images']} images of {content['dataset']}. Image AP is the "
        "official AP of a single image.",
        f"Detections with a score of {score_thresh:g} or more are shown. An object is found if a "
        "detection of its class has an IoU above 0.5 with it. Groups (hatched: several objects in "
        "one outline), objects below "
        f"{MIN_REGION_PIXELS} pixels, and detections on these or on void are not counted.",
    ]
    by_image: dict[str, list[dict[str, Any]]] = {}
    for example in content["examples"]:
        by_image.setdefault(example["gt"], []).append(example)
    for examples in by_image.values():
        gt, pred, image = (examples[0][key] for key in ("gt", "pred", "image"))
        lines += ["", f"## `{image}`", ""]
        lines += [f"- {example['caption']}" for example in examples]
        lines += ["", f"![Ground truth of {image}]({gt})"]
        lines += [f"![Prediction in {image}]({pred})"]
    return "\n".join(lines) + "\n"
