"""Choose a model's most informative images of a dataset, by AP, errors, sizes and classes.

Words are those of :mod:`.error_analysis`. The AP of an image is the official one on that image
alone: a class counts if the image has an object of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.error_analysis import IOU_THRESHOLD, analyse_image
from cityscapes_maskrcnn.evaluation.instance_ap import (
    ALL_CATEGORIES,
    FALSE,
    NOT_COUNTED,
    TRUE,
    GroundTruth,
    IntArray,
    Prediction,
    average_precision,
    averages,
    judge_predictions,
    match_image,
)
from cityscapes_maskrcnn.utils.error_summary import CAUSES
from cityscapes_maskrcnn.utils.object_limits import SIZE_LIMITS
from cityscapes_maskrcnn.utils.text import counted

#: In the folder of a gallery of examples: describes them for programs.
GALLERY_FILE: Final = "gallery.json"
#: Outcomes of a detection: found an object, does not count, or the cause of a false positive.
OUTCOMES: Final = ("found", "not counted", *CAUSES)
_FIRST_CAUSE: Final = 2
_PLURALS: Final = dict(
    zip(CAUSES, ("duplicates", "wrong classes", "poor masks", "background"), strict=True)
)
SMALL_SIDE: Final = round(SIZE_LIMITS["medium"] ** 0.5)


@dataclass(frozen=True)
class ExaminedImage:
    """One image's ground truth and detections, and what became of them.

    Attributes:
        gt: of the image.
        ap: of the image, a fraction; NaN if it has no object.
        objects: shape (G,), dtype int64: indices in ``gt`` of the objects of the scored classes.
        found: shape (G,), dtype bool.
        detections: D predictions with a mask and at least the threshold's score.
        outcomes: shape (D,), dtype int64: indices into :data:`OUTCOMES`.
    """

    gt: GroundTruth
    ap: float
    objects: IntArray
    found: npt.NDArray[np.bool_]
    detections: tuple[Prediction, ...]
    outcomes: IntArray

    @property
    def is_small(self) -> npt.NDArray[np.bool_]:
        """Which of the G objects are small, as COCO has it: below 32 x 32 pixels."""
        return self.gt.areas[self.objects] < SIZE_LIMITS["medium"]

    def counts(self) -> dict[str, int]:
        """Count objects and errors, by name."""
        by_outcome = np.bincount(self.outcomes, minlength=len(OUTCOMES)).tolist()
        return {
            "objects": len(self.objects),
            "found": int(self.found.sum()),
            "missed": int((~self.found).sum()),
            "small": int(self.is_small.sum()),
            "small_found": int((self.is_small & self.found).sum()),
            "detections": len(self.detections),
            "false_positives": sum(by_outcome[_FIRST_CAUSE:]),
            **dict(zip(CAUSES, by_outcome[_FIRST_CAUSE:], strict=True)),
        }

    def summary(self) -> str:
        """Say in words what was found, missed and detected where nothing is."""
        counts = self.counts()
        parts = [f"{counts['found']} of {counted(counts['objects'], 'object')} found"]
        if not counts["objects"]:
            parts = ["no object to find"]
        if not counts["detections"]:
            return f"{parts[0]}, nothing detected"
        causes = ", ".join(
            f"{counts[cause]} {cause if counts[cause] == 1 else _PLURALS[cause]}"
            for cause in CAUSES
            if counts[cause]
        )
        parts.append(counted(counts["false_positives"], "false positive"))
        return ", ".join(parts) + (f" ({causes})" if causes else "")


@dataclass(frozen=True)
class Example:
    """An image that was chosen.

    Attributes:
        reason: ``best``, ``median``, ``worst``, ``false_positives``, ``misses``, ``small`` or
            ``class:`` and the name of a class.
        index: of the image.
        caption: the reason and the image's errors in words.
    """

    reason: str
    index: int
    caption: str


#: All that :attr:`Example.reason` may be, in the order of a gallery.
REASONS: Final = (
    "best",
    "median",
    "worst",
    "false_positives",
    "misses",
    "small",
    *(f"class:{name}" for name in THING_CLASSES),
)


def examine_image(
    gt: GroundTruth,
    predictions: Sequence[Prediction],
    score_thresh: float,
    categories: Collection[int] = ALL_CATEGORIES,
) -> ExaminedImage:
    """Score one image on its own, and sort out its detections.

    Args:
        gt: of the image.
        predictions: of the image, those below the threshold too, which count for the AP.
        score_thresh: lowest score of a detection.
        categories: the scored classes: contiguous class ids, 0 to 7.

    Raises:
        InputError: see :func:`.match_image` and :func:`.analyse_image`.
    """
    scored = sorted(categories)
    kept = [each for each in predictions if each.category in scored and each.mask.area()]
    matches = match_image(gt, kept)
    errors = analyse_image(gt, kept, matches, score_thresh)
    verdicts = judge_predictions(matches, IOU_THRESHOLD)
    outcomes = np.select(
        [verdicts == TRUE, verdicts == NOT_COUNTED],
        [OUTCOMES.index("found"), OUTCOMES.index("not counted")],
    )
    is_detection = matches.confidences >= score_thresh
    outcomes[is_detection & (verdicts == FALSE)] = errors.causes + _FIRST_CAUSE
    objects = np.flatnonzero(gt.is_object)
    is_scored = np.isin(gt.categories[objects], scored)
    return ExaminedImage(
        gt=gt,
        ap=averages(average_precision([matches]), scored)["allAp"],
        objects=objects[is_scored],
        found=errors.found[is_scored],
        detections=tuple(kept[index] for index in np.flatnonzero(is_detection).tolist()),
        outcomes=outcomes[is_detection].astype(np.int64),
    )


def choose_examples(images: Sequence[ExaminedImage]) -> list[Example]:
    """Choose the images that tell most, always the same ones.

    Best, median and worst by AP, of equal ones that with the most objects; the most false
    positives; the most misses; the most small objects; and for each class the most objects of it,
    among images that were not chosen before if these have any. Of images that are equal in all this
    the first is taken; one image may be chosen for several reasons.

    Args:
        images: of the dataset, in its order, at least one.

    Returns:
        The examples in the order of :data:`REASONS`, without those for which there is nothing: no
        errors, no small objects, no objects of a class. Without any object, the first image stands
        for all as the median one.
    """
    tables = [image.counts() for image in images]
    examples = _by_ap(images, np.array([table["objects"] for table in tables]))
    most = {
        "false_positives": "Most false positives",
        "misses": "Most misses",
        "small": f"Most small objects (below {SMALL_SIDE} x {SMALL_SIDE} px)",
    }
    for reason, words in most.items():
        key = {"misses": "missed"}.get(reason, reason)
        numbers = np.array([table[key] for table in tables])
        index = int(numbers.argmax())
        if numbers[index]:
            found = f", {tables[index]['small_found']} of them found" * (reason == "small")
            caption = f"{words}: {numbers[index]}{found}; {images[index].summary()}"
            examples.append(Example(reason, index, caption))

    categories = [image.gt.categories[image.objects] for image in images]
    by_class = np.array([np.bincount(each, minlength=len(THING_CLASSES)) for each in categories])
    is_new = np.ones(len(images), dtype=bool)
    is_new[[example.index for example in examples]] = False
    for category in np.flatnonzero(by_class.any(axis=0)).tolist():
        numbers = by_class[:, category]
        index = int((numbers * is_new if (numbers * is_new).any() else numbers).argmax())
        is_new[index] = False
        found_ones = images[index].found[categories[index] == category]
        name = THING_CLASSES[category]
        caption = f"{name.capitalize()}: {found_ones.sum()} of {len(found_ones)} found; in all "
        caption += images[index].summary()
        examples.append(Example(f"class:{name}", index, caption))
    return examples


def _by_ap(images: Sequence[ExaminedImage], num_objects: IntArray) -> list[Example]:
    """Choose the best, the median and the worst image by AP."""
    ap = np.array([image.ap for image in images])
    ranked = np.flatnonzero(~np.isnan(ap))
    if not len(ranked):
        caption = f"No object in {counted(len(images), 'image')}, so no AP; this is the first: "
        return [Example("median", 0, caption + images[0].summary())]
    ascending = ranked[np.lexsort((-num_objects[ranked], ap[ranked]))]
    descending = ranked[np.lexsort((-num_objects[ranked], -ap[ranked]))]
    chosen = {
        "best": int(descending[0]),
        "median": int(ascending[(len(ranked) - 1) // 2]),
        "worst": int(ascending[0]),
    }
    examples = []
    for reason, index in chosen.items():
        equal = int((ap == ap[index]).sum())
        shared = f", as in {counted(equal - 1, 'other')}" if equal > 1 else ""
        caption = (
            f"{reason.capitalize()} image AP of {counted(len(ranked), 'image')}: "
            f"{100 * ap[index]:.3g} %{shared}; {images[index].summary()}"
        )
        examples.append(Example(reason, index, caption))
    return examples
