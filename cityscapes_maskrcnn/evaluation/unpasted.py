"""A model's predictions without the step that pastes every mask into a full frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances, ROIMasks
from torch import nn


class UnpastedInference(nn.Module):
    """A Mask R-CNN whose ``pred_masks`` stay as small as its mask head makes them.

    For :func:`detectron2.evaluation.inference_on_dataset` and an evaluator that understands it.
    Everything else about the output is as ever; boxes are in pixels of the original image.
    ``pred_masks`` is Detectron2's :class:`ROIMasks`, so that ``pred_masks.to_bitmasks(pred_boxes,
    height, width)`` pastes them after all.

    Args:
        model: see :func:`leave_masks_unpasted`.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model
        # Detectron2 puts a model back into the mode it found it in.
        self.training = model.training

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """Predict; input and output are Detectron2's."""
        results = self.model.inference(batched_inputs, do_postprocess=False)
        return [
            {
                "instances": to_image_scale(
                    instances,
                    image.get("height", instances.image_size[0]),
                    image.get("width", instances.image_size[1]),
                )
            }
            for instances, image in zip(results, batched_inputs, strict=True)
        ]


def leave_masks_unpasted(model: nn.Module) -> nn.Module:
    """Wrap a model so that it leaves its masks unpasted.

    Args:
        model: as trained, possibly inside DistributedDataParallel.

    Returns:
        The wrapped model; ``model`` itself if it is not one that can do so: other meta
        architectures, test-time augmentation, models without masks.
    """
    inner = getattr(model, "module", model)
    # A subclass with an inference of its own, such as PanopticFPN, gives something else.
    if not isinstance(inner, GeneralizedRCNN) or (
        type(inner).inference is not GeneralizedRCNN.inference
    ):
        return model
    return UnpastedInference(inner)


def to_image_scale(instances: Instances, height: int, width: int) -> Instances:
    """Bring boxes to the original image's scale by Detectron2's own function.

    Args:
        instances: a model's, not post-processed; changed in place.
        height: of the original image in pixels.
        width: of the original image in pixels.

    Returns:
        The instances inside the image, with ``pred_masks``, if there are any, as ROIMasks.
    """
    masks = instances.get_fields().get("pred_masks")
    if masks is None:
        return detector_postprocess(instances, height, width)
    # It would paste what it knows as masks. Under another name they only lose what is outside.
    instances.remove("pred_masks")
    instances.unpasted = masks if isinstance(masks, ROIMasks) else ROIMasks(masks[:, 0])
    result = detector_postprocess(instances, height, width)
    result.pred_masks = result.unpasted
    result.remove("unpasted")
    return result
