"""The official Cityscapes pixel-level score, computed from label images in memory.

Gives the same bits as ``evaluateImgLists`` of ``cityscapesscripts``'
``evaluation/evalPixelLevelSemanticLabeling.py``. Its way without compiled code sorts the pixels of
every image and goes over the full frame once per instance. Here one count over the frame gives the
confusion matrix and one over the pixels of instances gives what the instance-weighted score needs
(:func:`count_image`); an image is then a matrix and a few numbers per instance.

The counts give two scores. IoU is the intersection over union of all pixels. In iIoU, for
classes with instances, a pixel of an instance weighs the more the smaller the instance is, so that
a distant person counts as much as a near one.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.images import read_instance_ids, read_label_image
from cityscapes_maskrcnn.data.labels import (
    INSTANCE_LABELS,
    LABELS,
    NUM_IDS,
    SEMANTIC_LABELS,
    Label,
)
from cityscapes_maskrcnn.utils.errors import InputError

PROTOCOL: Final = "Cityscapes pixel-level protocol (official)"
# Mean area in pixels of the instances of a class in the training set, as the official script has
# them (it knows caravan and trailer too, but evaluates neither).
MEAN_AREAS: Final[dict[str, float]] = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

LABEL_IDS_SUFFIX: Final = "_labelIds.png"
_IMAGE_LABELS: Final[tuple[Label, ...]] = tuple(label for label in LABELS if label.id >= 0)
_CATEGORIES: Final[tuple[str, ...]] = tuple(dict.fromkeys(label.category for label in LABELS))
# By label id.
_CATEGORY_OF: Final = np.array([_CATEGORIES.index(label.category) for label in _IMAGE_LABELS])
# A pixel of the instance ids holds a label id up to this, and label id * 1000 + n above it.
_LAST_LABEL_PIXEL: Final = 1000

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageCounts:
    """What the score needs to know of one image: 9 kilobytes, and 32 bytes for each instance.

    Attributes:
        confusion: shape (34, 34), dtype int64: pixels by label id of the ground truth (row) and of
            the prediction (column).
        instance_labels: shape (K,), dtype int64: official label ids of the K evaluated instances,
            in the order of their ids.
        instance_areas: shape (K,), dtype int64: their pixels.
        instance_hits: shape (K,), dtype int64: those of their pixels predicted as their class.
        category_hits: shape (K,), dtype int64: those predicted as any class of their category, the
            ignored classes (caravan, trailer) among them.
    """

    confusion: IntArray
    instance_labels: IntArray
    instance_areas: IntArray
    instance_hits: IntArray
    category_hits: IntArray


def count_image(
    label_ids: npt.NDArray[Any], instance_ids: npt.NDArray[Any], predicted_ids: npt.NDArray[Any]
) -> ImageCounts:
    """Compare one image's prediction with its ground truth.

    Args:
        label_ids: shape (height, width), an unsigned integer dtype: the ``*_labelIds.png``.
        instance_ids: shape (height, width), an unsigned integer dtype: the ``*_instanceIds.png``.
        predicted_ids: shape (height, width), an unsigned integer dtype: official label ids, not
            train ids.

    Returns:
        The counts. Which pixels are ignored is left to :func:`pixel_scores`.

    Raises:
        InputError: the shapes differ, or a pixel's value belongs to no official label.
    """
    for name, ids, advice in (
        ("*_instanceIds.png: instance ids", instance_ids, "both must have the image's size"),
        ("prediction", predicted_ids, "predictions must come at the original size"),
    ):
        if ids.shape != label_ids.shape:
            raise InputError(
                f"{name} and label ids must have one shape, not {ids.shape} and"
                f" {label_ids.shape}: {advice}"
            )
    for name, ids in (("ground truth", label_ids), ("prediction", predicted_ids)):
        if ids.max(initial=0) >= NUM_IDS:
            raise InputError(
                f"the {name} holds the label id {ids.max()}, which belongs to no official label"
            )
    pairs = np.multiply(label_ids, NUM_IDS, dtype=np.uint16)
    np.add(pairs, predicted_ids, out=pairs, casting="unsafe")
    confusion = np.bincount(pairs.ravel(), minlength=NUM_IDS**2).reshape(NUM_IDS, NUM_IDS)

    of_instances = instance_ids > _LAST_LABEL_PIXEL
    ids = instance_ids[of_instances].astype(np.int64)
    present = np.flatnonzero(np.bincount(ids))
    thing_ids = [label.id for label in INSTANCE_LABELS]
    ignored_ids = [label.id for label in _IMAGE_LABELS if label.ignoreInEval]
    evaluated = np.isin(present // 1000, thing_ids)
    unknown = present[~(evaluated | np.isin(present // 1000, ignored_ids))]
    if len(unknown):
        raise InputError(
            f"its *_instanceIds.png holds the instance id {unknown[0]}, which belongs to no"
            " official label with instances"
        )
    row_of = np.zeros(1 + present.max(initial=0), dtype=np.int64)
    row_of[present] = np.arange(len(present))
    cells = row_of[ids] * NUM_IDS + predicted_ids[of_instances]
    counts = np.bincount(cells, minlength=len(present) * NUM_IDS).reshape(-1, NUM_IDS)[evaluated]
    labels = present[evaluated] // 1000
    same_category = _CATEGORY_OF[labels][:, None] == _CATEGORY_OF
    return ImageCounts(
        confusion=confusion.astype(np.int64),
        instance_labels=labels,
        instance_areas=counts.sum(axis=1),
        instance_hits=np.take_along_axis(counts, labels[:, None], axis=1)[:, 0],
        category_hits=(counts * same_category).sum(axis=1),
    )


def instance_ids_file(label_file: str | os.PathLike[str]) -> Path:
    """Return the ``*_instanceIds.png`` beside a ``*_labelIds.png``; it need not exist."""
    path = Path(label_file)
    return path.with_name(path.name.removesuffix(LABEL_IDS_SUFFIX) + "_instanceIds.png")


def count_label_file(
    file: str | os.PathLike[str],
    predicted_ids: npt.NDArray[np.uint8],
    with_instances: bool = True,
) -> ImageCounts:
    """Compare one image's prediction with its ground truth's files.

    Args:
        file: the ``*_labelIds.png``, with its ``*_instanceIds.png`` beside it.
        predicted_ids: see :func:`count_image`.
        with_instances: False: there are no instance ids, and none are counted.

    Raises:
        InputError: a file is missing or unreadable, or the prediction does not fit.
    """
    label_ids = read_label_image(file)
    instance_ids: npt.NDArray[Any] = np.zeros_like(label_ids)
    if with_instances:
        instance_ids = read_instance_ids(instance_ids_file(file))
    try:
        return count_image(label_ids, instance_ids, predicted_ids)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def pixel_scores(images: Sequence[ImageCounts], with_instances: bool = True) -> dict[str, Any]:
    """Compute the official scores over all images.

    Args:
        images: in the order in which the official script would go over them: a sum of fractions
            has other last bits in another order.
        with_instances: False: without instance ids the instance-weighted scores are NaN.

    Returns:
        The official result, as fractions: ``classScores`` (IoU) and ``classInstScores`` (iIoU) by
        name for all 34 labels, ``categoryScores`` and ``categoryInstScores`` for all 8 categories,
        their means ``averageScoreClasses``, ``averageScoreInstClasses``,
        ``averageScoreCategories`` and ``averageScoreInstCategories``; ``confMatrix`` (34 lists of
        34 pixel counts, see :class:`ImageCounts`), ``labels`` (name -> row) and ``priors`` (share
        of all pixels in the ground truth). NaN, which leaves the means, for what is ignored, has
        no instances, or appears neither in evaluated ground truth nor predicted on it.
    """
    confusion = np.zeros((NUM_IDS, NUM_IDS), dtype=np.int64)
    for image in images:
        confusion += image.confusion
    labels = _joined([image.instance_labels for image in images])
    areas = _joined([image.instance_areas for image in images])
    hits = _joined([image.instance_hits for image in images])
    category_hits = _joined([image.category_hits for image in images])

    mean_areas = np.zeros(NUM_IDS)
    for label in INSTANCE_LABELS:
        mean_areas[label.id] = MEAN_AREAS[label.name]
    weights = mean_areas[labels] / areas
    # bincount adds in order, one instance after the other, as the official script does.
    hit = np.bincount(labels, hits * weights, NUM_IDS)
    missed = np.bincount(labels, (areas - hits) * weights, NUM_IDS)
    categories = _CATEGORY_OF[labels]
    category_hit = np.bincount(categories, category_hits * weights, len(_CATEGORIES))
    category_missed = np.bincount(categories, (areas - category_hits) * weights, len(_CATEGORIES))

    class_scores, class_instance_scores = {}, {}
    for label in _IMAGE_LABELS:
        own = [] if label.ignoreInEval else [label.id]
        class_scores[label.name] = _iou(*_pixels(confusion, own))
        class_instance_scores[label.name] = math.nan
        if with_instances and label in INSTANCE_LABELS:
            _, false_positives, _ = _pixels(confusion, own)
            class_instance_scores[label.name] = _iou(
                float(hit[label.id]), false_positives, float(missed[label.id])
            )
    category_scores, category_instance_scores = {}, {}
    for index, category in enumerate(_CATEGORIES):
        members = [label for label in _IMAGE_LABELS if label.category == category]
        own = [label.id for label in members if not label.ignoreInEval]
        category_scores[category] = _iou(*_pixels(confusion, own))
        category_instance_scores[category] = math.nan
        # human and vehicle
        if with_instances and all(label.hasInstances for label in members):
            # The official script counts predictions of ignored classes here, and only here.
            _, false_positives, _ = _pixels(confusion, [label.id for label in members])
            category_instance_scores[category] = _iou(
                float(category_hit[index]), false_positives, float(category_missed[index])
            )
    total = int(confusion.sum())
    return {
        "confMatrix": confusion.tolist(),
        "priors": {
            label.name: int(confusion[label.id].sum()) / total if total else math.nan
            for label in _IMAGE_LABELS
        },
        "labels": {label.name: label.id for label in _IMAGE_LABELS},
        "classScores": class_scores,
        "classInstScores": class_instance_scores,
        "categoryScores": category_scores,
        "categoryInstScores": category_instance_scores,
        "averageScoreClasses": _mean(class_scores.values()),
        "averageScoreInstClasses": _mean(class_instance_scores.values()),
        "averageScoreCategories": _mean(category_scores.values()),
        "averageScoreInstCategories": _mean(category_instance_scores.values()),
    }


def format_pixel_scores(scores: Mapping[str, Any]) -> str:
    """Lay out the result of :func:`pixel_scores` as a table in percent that names its protocol.

    A dash stands for NaN: most classes have no instances and so no iIoU.
    """
    classes = [label.name for label in SEMANTIC_LABELS]
    categories = [name for name in _CATEGORIES if name in {x.category for x in SEMANTIC_LABELS}]
    lines = [f"{PROTOCOL}, percent"]
    for title, names, kind, average in [
        ("class", classes, "class", "Classes"),
        ("category", categories, "category", "Categories"),
    ]:
        lines.append(f"{title:<16}{'IoU':>8}{'iIoU':>8}")
        rows = [(n, scores[f"{kind}Scores"][n], scores[f"{kind}InstScores"][n]) for n in names]
        means = scores[f"averageScore{average}"], scores[f"averageScoreInst{average}"]
        for name, *values in [*rows, ("average", *means)]:
            lines.append(f"{name:<16}" + "".join(map(_percent, values)))
    return "\n".join(lines)


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


def _pixels(confusion: IntArray, own: Sequence[int]) -> tuple[int, int, int]:
    """Count true positives, false positives and false negatives of some label ids as one class.

    What is predicted on ignored ground truth is no false positive.
    """
    others = [x.id for x in _IMAGE_LABELS if not x.ignoreInEval and x.id not in own]
    true_positives = int(confusion[np.ix_(own, own)].sum())
    false_positives = int(confusion[np.ix_(others, own)].sum())
    return true_positives, false_positives, int(confusion[own].sum()) - true_positives


def _iou(true_positives: float, false_positives: int, false_negatives: float) -> float:
    union = true_positives + false_positives + false_negatives
    return true_positives / union if union else math.nan


def _mean(scores: Iterable[float]) -> float:
    valid = [score for score in scores if not math.isnan(score)]
    # Not sum(), which rounds in another way from Python 3.12: other last bits than the official.
    return reduce(operator.add, valid) / len(valid) if valid else math.nan


def _percent(score: float) -> str:
    return f"{'-':>8}" if math.isnan(score) else f"{100 * score:>8.2f}"
