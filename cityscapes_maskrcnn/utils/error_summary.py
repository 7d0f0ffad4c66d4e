"""What an evaluation counts of a model's errors, for tables and pictures.

The words are those of :mod:`.evaluation.error_analysis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

#: Of a false positive.
CAUSES: Final = ("duplicate", "wrong class", "poor mask", "background")

_FloatArray = npt.NDArray[np.float64]
_IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PrecisionRecall:
    """The precision-recall curve of a class at one IoU threshold.

    Attributes:
        confidences: shape (N,), ascending: one point for every distinct score, at which predictions
            with at least this score are counted. The last is infinite: no prediction, recall 0 and,
            by convention, precision 1.
        recall: shape (N,), descending, 0 to 1.
        precision: shape (N,), 0 to 1.
    """

    confidences: _FloatArray
    recall: _FloatArray
    precision: _FloatArray

    def area(self) -> float:
        """Integrate with the official step rule: equals the official AP to the last bit."""
        padded = np.concatenate([self.recall[:1], self.recall, [0.0]])
        return float(np.dot(self.precision, np.convolve(padded, [-0.5, 0, 0.5], "valid")))


@dataclass(frozen=True)
class ErrorSummary:
    """The errors of all images.

    Attributes:
        score_thresh: lowest score of a detection.
        curves: one per class, at IoU 0.5; None for a class without objects.
        confusion: shape (9, 9), dtype int64, rows ground truth, columns prediction, 0 to 7 the
            classes. An object counts once, in the column of the class that it is taken for (its own
            if it is found), in column 8 if nothing matches it: the diagonal is what is found, the
            rest of a row is missed. Row 8 has the false positives that match no ground truth: poor
            masks and background.
        false_positives: shape (8, 4), dtype int64: by predicted class and :data:`CAUSES`.
        by_size: shape (8, 3, 2), dtype int64: by class and :data:`.object_limits.SIZE_LIMITS`, how
            many objects there are and how many of them are missed.
        by_occlusion: the same by :data:`.object_limits.OCCLUSION_LIMITS`.
    """

    score_thresh: float
    curves: tuple[PrecisionRecall | None, ...]
    confusion: _IntArray
    false_positives: _IntArray
    by_size: _IntArray
    by_occlusion: _IntArray
