"""The detections of a model in one frame of a stream, for any runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.evaluation.masks import RunMask

#: Pixels of shape (H, W, 3), dtype uint8, in the order BGR as OpenCV reads them.
BgrImage: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FrameDetections:
    """The N detections of a frame.

    Attributes:
        classes: shape (N,), dtype int64: index among the model's classes.
        scores: shape (N,), dtype float32.
        boxes: shape (N, 4), dtype float32: (x0, y0, x1, y1) in pixels of the frame.
        masks: N masks of the frame's size; None: of a model without masks.
        track_ids: shape (N,), dtype int64: equal for the same object in other frames, from 1; 0
            where an object has no track yet; None: not tracked.
    """

    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    masks: Sequence[RunMask] | None
    track_ids: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, chosen: npt.NDArray[np.bool_]) -> FrameDetections:
        """Keep some detections, in their order.

        Args:
            chosen: shape (N,), bool.
        """
        masks, ids = self.masks, self.track_ids
        return replace(
            self,
            classes=self.classes[chosen],
            scores=self.scores[chosen],
            boxes=self.boxes[chosen],
            masks=None if masks is None else [masks[index] for index in np.flatnonzero(chosen)],
            track_ids=None if ids is None else ids[chosen],
        )


class FrameModel(Protocol):
    """A model as a stream uses it, every method in a thread of its own.

    Attributes:
        class_names: by class of the model.
        class_colors: by class of the model, RGB from 0 to 255.
        batch_size: how many frames it predicts together.
    """

    class_names: Sequence[str]
    class_colors: Sequence[Sequence[int]]
    batch_size: int

    def prepare(self, image: BgrImage, name: str) -> Any:
        """Bring an image into the form that :meth:`predict` takes.

        Raises:
            InputError: it cannot be predicted, for its proportions; ``name`` is in the message.
        """

    def predict(self, prepared: Iterable[Any]) -> Iterator[Any]:
        """Predict images one after the other, outputs in their order.

        Holds no more than ``batch_size`` of them at a time.
        """

    def detections(self, output: Any, height: int, width: int) -> FrameDetections:
        """Get the detections from what :meth:`predict` gave for an image of this size.

        Raises:
            InputError: boxes or masks are not finite.
        """
