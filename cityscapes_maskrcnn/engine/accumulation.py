"""Compute the gradients of a batch from those of its micro-batches: ``SOLVER.ACCUMULATE``.

A mean over a batch is not the mean of the means over its micro-batches where what is averaged
differs in number. Of the losses of a Mask R-CNN, those of the RPN are means over images, those of
the box head over the sampled regions, those of mask heads over the regions with an object, but for
one of PatchDCT's over patches on a border; the loss of a semantic head is one over labelled pixels.
So each micro-batch's loss gets the share that its images, regions, patches or pixels have in the
whole batch's, and the sum is the batch's loss.

How many regions are sampled shows only after a forward pass, and all numbers must be known before
the first gradient: with ``SOLVER.ACCUMULATE_EXACTLY`` all micro-batches but the first go through
the model once more before, and draw the same regions each time. Their images are padded
as those of the whole batch are.

What is left that differs from the whole batch is which regions are drawn, as with another seed,
and what live BatchNorm normalises by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN
from detectron2.structures import ImageList
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from cityscapes_maskrcnn.engine.dry_run import dry_run
from cityscapes_maskrcnn.modeling.step_metrics import collect_step_metrics
from cityscapes_maskrcnn.utils.errors import InputError

#: What a micro-batch has how many of; tensors, where that is known on the model's device only.
Counts = dict[str, "float | Tensor"]

# What losses are means over; all others are means over images.
_AVERAGED_OVER: Final = {
    "loss_cls": "regions",
    "loss_box_reg": "regions",
    "loss_distill_classes": "regions",
    "loss_mask": "objects",
    "loss_mask_point": "objects",
    "loss_mask_patch_kind": "objects",
    "loss_mask_patch_dct": "patches",
    "loss_sem_seg": "pixels",
}


def check_accumulation(cfg: CfgNode) -> None:
    """Verify that a batch can be divided into micro-batches.

    Raises:
        InputError: they would be of different sizes.
    """
    parts, total, processes = cfg.SOLVER.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if parts > 1 and total % (processes * parts):
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {total} cannot be divided into SOLVER.ACCUMULATE {parts} equal "
            f"micro-batches in {processes} process{'es' if processes > 1 else ''}"
        )


def split_batch(batch: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Split a batch into micro-batches, in order; none is empty, so there may be fewer."""
    parts = min(parts, len(batch))
    ends = [len(batch) * number // parts for number in range(parts + 1)]
    return [batch[start:end] for start, end in pairwise(ends)]


@contextmanager
def padded_as_batch(model: nn.Module, batch: Sequence[Any]) -> Iterator[None]:
    """Pad images in a ``with`` block to the largest of a batch, as if they were all together.

    Anchors in the padding take part in the losses of an RPN, and layers look beyond its border.

    Args:
        model: images of a :class:`GeneralizedRCNN` are padded; others' stay as they are.
        batch: with ``image``, (C, H, W).
    """
    sizes = {tuple(each["image"].shape[-2:]) for each in batch} if _is_detector(model) else set()
    if len(sizes) < 2:
        yield
        return
    detector: Any = model
    preprocess, divisor = detector.preprocess_image, max(detector.backbone.size_divisibility, 1)
    height, width = (math.ceil(max(side) / divisor) * divisor for side in zip(*sizes, strict=True))

    def preprocess_and_pad(part: Sequence[Any]) -> ImageList:
        images = preprocess(part)
        beside = max(0, width - images.tensor.shape[-1])
        below = max(0, height - images.tensor.shape[-2])
        return ImageList(F.pad(images.tensor, (0, beside, 0, below)), images.image_sizes)

    detector.preprocess_image = preprocess_and_pad
    try:
        yield
    finally:
        del detector.preprocess_image


def _is_detector(model: nn.Module) -> bool:
    """Whether a model is a detector and nothing else: PanopticFPN pads its labels by itself."""
    return isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN)


class LossShares:
    """The share of each micro-batch's losses in those of the whole batch.

    Use it as an iterator: it seeds the generators before each micro-batch, as they were seeded when
    it was counted.

    Args:
        model: not wrapped by DistributedDataParallel, in training mode.
        parts: the micro-batches.
        note: called with a micro-batch before it goes through the model.
        exactly: count what the losses are means over; otherwise images alone, and the gradients are
            those that DistributedDataParallel makes of as many processes.

    Attributes:
        counts: by micro-batch how many images, pixels, regions, objects and patches it has.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Sequence[Any]],
        *,
        exactly: bool,
        note: Callable[[Sequence[Any]], object],
    ) -> None:
        self._model = model
        self._parts = parts
        self._note = note
        self._ignored = getattr(getattr(model, "sem_seg_head", None), "ignore_value", None)
        self._exactly = exactly
        self.counts: list[Counts] = [self._count(part) for part in parts]
        self._samples_regions = exactly and isinstance(model, GeneralizedRCNN)
        if self._samples_regions:
            # Drawn from the CPU's generator, which costs a GPU no waiting.
            self._seed = int(torch.randint(1 << 62, ()))
            self.counts[1:] = [
                self.counts[number] | self._sampled(model, number)
                for number in range(1, len(parts))
            ]

    def __iter__(self) -> Iterator[Sequence[Any]]:
        for number, part in enumerate(self._parts):
            self._note(part)
            if self._samples_regions:
                torch.manual_seed(self._seed + number)
            yield part

    def weigh(self, number: int, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the losses of micro-batch ``number`` by their shares, right after its pass."""
        if self._samples_regions and not number:
            self.counts[0] = self.counts[0] | _regions(
                self._model, get_event_storage(), self._parts[0]
            )
        return {name: loss * self._share(number, name) for name, loss in losses.items()}

    def _share(self, number: int, loss: str) -> float | Tensor:
        kind = _AVERAGED_OVER.get(loss, "images")
        if kind not in self.counts[number]:
            kind = "images"
        total = sum(counts[kind] for counts in self.counts)
        # Where there is nothing to be averaged, the loss is 0.
        return self.counts[number][kind] / (
            total.clamp(min=1) if isinstance(total, Tensor) else max(total, 1)
        )

    def _count(self, part: Sequence[Any]) -> Counts:
        counts: Counts = {"images": len(part)}
        if self._exactly and self._ignored is not None:
            counts["pixels"] = sum((each["sem_seg"] != self._ignored).sum() for each in part)
        return counts

    def _sampled(self, model: nn.Module, number: int) -> Counts:
        part = self._parts[number]
        self._note(part)
        # No torch.no_grad(): what is compiled, or keeps folded weights, must compute what training
        # does, to the last bit.
        with dry_run(model) as storage:
            torch.manual_seed(self._seed + number)
            model(part)
            return _regions(model, storage, part)


def _regions(model: nn.Module, storage: EventStorage, part: Sequence[Any]) -> Counts:
    """Get how many regions were sampled, from the means over images that RoI heads report.

    PatchDCT's patches stay on the device.
    """
    names = ("roi_head/num_fg_samples", "roi_head/num_bg_samples")
    latest = storage.latest()
    if not all(name in latest for name in names):
        return {}
    objects, background = (round(latest[name][0] * len(part)) for name in names)
    counts: Counts = {"objects": objects, "regions": objects + background}
    mixed = collect_step_metrics(model).get("patch_dct/num_mixed_patches")
    if mixed is not None:
        counts["patches"] = (mixed * len(part)).round()
    return counts
