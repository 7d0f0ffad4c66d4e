"""Predict a stream from its source to its output files, and report the result.

Neither torch nor Detectron2 is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cityscapes_maskrcnn.deploy.frame_detections import FrameDetections, FrameModel
from cityscapes_maskrcnn.deploy.frame_drawing import FrameArtist
from cityscapes_maskrcnn.deploy.frames import Frame, FrameSource
from cityscapes_maskrcnn.deploy.prediction_output import (
    CODECS,
    JsonLines,
    Layout,
    PictureFolder,
    Segmentation,
    StreamOutputs,
    VideoFile,
)
from cityscapes_maskrcnn.deploy.prediction_stream import PredictionStream
from cityscapes_maskrcnn.deploy.tracking import ObjectTracker
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.stop import StopRequests
from cityscapes_maskrcnn.utils.tool import one_line

#: Frames a second of a video from images, and from a camera that does not say its own.
DEFAULT_RATE: Final = 10.0


class OutputPlan:
    """The files and folders of ``--output``, and how they are written.

    Args:
        paths: JSON lines, videos and folders.
        layout: of what is drawn.
        segmentation: of JSON lines.
        codec: of videos; None: the usual one of their format.
        rate: frames a second of videos; None: the source's.

    Raises:
        InputError: a path is neither of the three or there twice, or an option is for none of them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        layout: Layout = "prediction",
        segmentation: Segmentation = "rle",
        codec: str | None = None,
        rate: float | None = None,
    ) -> None:
        if rate is not None and not 0 < rate <= 1000:
            raise InputError(f"--fps {rate:g}: it must lie between 0 and 1000")
        if len(set(paths)) < len(paths):
            raise InputError("--output: the same name twice")
        self.paths = paths
        self._jsonl = [path for path in paths if path.suffix == ".jsonl"]
        self._videos = [path for path in paths if path.suffix.lower() in CODECS]
        self._folders = [path for path in paths if path not in [*self._jsonl, *self._videos]]
        self._layout: Layout = layout
        self._segmentation: Segmentation = segmentation
        self._codec = codec
        self._rate = rate
        if layout == "overlay" and self._videos:
            raise InputError(
                f"--output {self._videos[0]}: a video cannot be transparent; name a folder"
            )
        if codec and not self._videos:
            raise InputError(f"--codec {codec}: no --output is a video")
        if layout != "prediction" and not (self._videos or self._folders):
            raise InputError(
                f"--{layout}: nothing is drawn into JSON lines; name a folder or video too"
            )
        for path in self._folders:
            if path.suffix and not path.is_dir():
                raise InputError(
                    f"--output {path}: neither .jsonl nor a video's extension "
                    f"({' '.join(CODECS)}); a folder must have none, or exist"
                )

    def refuse_inputs(self, inputs: Sequence[str]) -> None:
        """Keep a video from being replaced by its own drawing.

        Raises:
            InputError: an output is one of the inputs.
        """
        for path in self.paths:
            if path.is_file() and any(
                Path(given).is_file() and path.samefile(given) for given in inputs
            ):
                raise InputError(f"--output {path}: is the input")

    def rate(self, source: FrameSource) -> float:
        """Choose the frames a second of videos."""
        return self._rate or source.rate or DEFAULT_RATE

    def open(self, source: FrameSource, model: FrameModel) -> StreamOutputs:
        """Prepare files and folders.

        Raises:
            InputError: one cannot be written, or not with this codec.
        """
        rate = self.rate(source)
        lines = [JsonLines(path, model.class_names, self._segmentation) for path in self._jsonl]
        videos = [VideoFile(path, rate, self._codec) for path in self._videos]
        folders = [PictureFolder(path, self._layout, source.name) for path in self._folders]
        return StreamOutputs(
            detections_to=lines,
            pictures_to=[*videos, *folders],
            artist=FrameArtist(model.class_names, model.class_colors),
            layout=self._layout,
            in_motion=source.name is not None,
        )


@dataclass(frozen=True)
class JobResult:
    """What came of predicting a stream.

    Attributes:
        lines: for the user.
        problem: what went wrong; empty: nothing.
        status: exit status.
    """

    lines: Sequence[str]
    problem: str = ""
    status: int = 0


def predict_stream(
    source: FrameSource,
    model: FrameModel,
    plan: OutputPlan,
    *,
    classes: Sequence[str] | None = None,
    tracker: ObjectTracker | None = None,
) -> JobResult:
    """Predict all frames of a source, showing progress; SIGINT and SIGTERM end it early.

    Args:
        source: of the frames.
        model: predicts them.
        plan: of the outputs.
        classes: names of those to keep; None: all.
        tracker: numbers what is left; None: nothing is tracked.

    Raises:
        InputError: the model has no such class, or an output cannot be written from the start. What
            goes wrong later is in the result.
    """
    select = class_filter(classes, model.class_names)
    written = plan.open(source, model)

    def write(frame: Frame, detections: FrameDetections) -> None:
        detections = select(detections)
        written.write(frame, detections if tracker is None else tracker.update(detections))

    # What waits is late: of a camera no more than the next batch does.
    depth = model.batch_size if source.live else 2 * model.batch_size
    stream = PredictionStream(source, model, write, depth)
    requests = StopRequests(lambda _: stream.stop(), interruptible=True)
    problems = []
    with (
        requests.listening(),
        logging_redirect_tqdm(),
        tqdm(total=source.length, desc="Predicting", unit=source.unit) as progress,
    ):
        try:
            stream.run(progress.update)
        except (InputError, OSError) as error:
            problem = one_line(error)
            if problem is None:
                raise
            problems.append(problem)
        finally:
            problems += written.close()
        seconds = progress.format_dict["elapsed"]

    number = written.num_frames
    where = " and ".join(map(str, plan.paths))
    done = f"{number} {source.unit}s are in {where}"
    if number < 2:
        done = f"{number or 'no'} {source.unit} is in {where}"
    lines = []
    if stream.num_dropped:
        lines.append(
            f"{stream.num_dropped} frames came while the model was busy, and were left out"
        )
    if problems:
        return JobResult(lines, problem="; ".join([*problems, done]))
    if requests.signals:
        return JobResult([*lines, f"stopped early: {done}"], status=128 + requests.signals[0])
    lines.append(f"{done} ({number / max(seconds, 1e-9):.1f} {source.unit}s a second)")
    if source.num_unreadable:
        problem = f"images that could not be read, see above: {source.num_unreadable}"
        return JobResult(lines, problem=problem)
    return JobResult(
        lines, problem="" if number else f"--input: there was no {source.unit} to predict"
    )


def class_filter(
    chosen: Sequence[str] | None, names: Sequence[str]
) -> Callable[[FrameDetections], FrameDetections]:
    """Make the function that keeps the detections of some classes.

    Args:
        chosen: their names; None: all.
        names: of the model's classes.

    Raises:
        InputError: the model has no such class.
    """
    if chosen is None:
        return lambda detections: detections
    for name in chosen:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the model's are {', '.join(names)}"
            raise InputError(
                f"--classes {name}: {hint} (KEY VALUE pairs must not follow --classes directly)"
            )
    indices = [names.index(name) for name in chosen]
    return lambda detections: detections.select(np.isin(detections.classes, indices))
