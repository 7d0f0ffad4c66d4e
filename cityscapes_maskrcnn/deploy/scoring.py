"""Predict image files with an exported model, in the form that the official protocol scores.

Without torch and Detectron2, as the protocol itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cityscapes_maskrcnn.data.images import read_instance_ids
from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS
from cityscapes_maskrcnn.data.provenance import find_seen, read_history
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX
from cityscapes_maskrcnn.deploy.runtime import Detections, OnnxPredictor
from cityscapes_maskrcnn.evaluation.instance_ap import (
    GroundTruth,
    Prediction,
    average_precision,
    averages,
    ground_truth,
    match_image,
)
from cityscapes_maskrcnn.evaluation.pasting import paste_masks
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.parallel import map_in_parallel

Result = TypeVar("Result")


def map_exported(
    function: Callable[[GroundTruth, list[Prediction]], Result],
    predictor: OnnxPredictor,
    images: Iterable[tuple[Path, Path]],
) -> list[Result]:
    """Compare an exported model's predictions with the ground truth of some images.

    Shows a progress bar on stderr.

    Args:
        function: what to do with an image's ground truth and predictions.
        predictor: of the exported model.
        images: of each the file and that of its instance ids.

    Returns:
        The results of ``function``, one per image.

    Raises:
        InputError: a file is missing or damaged, an image and its ground truth differ in size, or a
            class of the model is none of the 8.
    """
    categories = exported_categories(predictor)

    def compare(files: tuple[Path, Path]) -> Result:
        image_file, gt_file = files
        gt = ground_truth(read_instance_ids(gt_file))
        prepared = predictor.prepare(image_file)
        if (prepared.height, prepared.width) != (gt.height, gt.width):
            raise InputError(
                f"{image_file} is {prepared.width}x{prepared.height} pixels, its ground truth"
                f" {gt.width}x{gt.height}"
            )
        found = predictor(prepared, paste_masks=False)
        return function(gt, _predictions(found, categories, gt.height, gt.width))

    return map_in_parallel(compare, list(images), "Predicting images", num_workers=1)


def exported_categories(predictor: OnnxPredictor) -> list[int]:
    """Find by class of a model its contiguous id, 0 to 7, among the 8 official classes.

    Raises:
        InputError: a class is none of them.
    """
    classes = predictor.card["classes"]
    for each in classes:
        if each["label_id"] not in ID_TO_CONTIGUOUS:
            raise InputError(f"the model's class {each['name']} is none of the 8 official ones")
    return [ID_TO_CONTIGUOUS[each["label_id"]] for each in classes]


def exported_scores(
    predictor: OnnxPredictor, images: Iterable[tuple[Path, Path]]
) -> dict[str, float]:
    """Score an exported model by the official protocol.

    Args:
        predictor: of the exported model.
        images: of each the file and that of its instance ids.

    Returns:
        ``AP`` and ``AP50`` in percent; NaN if there is no object of the model's classes.

    Raises:
        InputError: see :func:`map_exported`.
    """
    ap = average_precision(map_exported(match_image, predictor, images))
    # Sorted, as the evaluator of checkpoints has them: another order has other last bits.
    official = averages(ap, sorted(exported_categories(predictor)))
    return {"AP": 100 * official["allAp"], "AP50": 100 * official["allAp50%"]}


def refuse_seen_by_exported(
    predictor: OnnxPredictor,
    model: str,
    *,
    dataset: str,
    images: Iterable[Path],
    flag: str,
) -> None:
    """Refuse to score an exported model on images that it was trained, tuned or calibrated on.

    For checkpoints there is :func:`.seen_images.refuse_seen_images`, which needs Detectron2.

    Args:
        predictor: of the exported model, whose card lists the images.
        model: name of its file, for messages.
        dataset: name of the images.
        images: the files.
        flag: that named them, for messages.

    Raises:
        InputError: it has seen some, or its list is damaged.
    """
    history = read_history(predictor.card, model)
    seen = find_seen(history, dataset, [{"file_name": str(image)} for image in images])
    if seen:
        raise InputError(
            f"the model has seen images that it is to be scored on: {'; '.join(map(str, seen))}."
            f" Name others by {flag}"
        )


def _predictions(
    found: Detections, categories: list[int], height: int, width: int
) -> list[Prediction]:
    masks = paste_masks(found.masks, found.boxes, height, width)
    return [
        Prediction(mask, categories[category], score, tuple(box))
        for mask, category, score, box in zip(
            masks, found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]


def image_of(gt_file: Path, name: str, image_dir: Path | None) -> Path:
    """Find the image of a file of ground truth in the official tree.

    Args:
        gt_file: ``.../gtFine/SPLIT/CITY/NAME_gtFine_instanceIds.png``.
        name: of the image.
        image_dir: with a folder a city; None: ``leftImg8bit/SPLIT`` beside ``gtFine``.

    Raises:
        InputError: there is no such image.
    """
    split = gt_file.parents[1]
    folder = image_dir or split.parents[1] / "leftImg8bit" / split.name
    path = folder / gt_file.parent.name / f"{name}{IMAGE_SUFFIX}"
    if not path.is_file():
        raise InputError(f"{path}: no such image, for {gt_file}; name its folder with --image-dir")
    return path
