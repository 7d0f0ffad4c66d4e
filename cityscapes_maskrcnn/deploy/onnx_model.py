"""An exported model as the model that predicts a stream, without torch and Detectron2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cityscapes_maskrcnn.deploy.frame_detections import BgrImage, FrameDetections
from cityscapes_maskrcnn.deploy.runtime import Detections, OnnxPredictor, Prepared
from cityscapes_maskrcnn.evaluation.pasting import paste_masks
from cityscapes_maskrcnn.utils.errors import InputError


class OnnxModel:
    """A :class:`.FrameModel` in ONNX Runtime.

    Args:
        model: the ``.onnx`` file of ``tools/export_model.py``, with the ``.json`` beside it.
        score_thresh: lowest score of a detection; not below the file's own threshold.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        batch_size: how many frames are predicted together.

    Raises:
        InputError: see :class:`.OnnxPredictor`.
    """

    def __init__(self, model: str, *, score_thresh: float, device: str, batch_size: int) -> None:
        self._predictor = OnnxPredictor(
            model,
            score_thresh=score_thresh,
            device=device,
            batch_size=batch_size,
        )
        self.class_names: Sequence[str] = self._predictor.classes
        self.class_colors: Sequence[Sequence[int]] = self._predictor.colors
        self.batch_size = batch_size

    def prepare(self, image: BgrImage, name: str) -> Prepared:
        """See :meth:`.FrameModel.prepare`."""
        try:
            return self._predictor.prepare(image)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def predict(self, prepared: Iterable[Prepared]) -> Iterator[Detections]:
        """See :meth:`.FrameModel.predict`."""
        return self._predictor(prepared, paste_masks=False)

    def detections(self, output: Detections, height: int, width: int) -> FrameDetections:
        """See :meth:`.FrameModel.detections`."""
        return FrameDetections(
            classes=output.classes,
            scores=output.scores,
            boxes=output.boxes,
            masks=paste_masks(output.masks, output.boxes, height, width),
        )
