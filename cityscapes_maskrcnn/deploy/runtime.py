"""Inference with an exported Mask R-CNN, using only ONNX Runtime, NumPy and OpenCV.

torch, Detectron2 and Pillow are not imported; resizing and pasting give the same pixels as theirs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, overload

import cv2
import numpy as np
import numpy.typing as npt

from cityscapes_maskrcnn.evaluation.pasting import paste_masks as paste
from cityscapes_maskrcnn.utils.batches import prepared_batches
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest, read_file, read_json

#: An image file, or pixels of shape (H, W, 3), dtype uint8, in the order BGR as OpenCV reads them.
Image: TypeAlias = str | os.PathLike[str] | npt.NDArray[np.uint8]

CARD_VERSION: Final = 1
# What is used of a card.
_FORM: Final = {
    "version": int,
    "file": {"sha256": str},
    "input": {"channels": str, "min_size": int, "max_size": int},
    "classes": [{"name": str, "label_id": int, "color": [int]}],
    "thresholds": {"score": float, "proposals": int},
}
_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Of the weights of Pillow's filters for 8 bits a channel.
_PRECISION_BITS: Final = 22
# Rows that are resized at once, so that their sums stay in the processor's cache.
_ROWS: Final = 16


class Detections(NamedTuple):
    """The detections in an image, by descending score.

    Attributes:
        boxes: shape (N, 4), float32: (x0, y0, x1, y1) in pixels of the image.
        classes: shape (N,), int64, contiguous: index into :attr:`OnnxPredictor.classes`.
        scores: shape (N,), float32, between 0 and 1.
        masks: shape (N, H, W), bool, in the size of the image; or, if not pasted, (N, S, S),
            float32: probabilities within the box.
    """

    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masks: npt.NDArray[Any]


class Prepared(NamedTuple):
    """An image prepared as input of the network.

    Attributes:
        pixels: shape (3, h, w), uint8, in the network's order of channels.
        height: height of the original image in pixels, before resizing.
        width: width of the original image in pixels.
    """

    pixels: npt.NDArray[np.uint8]
    height: int
    width: int


class OnnxPredictor:
    """Predict the instances in images with ``model.onnx`` and the ``model.json`` beside it.

    The results equal those of :class:`cityscapes_maskrcnn.Predictor` up to float32 rounding.

    Args:
        model: the ONNX file from ``tools/export_model.py``.
        score_thresh: detections have a score above this; not below the file's own threshold. None:
            the file's threshold.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` for the second GPU, or a name of ONNX Runtime's
            execution providers.
        batch_size: maximum number of images of the same size that are predicted together.
        num_threads: number of threads of ONNX Runtime on the CPU; None: one per core.

    Attributes:
        batch_size: see above.
        card: the content of ``model.json``.
        classes: names of the classes.
        colors: colour of each class, RGB from 0 to 255.

    Raises:
        InputError: a file is missing or damaged, they do not belong together, ONNX Runtime is
            missing or has no such device, or ``score_thresh`` or ``batch_size`` is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        score_thresh: float | None = None,
        device: str = "cpu",
        batch_size: int = 1,
        num_threads: int | None = None,
    ) -> None:
        path = Path(model)
        self.card = read_card(path)
        lowest = self.card["thresholds"]["score"]
        self.score_thresh = lowest if score_thresh is None else score_thresh
        if not lowest <= self.score_thresh <= 1:
            raise InputError(
                f"score_thresh {self.score_thresh:g}: it must lie between {lowest:g}, below which"
                f" {path} gives no detections, and 1"
            )
        self.classes: list[str] = [each["name"] for each in self.card["classes"]]
        self.colors: list[tuple[int, ...]] = [tuple(each["color"]) for each in self.card["classes"]]
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: it must be at least 1")
        self.batch_size = batch_size
        self.session = open_session(read_file(path), str(path), device, num_threads)

    # A name of a file is an iterable of letters, too.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: Image | Prepared, *, paste_masks: bool = True
    ) -> Detections: ...

    @overload
    def __call__(
        self, images: Iterable[Image | Prepared], *, paste_masks: bool = True
    ) -> Iterator[Detections]: ...

    def __call__(
        self, images: Image | Prepared | Iterable[Image | Prepared], *, paste_masks: bool = True
    ) -> Detections | Iterator[Detections]:
        """Predict the instances in one image, or in several images one after the other.

        Args:
            images: an image or an iterable of images, which may be endless; results of
                :meth:`prepare` are accepted as well. At most ``batch_size`` images are in memory at
                a time. Consecutive images that are resized to the same size are predicted together.
            paste_masks: False leaves the masks as the network predicts them.

        Returns:
            The detections; for an iterable, an iterator in the same order.

        Raises:
            InputError: a file is missing or not an image, or an array has another shape or type.
                The results of the images before it have been yielded by then.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray, Prepared)):
            return next(self._each([images], paste_masks))
        return self._each(images, paste_masks)

    def prepare(self, image: Image) -> Prepared:
        """Resize an image for the network. This can run in another thread than prediction.

        Raises:
            InputError: a file is missing or not an image, or an array has another shape or type.
        """
        pixels = _pixels(image)
        height, width = pixels.shape[:2]
        rules = self.card["input"]
        size = resized_size(height, width, rules["min_size"], rules["max_size"])
        if min(size) < 1:
            problem = f"{width}x{height} pixels cannot be resized to {size[1]}x{size[0]}"
            # Who gives an array knows its name.
            raise InputError(problem if isinstance(image, np.ndarray) else f"{image}: {problem}")
        resized = resize(pixels, *size)
        if rules["channels"] == "RGB":
            resized = resized[..., ::-1]
        return Prepared(np.ascontiguousarray(resized.transpose(2, 0, 1)), height, width)

    def _each(self, images: Iterable[Image | Prepared], paste_masks: bool) -> Iterator[Detections]:
        batches = prepared_batches(
            images,
            lambda image: image if isinstance(image, Prepared) else self.prepare(image),
            shape=lambda prepared: prepared.pixels.shape,
            batch_size=self.batch_size,
        )
        for batch in batches:
            yield from self._predict(batch, paste_masks)

    def _predict(self, batch: list[Prepared], paste_masks: bool) -> Iterator[Detections]:
        images = np.stack([prepared.pixels for prepared in batch])
        boxes, classes, scores, masks, image_indices = self.session.run(None, {"images": images})
        for index, (_, height, width) in enumerate(batch):
            # In float32 and in this order, as Detectron2 brings boxes to the size of the image.
            factors = np.array([width / images.shape[3], height / images.shape[2]] * 2, np.float32)
            limits = np.array([width, height, width, height], np.float32)
            scaled = np.clip(boxes * factors, np.float32(0), limits)
            kept = (scaled[:, 2:] > scaled[:, :2]).all(axis=1) & (scores > self.score_thresh)
            (chosen,) = np.nonzero(kept & (image_indices == index))
            probabilities = masks[chosen]
            yield Detections(
                boxes=scaled[chosen],
                classes=classes[chosen],
                scores=scores[chosen],
                masks=(
                    _frames(probabilities, scaled[chosen], height, width)
                    if paste_masks
                    else probabilities
                ),
            )


def read_card(model: Path) -> dict[str, Any]:
    """Read the ``.json`` beside an exported model.

    Raises:
        InputError: one of the two is missing or damaged, or they do not belong together.
    """
    advice = "export the model again with tools/export_model.py"
    if not model.is_file():
        raise InputError(f"{model}: no such file")
    card_file = model.with_suffix(".json")
    if not card_file.is_file():
        raise InputError(f"{card_file}: missing; it belongs beside {model.name}")
    card = read_json(card_file, form={"version": int}, advice=advice)
    if card["version"] != CARD_VERSION:
        raise InputError(
            f"{card_file}: version {card['version']}; this program reads version {CARD_VERSION}"
        )
    read_json(card_file, form=_FORM, advice=advice)
    if card["file"]["sha256"] != file_digest(model):
        raise InputError(
            f"{model}: not the file that {card_file.name} describes, their SHA-256 differ; {advice}"
        )
    return card


def open_session(data: bytes, name: str, device: str, num_threads: int | None) -> Any:
    """Load a model into ONNX Runtime.

    Args:
        data: of the file.
        name: of the file, for messages.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` for the GPU with number N, or a name of ONNX
            Runtime's execution providers, such as ``"CoreMLExecutionProvider"``.
        num_threads: see :class:`OnnxPredictor`.

    Raises:
        InputError: ONNX Runtime is missing, has no such device, or cannot load the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{name}: needs ONNX Runtime, which is not installed: pip install onnxruntime"
        ) from error
    kind, _, number = device.partition(":")
    available = onnxruntime.get_available_providers()
    provider = _PROVIDERS.get(kind, device)
    if provider not in available or (number and not (kind == "cuda" and number.isdecimal())):
        raise InputError(
            f"device {device}: this ONNX Runtime has no {provider}, only {', '.join(available)};"
            " cpu works everywhere, cuda needs the package onnxruntime-gpu and a GPU"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.log_severity_level = 3  # what goes wrong is raised too
    settings = {"device_id": number} if number else {}
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[(provider, settings)])
    # Its errors have many types.
    except Exception as error:
        problem = " ".join(str(error).split())[:500]
        raise InputError(f"{name}: ONNX Runtime cannot load it: {problem}") from error
    if session.get_providers()[0] != provider:
        raise InputError(
            f"device {device}: ONNX Runtime cannot use its {provider} here and would take "
            f"{session.get_providers()[0]}; its libraries or the GPU are missing"
        )
    return session


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Find the size that an image is resized to, as Detectron2's ``ResizeShortestEdge`` does.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        min_size: of the shorter side afterwards; 0: no image is resized.
        max_size: the longer side does not become longer than this.

    Returns:
        Height and width.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    new_height, new_width = (
        (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    )
    if max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def resize(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize an image by Pillow's bilinear filter, which Detectron2 uses, bit for bit.

    Args:
        image: shape (H, W, 3), uint8.
        height: of the result in pixels.
        width: of the result in pixels, as the height at least 1.

    Source: ``src/libImaging/Resample.c`` and ``src/PIL/Image.py`` of Pillow.
    """
    old_height, old_width = image.shape[:2]
    rows_first = old_height > 100 * old_width and height < old_height
    if rows_first:
        image = _resize_rows(image, height)
    if width != old_width:
        # OpenCV transposes faster than NumPy gathers columns.
        image = cv2.transpose(_resize_rows(cv2.transpose(image), width))
    return image if rows_first or height == old_height else _resize_rows(image, height)


def _resize_rows(image: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.uint8]:
    """Resize shape (H, W, 3) to (number, W, 3)."""
    starts, weights = _filter(image.shape[0], number)
    rows = image.reshape(image.shape[0], -1)
    resized = np.empty((number, rows.shape[1]), dtype=np.uint8)
    last = image.shape[0] - 1
    for begin in range(0, number, _ROWS):
        chosen = slice(begin, begin + _ROWS)
        sums = np.full((len(starts[chosen]), rows.shape[1]), 1 << (_PRECISION_BITS - 1), np.int32)
        for tap, tap_weights in enumerate(weights):
            source = rows[np.minimum(starts[chosen] + tap, last)]
            sums += source * tap_weights[chosen, None]
        resized[chosen] = sums >> _PRECISION_BITS
    return resized.reshape(number, *image.shape[1:])


def _filter(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Get where the pixels that each new one is a sum of begin, (new,), and weights (taps, new)."""
    scale = old / new
    support = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + support + 0.5).astype(np.int64), old)
    taps = np.arange(math.ceil(support) * 2 + 1)[:, None]
    distances = np.abs((taps + starts - centers + 0.5) * (1.0 / support))
    weights = np.where(taps < ends - starts, np.maximum(1.0 - distances, 0.0), 0.0)
    total = np.zeros(new)
    for row in weights:  # in this order
        total += row
    fixed = (0.5 + weights / total * (1 << _PRECISION_BITS)).astype(np.int32)
    return starts, fixed[fixed.any(axis=1)]


def _pixels(image: Image) -> npt.NDArray[np.uint8]:
    """Read an image in the order BGR."""
    if not isinstance(image, np.ndarray):
        data = np.frombuffer(read_file(image), dtype=np.uint8)
        try:
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        except cv2.error:  # more pixels than OpenCV reads
            decoded = None
        if decoded is None:
            raise InputError(f"{image}: truncated, or not an image that OpenCV reads")
        return decoded
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"an array of shape {image.shape} and dtype {image.dtype} is not an image: it must be"
            " (height, width, 3) and uint8, BGR"
        )
    return np.ascontiguousarray(image)


def _frames(
    probabilities: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], height: int, width: int
) -> npt.NDArray[np.bool_]:
    frames = np.zeros((len(boxes), height, width), dtype=bool)
    for frame, mask in zip(frames, paste(probabilities, boxes, height, width), strict=True):
        frame[:] = mask.frame()
    return frames
