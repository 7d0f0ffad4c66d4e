"""A trained model, applied to image files and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.transforms import AugInput
from detectron2.structures import Instances, ROIMasks

from cityscapes_maskrcnn.data.images import check_size, read_image
from cityscapes_maskrcnn.data.labels import THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
from cityscapes_maskrcnn.data.registration import register_datasets_of
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.inference import check_inference, for_inference, model_categories
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.instance_ap import ALL_CATEGORIES
from cityscapes_maskrcnn.evaluation.instances import leave_masks_unpasted
from cityscapes_maskrcnn.utils.batches import prepared_batches
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import check_score_thresh
from cityscapes_maskrcnn.visualization.annotated_images import (
    draw_captioned,
    ground_truth_of,
    scene_mark,
)
from cityscapes_maskrcnn.visualization.drawing import (
    draw_captioned_predictions,
    side_by_side,
)

#: An image file; or pixels of shape (H, W, 3), dtype uint8, in the order BGR as OpenCV reads them;
#: or what :meth:`Predictor.prepare` returns for one of these.
Image: TypeAlias = str | os.PathLike[str] | npt.NDArray[np.uint8] | dict[str, Any]


class Predictor:
    """Predict and draw the instances in images.

    Unlike Detectron2's ``DefaultPredictor``, it accepts files as well as arrays, and any number of
    them. It uses the mapper of evaluation, so that drawings show the predictions that are scored,
    and refuses weights that lack a part of the model. ``TEST.PRECISION`` and ``TEST.BATCH_SIZE``
    set the precision and the batch size.

    Attributes:
        model: the model with ``MODEL.WEIGHTS``, in evaluation mode.
        metadata: names and colours of the model's classes.
        history: the data that the weights were trained and tuned on, see :mod:`.provenance`.
    """

    def __init__(self, cfg: CfgNode, score_thresh: float = 0.5):
        """Build the model and load ``MODEL.WEIGHTS``.

        Args:
            cfg: the model's config; not changed.
            score_thresh: lowest score of a detection, between 0 and 1.

        Raises:
            InputError: ``score_thresh`` or a value of the config is out of range; see also
                :func:`.register_datasets_of`, :func:`.inference.model_categories`,
                :func:`.inference.check_inference` and :func:`.checkpoint.load_for_inference`.
        """
        check_score_thresh(score_thresh)
        check_inference(cfg)
        register_datasets_of(cfg)
        categories = model_categories(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score_thresh
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score_thresh
        self.metadata = _class_metadata(categories)
        self._categories = frozenset(categories)
        self._score_thresh = score_thresh
        self._own_datasets = tuple(cfg.DATASETS.OWN)
        # Without INPUT.CACHE: they are anybody's images, and each is read once.
        self._mapper = CityscapesMapper(cfg, is_train=False, cache=None)
        self._batch_size = cfg.TEST.BATCH_SIZE
        self.model = Trainer.build_model(cfg).eval()
        self.history = load_for_inference(self.model, cfg).history
        self._predict = for_inference(cfg, leave_masks_unpasted(self.model))

    @overload
    def __call__(self, images: Image, *, paste_masks: bool = True) -> Instances: ...

    @overload
    def __call__(
        self, images: Iterable[Image], *, paste_masks: bool = True
    ) -> Iterator[Instances]: ...

    def __call__(
        self, images: Image | Iterable[Image], *, paste_masks: bool = True
    ) -> Instances | Iterator[Instances]:
        """Predict the instances in one image, or in several images one after the other.

        Args:
            images: an image or an iterable of images, which may be endless. At most
                ``TEST.BATCH_SIZE`` images are in memory at a time. Consecutive images of the same
                size are predicted together.
            paste_masks: False: ``pred_masks`` is Detectron2's :class:`ROIMasks`, which
                ``to_bitmasks(pred_boxes, height, width)`` pastes into a frame; this saves 2 MB per
                mask for a 1024x2048 image.

        Returns:
            Instances on the CPU, with ``pred_boxes``, ``scores``, ``pred_classes`` (contiguous)
            and, for a model with masks, ``pred_masks`` (N, H, W), bool; in pixels of the image. For
            an iterable, an iterator in the same order, which yields the first result as soon as the
            first batch is full.

        Raises:
            InputError: a file is missing, truncated or not an image, or an array has another shape
                or type. The results of the images before it have been yielded by then.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray, dict)):
            return next(self._each([images], paste_masks))
        return self._each(images, paste_masks)

    def _each(self, images: Iterable[Image], paste_masks: bool) -> Iterator[Instances]:
        batches = prepared_batches(
            images,
            self.prepare,
            shape=lambda mapped: mapped["image"].shape,
            batch_size=self._batch_size,
        )
        for batch in batches:
            yield from self._outputs(batch, paste_masks)

    def prepare(self, image: Image, name: str = "an array") -> dict[str, Any]:
        """Resize an image as in evaluation, and turn it into the model's input.

        This can run in one thread while another one predicts.

        Args:
            image: the image.
            name: name of an array, for messages.

        Raises:
            InputError: as :meth:`__call__`.
        """
        if isinstance(image, dict):
            return image
        if isinstance(image, np.ndarray):
            mapped = self._map_array(image, name)
        else:
            mapped = self._mapper({"file_name": str(image)})
        if next(self.model.parameters()).is_cuda:
            # From there the upload does not make the host wait.
            mapped["image"] = mapped["image"].pin_memory()
        return mapped

    def _map_array(self, image: npt.NDArray[Any], name: str) -> dict[str, Any]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"an array of shape {image.shape} and dtype {image.dtype} is not an image: it must"
                " be (height, width, 3) and uint8, BGR"
            )
        if self._mapper.image_format not in ("RGB", "BGR"):
            raise InputError(
                f"INPUT.FORMAT {self._mapper.image_format}: arrays are for RGB and BGR alone"
            )
        height, width = image.shape[:2]
        if self._mapper.image_format == "RGB":
            image = np.ascontiguousarray(image[:, :, ::-1])
        augmented = AugInput(image)
        self._mapper.augment(augmented, name)
        channels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        return {"image": torch.as_tensor(channels), "height": height, "width": width}

    def _outputs(self, batch: list[dict[str, Any]], paste_masks: bool) -> Iterator[Instances]:
        with torch.no_grad():
            outputs = self._predict(batch)
        for mapped, output in zip(batch, outputs, strict=True):
            instances = output["instances"]
            result = instances.to("cpu")
            if paste_masks and isinstance(instances.get_fields().get("pred_masks"), ROIMasks):
                # A frame a mask: of one image at a time.
                frames = instances.pred_masks.to_bitmasks(
                    instances.pred_boxes, mapped["height"], mapped["width"]
                )
                result.pred_masks = frames.tensor.cpu()
            yield result

    def draw(
        self, image_file: str | os.PathLike[str], instances: Instances | None = None
    ) -> npt.NDArray[np.uint8]:
        """Draw the detections in an image, to the right of its ground truth if it is annotated.

        Both panels show the model's classes alone.

        Args:
            image_file: the image.
            instances: its predictions; None: predict them now.

        Returns:
            The picture with captions, shape (H, W, 3), uint8, RGB.

        Raises:
            InputError: the image or its annotation is damaged, or their sizes differ.
        """
        image = read_image(image_file, "RGB")
        panels = []
        record = ground_truth_of(image_file, self._own_datasets)
        if record is not None:
            check_size(str(image_file), image, record)
            # What the model does not know is background to it.
            known = [
                each for each in record["annotations"] if each["category_id"] in self._categories
            ]
            metadata = _class_metadata(ALL_CATEGORIES)
            panels.append(
                draw_captioned("ground truth", image, {**record, "annotations": known}, metadata)
            )
        found = self(image_file) if instances is None else instances
        panels.append(draw_captioned_predictions(image, found, self.metadata, self._score_thresh))
        return side_by_side(panels, scene_mark(image_file))


def _class_metadata(categories: Sequence[int]) -> Metadata:
    """Name and colour classes, given by their contiguous ids among the official ones."""
    return Metadata(
        name="cityscapes",
        thing_classes=[THING_CLASSES[category] for category in categories],
        thing_colors=[THING_COLORS[category] for category in categories],
    )
