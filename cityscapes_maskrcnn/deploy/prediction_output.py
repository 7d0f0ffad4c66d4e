"""The outputs of a stream's detections: JSON lines, a video, or a folder of pictures.

A file has ``.partial`` before its extension until it is closed; then it gets its name, also where
the stream was interrupted: what was predicted until then is in it. Of a process that is killed the
``.partial`` file is left. Without a single frame there is no file, and an earlier one stays.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import cv2
import numpy as np

from cityscapes_maskrcnn.data.labels import INSTANCE_LABELS
from cityscapes_maskrcnn.deploy.frame_detections import BgrImage, FrameDetections
from cityscapes_maskrcnn.deploy.frame_drawing import FrameArtist, enlarged
from cityscapes_maskrcnn.deploy.frames import Frame, quiet_opencv
from cityscapes_maskrcnn.evaluation.masks import RunMask, coco_rles
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, acquire_lock
from cityscapes_maskrcnn.visualization.image_files import (
    PictureNames,
    make_folder,
    write_bgr_picture,
)
from cityscapes_maskrcnn.visualization.outlines import frame_contours, signed_area

Segmentation: TypeAlias = Literal["rle", "polygons", "none"]
Layout: TypeAlias = Literal["prediction", "side-by-side", "overlay"]

#: The default codec of every kind of video that can be written.
CODECS: Final = {
    ".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80",
}  # fmt: skip
# Left to finish a video with its index: some 16 bytes a frame.
_MIN_FREE_BYTES: Final = 16_000_000


class JsonLines:
    """A file with a line for every detection, each as an entry of COCO's results.

    Args:
        path: the file.
        class_names: by class of the model.
        segmentation: how masks are written.

    Raises:
        InputError: it cannot be written; also later.
    """

    def __init__(
        self, path: Path, class_names: Sequence[str], segmentation: Segmentation = "rle"
    ) -> None:
        official = {label.name: label.id for label in INSTANCE_LABELS}
        self._categories = [(official.get(name, -1), name) for name in class_names]
        self._segmentation = segmentation
        self.path = path
        self._partial = _partial(path)
        self._lock = -1
        self._file: io.FileIO | None = None

    def write(self, frame: Frame, detections: FrameDetections) -> None:
        """Append the detections of a frame: all of them, or none if the disk is full."""
        lines = "".join(
            json.dumps(entry, allow_nan=False) + "\n"
            for entry in coco_entries(frame, detections, self._categories, self._segmentation)
        )
        data = memoryview(lines.encode())
        if self._file is None:
            self._lock = _lock(self._partial, self.path)
            # Unbuffered: what is written stays when the process is killed.
            self._file = io.FileIO(self._partial, "w")
        begin = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(begin)
            raise InputError(f"{self.path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Give the file its name."""
        if self._file is not None:
            self._file.close()
            self._partial.replace(self.path)
            os.close(self._lock)


class VideoFile:
    """A video of drawn frames, each shown as long as its source does.

    Args:
        path: the file; its extension says the format.
        rate: frames a second.
        codec: four letters; None: the format's in :data:`CODECS`.

    Raises:
        InputError: the codec is unknown or not for this format, or the file cannot be written.
    """

    def __init__(self, path: Path, rate: float, codec: str | None = None) -> None:
        self.path = path
        self._partial = _partial(path)
        self._rate = rate
        self._codec = CODECS[path.suffix.lower()] if codec is None else codec
        self._lock = -1
        self._writer: Any = None
        self._last: Any = None
        self._size = (0, 0)
        self._num_written = 0
        # Whether it works is better known before the model is loaded.
        if len(self._codec) != 4 or not self._codec.isascii():
            raise InputError(f"--codec {codec}: it must be four letters, such as mp4v or MJPG")
        with tempfile.TemporaryDirectory() as folder:
            self._open(Path(folder) / f"test{path.suffix}", (64, 64)).release()

    def write(self, frame: Frame, picture: BgrImage) -> None:
        """Append a picture; one of another size than the first is fitted into its frame.

        Of a video or camera it comes at its time: the picture before it is repeated until then, and
        where two come within one frame of the file, the second is left out.
        """
        if shutil.disk_usage(self._partial.parent).free < _MIN_FREE_BYTES:
            raise InputError(f"{self.path}: the disk is almost full")
        if self._writer is None:
            height, width = picture.shape[:2]
            # Many codecs know nothing of odd sizes.
            self._size = (width + width % 2, height + height % 2)
            self._lock = _lock(self._partial, self.path)
            self._writer = self._open(self._partial, self._size)
        place = self._num_written
        if frame.seconds is not None:
            place = round(frame.seconds * self._rate)
        picture = _fitted(picture, self._size)
        while self._num_written <= place:
            self._writer.write(picture if self._num_written == place else self._last)
            self._num_written += 1
        self._last = picture

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            InputError: not all of it is on the disk.
        """
        if self._writer is None:
            return
        self._writer.release()
        with quiet_opencv():
            capture = cv2.VideoCapture(str(self._partial.absolute()), cv2.CAP_FFMPEG)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        # Matroska's is an estimate. OpenCV does not tell a failed write.
        if count < 0.9 * self._num_written - 1:
            raise InputError(f"{self._partial}: could not be finished; is the disk full?")
        self._partial.replace(self.path)
        os.close(self._lock)

    def _open(self, file: Path, size: tuple[int, int]) -> Any:
        with quiet_opencv():
            writer = cv2.VideoWriter(
                str(file.absolute()),
                cv2.CAP_FFMPEG,
                cv2.VideoWriter.fourcc(*self._codec),
                self._rate,
                size,
            )
        if writer.isOpened():
            return writer
        raise InputError(
            f"--codec {self._codec}: this OpenCV cannot write it into a {self.path.suffix} file at"
            f" {self._rate:g} frames a second; the usual ones are mp4v for .mp4, MJPG for .avi"
        )


class PictureFolder:
    """A folder with a PNG file for every frame, each there when it is complete.

    Args:
        path: the folder; created when missing.
        layout: of the pictures.
        source_name: of a video or camera, which the frames are named after; None: every frame is
            an image file with a name of its own.

    Raises:
        InputError: it cannot be written; also later.
    """

    def __init__(self, path: Path, layout: Layout, source_name: str | None) -> None:
        self.path = make_folder(path)
        self._suffix = "_overlay" if layout == "overlay" else "_prediction"
        self._name_of = PictureNames(self._suffix)
        self._frame_stem = None if source_name is None else _frame_stem(source_name)

    def write(self, frame: Frame, picture: BgrImage) -> None:
        """Write a picture, also one with opacity."""
        if self._frame_stem is None:
            name = self._name_of(Path(frame.name))
        else:
            # The numbers differ, so that no name need be remembered of a stream without end.
            name = f"{self._frame_stem}_{frame.number:06d}{self._suffix}.png"
        write_bgr_picture(self.path / name, picture)

    def close(self) -> None:
        """Nothing is left to do."""


class StreamOutputs:
    """Everything that ``--output`` names.

    Args:
        detections_to: get the detections as they are.
        pictures_to: get drawn frames.
        artist: draws them.
        layout: of what is drawn.
        in_motion: whether the frames are of a video or camera.

    Attributes:
        num_frames: written so far.
    """

    def __init__(
        self,
        *,
        detections_to: Sequence[JsonLines],
        pictures_to: Sequence[VideoFile | PictureFolder],
        artist: FrameArtist,
        layout: Layout,
        in_motion: bool,
    ) -> None:
        self._detections_to = detections_to
        self._pictures_to = pictures_to
        self._artist = artist
        self._layout = layout
        self._in_motion = in_motion
        self.num_frames = 0

    def write(self, frame: Frame, detections: FrameDetections) -> None:
        """Write a frame.

        Raises:
            InputError: a file cannot be written.
        """
        for lines in self._detections_to:
            lines.write(frame, detections)
        if self._pictures_to:
            picture = self._draw(frame, detections)
            for pictures in self._pictures_to:
                pictures.write(frame, picture)
        self.num_frames += 1

    def close(self) -> list[str]:
        """Finish all files.

        Returns:
            What is wrong with those that could not be finished.
        """
        problems = []
        for output in (*self._detections_to, *self._pictures_to):
            try:
                output.close()
            except InputError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{output.path}: cannot be written: {error.strerror}")
        return problems

    def _draw(self, frame: Frame, detections: FrameDetections) -> Any:
        if self._layout == "overlay":
            return self._artist.overlay(frame.image, detections, self._in_motion)
        picture = self._artist.picture(frame.image, detections, self._in_motion)
        if self._layout == "prediction":
            return picture
        gap = np.full((len(picture), max(2, picture.shape[1] // 256) // 2 * 2, 3), 255, np.uint8)
        return np.hstack([enlarged(frame.image), gap, picture])


def coco_entries(
    frame: Frame,
    detections: FrameDetections,
    categories: Sequence[tuple[int, str]],
    segmentation: Segmentation,
) -> list[dict[str, Any]]:
    """Describe detections as COCO's result files do.

    Args:
        frame: the frame.
        detections: of the frame.
        categories: official id and name, by class of the model.
        segmentation: ``rle``: compressed run-lengths, exact; ``polygons``: outer borders, to within
            half a pixel, without holes; ``none``: boxes only.

    Returns:
        For each detection ``image``, ``image_id`` (the frame's number), of a video ``seconds``,
        ``category_id``, ``category``, ``bbox`` (x, y, width, height), ``score``,
        ``segmentation``, and ``track_id`` of tracked ones (null as long as there is none).
    """
    masks = detections.masks
    segmentations: list[Any] = []
    if masks is not None and segmentation == "rle":
        segmentations = [
            {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            for rle in coco_rles(masks)
        ]
    elif masks is not None and segmentation == "polygons":
        segmentations = [mask_polygons(mask) for mask in masks]
    entries = []
    for index, category in enumerate(detections.classes.tolist()):
        x0, y0, x1, y1 = detections.boxes[index].tolist()
        entry: dict[str, Any] = {"image": frame.name, "image_id": frame.number}
        if frame.seconds is not None:
            entry["seconds"] = round(frame.seconds, 3)
        entry["category_id"], entry["category"] = categories[category]
        entry["bbox"] = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
        entry["score"] = round(float(detections.scores[index]), 4)
        if segmentations:
            entry["segmentation"] = segmentations[index]
        if detections.track_ids is not None:
            entry["track_id"] = int(detections.track_ids[index]) or None
        entries.append(entry)
    return entries


def mask_polygons(mask: RunMask) -> list[list[float]]:
    """Get the outer borders of a mask as COCO's polygons.

    Returns:
        ``[x0, y0, x1, y1, ...]`` for every part, in pixels, to within half a pixel; holes are left
        out.
    """
    polygons = []
    for contour in frame_contours(mask):
        if signed_area(contour) <= 0:
            continue
        points = contour.astype(np.float32)
        simple = cv2.approxPolyDP(points, epsilon=0.5, closed=True).reshape(-1, 2)
        if len(simple) >= 3:
            polygons.append(np.round(simple.astype(np.float64), 1).ravel().tolist())
    return polygons


def _frame_stem(source_name: str) -> str:
    """Find how the names of pictures of a video or camera begin."""
    stem = Path(source_name).stem
    return f"camera_{stem}" if stem.isdigit() else stem


def _partial(path: Path) -> Path:
    """Name the unfinished file, once it is sure that it can be written."""
    partial = path.with_suffix(f".partial{path.suffix}")
    if path.is_dir():
        raise InputError(f"--output {path}: is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():  # another process may be writing it
            partial.touch()
            partial.unlink()
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written: {error.strerror}") from error
    return partial


def _lock(partial: Path, path: Path) -> int:
    """Lock an unfinished file, which is created; returns the descriptor that holds the lock."""
    try:
        # By flock: closing another descriptor of the file, as OpenCV does, keeps it.
        return acquire_lock(partial, timeout=0, inheritable=True)
    except LockTimeoutError as error:
        raise InputError(f"--output {path}: another process is writing it") from error


def _fitted(picture: BgrImage, size: tuple[int, int]) -> BgrImage:
    """Bring a picture to a size, proportions kept, on black."""
    width, height = size
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(width / picture.shape[1], height / picture.shape[0])
    if scale < 1 or max(width - picture.shape[1], height - picture.shape[0]) > 1:
        new = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        picture = cv2.resize(picture, new, interpolation=cv2.INTER_AREA)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas
