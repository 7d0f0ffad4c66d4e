"""Number objects consistently from frame to frame: ByteTrack, from the package ``trackers``.

Source: Zhang et al., ByteTrack: Multi-Object Tracking by Associating Every Detection Box, ECCV
2022.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cityscapes_maskrcnn.deploy.frame_detections import FrameDetections
from cityscapes_maskrcnn.utils.errors import InputError


class ObjectTracker:
    """Tracks the objects of every class by their boxes, the classes apart from each other.

    A rider's box overlaps with the bicycle's: together they would exchange their numbers. An object
    has its number from its second frame on, and keeps it while it is hidden for up to a second.

    Args:
        rate: frames a second.
        score_thresh: lowest score of the detections. Those in the lowest fifth of the scores above
            it continue a track, but begin none.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, rate: float, score_thresh: float) -> None:
        try:
            import supervision
            import trackers
        except ImportError as error:
            # trackers asks for opencv-python, which would overwrite the OpenCV that is here.
            raise InputError(
                f"--track: {error.name} is not installed: pip install -e '.[track]' && pip"
                " install --no-deps 'trackers>=2.6'"
            ) from error
        self._detections_class = supervision.Detections
        self._tracker_class = trackers.ByteTrackTracker
        self._rate = rate
        self._activation = score_thresh + 0.2 * (1 - score_thresh)
        self._trackers: dict[int, Any] = {}
        # By category and the tracker's own number; of living tracks only.
        self._numbers: dict[tuple[int, int], int] = {}
        self._num_tracks = 0

    def update(self, detections: FrameDetections) -> FrameDetections:
        """Number the detections of the next frame.

        Returns:
            The same detections with ``track_ids``.
        """
        track_ids = np.zeros(len(detections), dtype=np.int64)
        for category in sorted({*self._trackers, *detections.classes.tolist()}):
            indices = np.flatnonzero(detections.classes == category)
            found = self._detections_class(
                xyxy=detections.boxes[indices],
                confidence=detections.scores[indices],
                data={"index": indices},
            )
            tracked = self._tracker_of(category).update(found)
            # In an order of its own; -1: no track yet.
            for index, number in zip(
                tracked.data.get("index", ()), tracked.tracker_id, strict=True
            ):
                if number >= 0:
                    track_ids[index] = self._number_of((category, int(number)))
        self._forget_ended()
        return replace(detections, track_ids=track_ids)

    def _number_of(self, key: tuple[int, int]) -> int:
        if key not in self._numbers:
            self._num_tracks += 1
            self._numbers[key] = self._num_tracks
        return self._numbers[key]

    def _forget_ended(self) -> None:
        """Drop the numbers of tracks that ended: a stream may last for days."""
        living = {
            (category, track.tracker_id)
            for category, tracker in self._trackers.items()
            for track in tracker.tracks
        }
        self._numbers = {key: self._numbers[key] for key in self._numbers if key in living}

    def _tracker_of(self, category: int) -> Any:
        if category not in self._trackers:
            self._trackers[category] = self._tracker_class(
                frame_rate=self._rate,
                track_activation_threshold=self._activation,
                high_conf_det_threshold=self._activation,
            )
        return self._trackers[category]
