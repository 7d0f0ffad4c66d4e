"""Convert Detectron2's Instances to predictions, without a full frame for every mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn

from cityscapes_maskrcnn.evaluation.image_scoring import CompactInstances
from cityscapes_maskrcnn.evaluation.instance_ap import ALL_CATEGORIES, Prediction
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap, occupied_span
from cityscapes_maskrcnn.modeling.matching import to_device
from cityscapes_maskrcnn.utils.errors import InputError


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
        sizes = [
            (
                image.get("height", instances.image_size[0]),
                image.get("width", instances.image_size[1]),
            )
            for instances, image in zip(results, batched_inputs, strict=True)
        ]
        return [{"instances": instances} for instances in to_image_scale(results, sizes)]


def leave_masks_unpasted(model: nn.Module) -> nn.Module:
    """Wrap a model so that it leaves its masks unpasted.

    Args:
        model: as trained, possibly inside DistributedDataParallel.

    Returns:
        The wrapped model; ``model`` itself if it cannot do so: other meta architectures, test-time
        augmentation, models without masks.
    """
    inner = getattr(model, "module", model)
    # A subclass with an inference of its own, such as PanopticFPN, gives something else.
    if not isinstance(inner, GeneralizedRCNN) or (
        type(inner).inference is not GeneralizedRCNN.inference
    ):
        return model
    return UnpastedInference(inner)


def to_image_scale(
    results: Sequence[Instances], sizes: Sequence[tuple[int, int]]
) -> list[Instances]:
    """Bring boxes to the original images' scale, with one synchronisation for all images.

    As Detectron2's ``detector_postprocess``, which waits for a GPU five times an image, except that
    masks are not pasted.

    Args:
        results: of every image a model's instances, not post-processed, with finite ``pred_boxes``.
        sizes: height and width of every original image in pixels.

    Returns:
        The instances inside their images, with ``pred_masks``, if there are any, as ROIMasks.
    """
    scaled = [
        _scaled(instances, height=height, width=width)
        for instances, (height, width) in zip(results, sizes, strict=True)
    ]
    inside = [instances.pred_boxes.nonempty() for instances in scaled]
    on_host = iter(torch.cat(inside).tolist()) if inside else iter(())
    found = []
    for instances in scaled:
        kept = [index for index in range(len(instances)) if next(on_host)]
        found.append(
            instances
            if len(kept) == len(instances)
            else instances[to_device(kept, instances.pred_boxes.device, torch.int64)]
        )
    return found


def _scaled(instances: Instances, *, height: int, width: int) -> Instances:
    """Scale and clip the boxes of an image, and the keypoints that some models predict."""
    fields = dict(instances.get_fields())
    scale_x, scale_y = width / instances.image_size[1], height / instances.image_size[0]
    boxes = fields["pred_boxes"].tensor.clone()
    boxes[:, 0::2].mul_(scale_x).clamp_(min=0, max=width)
    boxes[:, 1::2].mul_(scale_y).clamp_(min=0, max=height)
    fields["pred_boxes"] = Boxes(boxes)
    masks = fields.get("pred_masks")
    if isinstance(masks, torch.Tensor):
        fields["pred_masks"] = ROIMasks(masks[:, 0])
    if "pred_keypoints" in fields:
        keypoints = fields["pred_keypoints"].clone()
        keypoints[:, :, 0] *= scale_x
        keypoints[:, :, 1] *= scale_y
        fields["pred_keypoints"] = keypoints
    return Instances((height, width), **fields)


def compact_instances(
    instances: Instances, categories: Sequence[int] = ALL_CATEGORIES, with_masks: bool = True
) -> CompactInstances:
    """Bring Detectron2's predictions of one image to main memory, without full frames.

    Args:
        instances: on any device, with ``pred_masks`` (N, height, width) or :class:`ROIMasks`,
            ``pred_classes``, ``scores`` and, if the model has them, ``pred_boxes``.
        categories: by class of the model, the contiguous id (0 to 7) among the 8 official classes.
        with_masks: False leaves the masks out, if there are any; then there must be boxes.

    Raises:
        InputError: there are no masks, or a class that ``categories`` does not have.
    """
    classes = instances.pred_classes.tolist()
    unknown = [index for index in classes if index not in range(len(categories))]
    if unknown:
        raise InputError(
            f"a prediction has the class {unknown[0]}; the dataset has {len(categories)}, counted"
            f" from 0: set MODEL.ROI_HEADS.NUM_CLASSES {len(categories)}"
        )
    if with_masks and not instances.has("pred_masks"):
        raise InputError("the model predicts no masks; set MODEL.MASK_ON True to score them")
    masks = instances.pred_masks if with_masks else None
    size: tuple[int, ...] = tuple(instances.image_size)
    compact: Any = None
    if masks is None:
        pass
    elif isinstance(masks, ROIMasks):
        compact = masks.tensor.float().cpu().numpy()
    elif masks.device.type == "cpu":
        # PyTorch's any takes ten times as long as NumPy's on a CPU.
        size, compact = tuple(masks.shape[1:]), list(map(mask_from_bitmap, masks.bool().numpy()))
    else:
        size, compact = tuple(masks.shape[1:]), masks_from_device(masks.bool())
    return CompactInstances(
        size=(size[0], size[1]),
        categories=[categories[index] for index in classes],
        scores=instances.scores.tolist(),
        boxes=(
            instances.pred_boxes.tensor.float().cpu().numpy()
            if instances.has("pred_boxes")
            else None
        ),
        masks=compact,
    )


def instances_to_predictions(
    instances: Instances, height: int, width: int, categories: Sequence[int] = ALL_CATEGORIES
) -> list[Prediction]:
    """Turn Detectron2's predictions of one image into this project's.

    Args:
        instances: see :func:`compact_instances`.
        height: of the image in pixels.
        width: of the image in pixels.
        categories: see :func:`compact_instances`.

    Raises:
        InputError: see :func:`compact_instances`; or the masks have another size.
    """
    return compact_instances(instances, categories).predictions(height, width)


def masks_from_device(masks: torch.Tensor) -> list[RunMask]:
    """List the runs of N masks, shape (N, height, width), bool, on any device.

    Only the boxes' insides travel to main memory, not 2 MB a mask.
    """
    rows = masks.any(dim=2).cpu().numpy()
    columns = masks.any(dim=1).cpu().numpy()
    height, width = masks.shape[1:]
    result = []
    for mask, row, column in zip(masks, rows, columns, strict=True):
        (y0, y1), (x0, x1) = occupied_span(row), occupied_span(column)
        inside = mask[y0:y1, x0:x1].cpu().numpy()
        result.append(mask_from_bitmap(inside, x0=x0, y0=y0, height=height, width=width))
    return result
