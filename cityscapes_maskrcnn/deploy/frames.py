"""Frames from images, a video or a camera, read one at a time and never all in memory."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import cv2

from cityscapes_maskrcnn.data.images import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, read_image
from cityscapes_maskrcnn.deploy.frame_detections import BgrImage
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import printable
from cityscapes_maskrcnn.visualization.image_files import find_images

logger = logging.getLogger(__name__)

_MAX_SIDE: Final = 8192
# A network that says nothing for so long has lost the camera.
_TIMEOUT_MS: Final = 10_000
_MAX_DAMAGED: Final = 1000
_MAX_GAP: Final = 60.0  # seconds
_MAX_LINE: Final = 65536
# These count their frames; others, such as Matroska, give a length from which it is estimated.
_COUNTED: Final = (".mp4", ".m4v", ".mov", ".avi")


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a stream.

    Attributes:
        number: from 0, also of frames that were left out.
        name: the image's or video's file, or the camera.
        seconds: since the first frame of a video or camera; None: of images.
        image: shape (H, W, 3), dtype uint8, BGR.
    """

    number: int
    name: str
    seconds: float | None
    image: BgrImage


class FrameSource:
    """Frames of images; the other sources extend it.

    Args:
        images: the files, perhaps without end.
        length: their number; None: not known.
        every: 1 takes all frames, 2 every second one, and so on.
        size: see :func:`parse_size`.

    Attributes:
        unit: what a frame is called.
        length: number of frames that are taken; None: not known.
        rate: frames a second that are taken; None: images have none.
        live: frames come whether or not anybody waits for them.
        num_unreadable: images that could not be read so far.
        name: of the whole, to name pictures after; None: each frame has a name of its own.
    """

    unit = "image"
    rate: float | None = None
    live = False
    name: str | None = None

    def __init__(
        self,
        images: Iterable[Path],
        length: int | None,
        *,
        every: int = 1,
        size: tuple[int, int | None] | None = None,
    ) -> None:
        self._images = images
        self._every = every
        self._size = size
        self.length = None if length is None else -(-length // every)
        self.num_unreadable = 0

    def __iter__(self) -> Iterator[Frame]:
        """Read the frames; an image that cannot be read is reported in the log and left out."""
        numbered = islice(enumerate(self._images), 0, None, self._every)
        for number, path in numbered:
            try:
                image = self._resized(read_image(path), str(path))
            except InputError as error:
                self.leave_out(error)
                continue
            yield Frame(number, str(path), None, image)

    def leave_out(self, error: InputError) -> None:
        """Report a frame that cannot be used in the log, and count it."""
        self.num_unreadable += 1
        logger.warning("%s; left out", printable(error))

    def _resized(self, image: BgrImage, name: str) -> BgrImage:
        if self._size is None:
            return image
        height, width = image.shape[:2]
        new_width, new_height = self._size
        if new_height is None:
            scale = new_width / max(height, width)
            new_width, new_height = round(width * scale), round(height * scale)
        if not new_width or not new_height:
            raise InputError(f"{name}: {width}x{height} pixels cannot be resized: nothing is left")
        shrinks = new_width * new_height < width * height
        resized: BgrImage = cv2.resize(
            image,
            (new_width, new_height),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
        return resized


class VideoFrames(FrameSource):
    """Frames of a video file.

    Args:
        path: the file.
        every: 1 takes all frames, 2 every second one, and so on.
        size: see :func:`parse_size`.

    Raises:
        InputError: it is missing, or not a video.
    """

    unit = "frame"

    def __init__(
        self, path: str, *, every: int = 1, size: tuple[int, int | None] | None = None
    ) -> None:
        super().__init__((), None, every=every, size=size)
        self.name = path
        self._capture = self._open(path)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate / every if 0 < rate < 1000 else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._count = int(count) if 0 < count < 1e9 else None
        self._exact_count = self._count if path.lower().endswith(_COUNTED) else None
        if self._count is not None:
            self.length = -(-self._count // every)

    def _open(self, path: str) -> cv2.VideoCapture:
        # By itself OpenCV would take a name with % for a pattern of image files.
        with quiet_opencv():
            capture = cv2.VideoCapture(str(Path(path).absolute()), cv2.CAP_FFMPEG)
        if not capture.isOpened() or capture.get(cv2.CAP_PROP_FRAME_WIDTH) < 1:
            raise InputError(
                f"--input {path}: neither an image of a known format nor a readable video; a video"
                " whose recording was interrupted may have no index: repair or convert it"
            )
        return capture

    def __iter__(self) -> Iterator[Frame]:
        """Read the frames; damaged ones are left out by FFmpeg, and counted at the end."""
        number = 0
        try:
            for number, seconds in enumerate(self._grabbed(), start=1):
                index = number - 1
                if index % self._every:
                    continue
                is_whole, image = self._capture.retrieve()
                if is_whole:
                    yield Frame(
                        index, str(self.name), seconds, self._resized(image, str(self.name))
                    )
        finally:
            self._capture.release()
        self._check_end(number)

    def _grabbed(self) -> Iterator[float]:
        """Go from frame to frame without decoding its colours; gives the frames' seconds.

        They are the file's, but never go back, and a leap of minutes, which damage makes, counts as
        a frame.
        """
        before = elapsed = 0.0
        number = failed = 0
        # An estimate may be too low: then the video goes on until nothing comes.
        while self._exact_count is None or number + failed < self._exact_count:
            if not self._capture.grab():
                # The end, unless there should be more: then perhaps a damaged frame.
                failed += 1
                if number + failed > (self._count or 0) or failed > _MAX_DAMAGED:
                    return
                continue
            number += 1
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if number > 1:
                step = seconds - before
                elapsed += step if 0 <= step <= _MAX_GAP else 1 / ((self.rate or 25) * self._every)
            before = seconds
            yield elapsed

    def _check_end(self, number: int) -> None:
        if not number:
            raise InputError(f"--input {self.name}: none of its frames can be read")
        missing = (self._count or 0) - number
        tolerance = 2 * (self.rate or 25) * self._every if self._exact_count is None else 0
        if missing > tolerance:
            logger.warning(
                "%s: %d of its %d frames could be read; the others are damaged or cut off",
                self.name, number, self._count,
            )  # fmt: skip


class CameraFrames(VideoFrames):
    """Frames of a camera, which are lost if they are not taken when they come.

    Args:
        path: number or device of a camera of this machine, or the URL of another.
        every: 1 takes all frames, 2 every second one, and so on.
        size: see :func:`parse_size`.

    Raises:
        InputError: it does not answer.
    """

    def __init__(
        self, path: str, *, every: int = 1, size: tuple[int, int | None] | None = None
    ) -> None:
        super().__init__(path, every=every, size=size)
        # A file on a server is as patient as one on a disk.
        self.live = self._count is None

    def _open(self, path: str) -> cv2.VideoCapture:
        with quiet_opencv():
            if _is_url(path):
                limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC]
                options = [each for limit in limits for each in (limit, _TIMEOUT_MS)]
                capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, options)
            else:
                capture = cv2.VideoCapture(int(path) if path.isdigit() else path)
        if not capture.isOpened():
            raise InputError(
                f"--input {path}: no camera answers there; is it connected, free and readable?"
            )
        return capture

    def _grabbed(self) -> Iterator[float]:
        if not self.live:
            yield from super()._grabbed()
            return
        begin = None
        while self._capture.grab():
            now = time.monotonic()
            begin = now if begin is None else begin
            yield now - begin

    def _check_end(self, number: int) -> None:
        if self.live:
            raise InputError(f"--input {self.name}: the camera gave no more frames after {number}")
        super()._check_end(number)


def open_source(
    inputs: Sequence[str], *, every: int = 1, size: tuple[int, int | None] | None = None
) -> FrameSource:
    """Open what ``--input`` names.

    Args:
        inputs: images, folders and patterns, see :func:`.image_files.find_images`; or one of: a
            video file, a camera's number, device or URL, or ``-`` for the names of images on
            standard input, one a line.
        every: 1 takes all frames, 2 every second one, and so on.
        size: see :func:`parse_size`.

    Raises:
        InputError: there is nothing that can be opened.
    """
    if len(inputs) == 1:
        (given,) = inputs
        if given == "-":
            return FrameSource(_lines_of_stdin(), None, every=every, size=size)
        is_number = given.isdigit() and not Path(given).exists()
        if is_number or _is_url(given) or given.startswith("/dev/"):
            return CameraFrames(given, every=every, size=size)
        # FFmpeg would take an image of another type for a video of one frame.
        extensions = IMAGE_EXTENSIONS | UNREAD_EXTENSIONS
        if Path(given).is_file() and Path(given).suffix.lower() not in extensions:
            return VideoFrames(given, every=every, size=size)
    images = find_images(inputs)
    others = [each for each in images if each.suffix.lower() not in IMAGE_EXTENSIONS]
    if others:
        raise InputError(f"--input {others[0]}: not an image; give only one video per command")
    return FrameSource(images, len(images), every=every, size=size)


def parse_size(text: str) -> tuple[int, int | None]:
    """Read ``--resize``: ``WIDTHxHEIGHT``, or the longer side alone, which keeps the proportions.

    Returns:
        Width and height in pixels; or the longer side and None.

    Raises:
        InputError: it is neither, or out of range.
    """
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    sides = [int(side) for side in match.groups() if side] if match else []
    if not sides or not all(1 <= side <= _MAX_SIDE for side in sides):
        raise InputError(
            f"--resize {text}: it must be WIDTHxHEIGHT or the longer side, from 1 to {_MAX_SIDE}"
            " pixels, such as 1280x720 or 1280"
        )
    return sides[0], sides[1] if len(sides) == 2 else None


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV and its FFmpeg from writing to stderr in a ``with`` block.

    The project's own line says what is wrong. FFmpeg's level is fixed when it is first used.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _is_url(text: str) -> bool:
    return re.match(r"[a-z][a-z0-9+]*://", text) is not None


def _lines_of_stdin() -> Iterator[Path]:
    """The lines of standard input, as they come.

    Not ``sys.stdin``: an interpreter that ends while a thread waits in it complains.
    """
    rest = b""
    try:
        while block := os.read(0, _MAX_LINE):
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > _MAX_LINE:
                raise InputError(f"--input -: a line of more than {_MAX_LINE} bytes names no file")
            yield from (Path(os.fsdecode(line.rstrip(b"\r"))) for line in lines if line.strip())
    except OSError as error:
        raise InputError(f"--input -: standard input cannot be read: {error.strerror}") from error
    if rest.strip():
        yield Path(os.fsdecode(rest))
