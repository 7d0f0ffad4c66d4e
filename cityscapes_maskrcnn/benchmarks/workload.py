"""Work for both systems: street-like batches in memory, and the same tamed random weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.utils.errors import InputError

Batch = list[dict[str, Any]]

# Detectron2's own classes; the rest of a config is the same for both systems.
STOCK = (
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "RPN",
    "MODEL.ROI_HEADS.NAME",
    "StandardROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
)
CHANNELS_LAST = ("MODEL.CHANNELS_LAST", "True")
_INSTANCES, _VERTICES = 16, 40  # per image, per instance: usual numbers of Cityscapes


def check_machine(small: bool) -> None:
    """Verify that a benchmark of full-size images has a GPU to run on.

    Raises:
        InputError: it has none.
    """
    if not small and not torch.cuda.is_available():
        raise InputError("images of full size need a GPU: add --small on this machine")


def config_of(config_file: str, *opts: str) -> CfgNode:
    """Read a config for a benchmark: no weights, no data, one fixed seed, plain SGD."""
    fixed = ("MODEL.WEIGHTS", "", "SEED", "0", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1e-4")
    device = ("MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    cfg = build_config(config_file, [*fixed, *device, *opts])
    cfg.freeze()
    return cfg


def random_weights(config_file: str) -> dict[str, Tensor]:
    """Draw weights with which a network of random layers does not overflow.

    The last normalisation of each residual block is scaled to 0.2: otherwise the features grow
    with each block, as normalisation with frozen statistics does not bring them back.

    Args:
        config_file: of a Mask R-CNN with a ResNet.

    Returns:
        A state dict, on the CPU.
    """
    torch.manual_seed(0)
    cfg = config_of(config_file, *STOCK, "MODEL.DEVICE", "cpu")
    state = build_model(cfg).state_dict()
    for name, tensor in state.items():
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.2)
    return dict(state)


def set_weights(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Give a model weights, all of them, and return it."""
    model.load_state_dict(state)
    return model


def draw_batches(count: int, batch_size: int, height: int, width: int) -> list[Batch]:
    """Draw training batches: noise with a slow gradient, and star-shaped instances.

    Args:
        count: of batches.
        batch_size: images in each.
        height: of all images, in pixels.
        width: the same.

    Returns:
        What Detectron2's mapper makes: ``image`` (3, height, width), uint8, and ``instances`` with
        boxes, classes and polygons.
    """
    random = np.random.default_rng(0)
    slope = np.linspace(40, 200, height)[None, :, None]

    def image() -> Tensor:
        noise = random.normal(0, 12, (3, height, width))
        pixels = torch.as_tensor(np.clip(slope + noise, 0, 255).astype(np.uint8))
        return pixels.pin_memory() if torch.cuda.is_available() else pixels

    def instances() -> Instances:
        outlines = [_outline(random, height, width) for _ in range(_INSTANCES)]
        corners = [(*each.min(axis=0), *each.max(axis=0)) for each in outlines]
        drawn = Instances((height, width))
        drawn.gt_boxes = Boxes(torch.as_tensor(np.array(corners), dtype=torch.float32))
        drawn.gt_classes = torch.as_tensor(random.integers(0, 8, _INSTANCES))
        drawn.gt_masks = PolygonMasks([[each.reshape(-1)] for each in outlines])
        return drawn

    return [
        [
            {"image": image(), "instances": instances(), "height": height, "width": width}
            for _ in range(batch_size)
        ]
        for _ in range(count)
    ]


def flat_polygons(batches: list[Batch]) -> list[Batch]:
    """Copy batches with their polygons as this project's loader gives them."""

    def flat(image: dict[str, Any]) -> dict[str, Any]:
        fields = image["instances"].get_fields()
        masks = FlatPolygons.from_polygons(fields["gt_masks"].polygons)
        instances = Instances(image["instances"].image_size, **{**fields, "gt_masks": masks})
        return {**image, "instances": instances}

    return [[flat(image) for image in batch] for batch in batches]


def endless_loader(batches: list[Batch]) -> DataLoader[Batch]:
    """Give the same batches again and again, without work of the loader's own."""
    return DataLoader(_Endless(batches), batch_size=None, collate_fn=lambda batch: batch)


class _Endless(IterableDataset[Batch]):
    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return itertools.cycle(self._batches)


def _outline(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The corners (x, y) of a star-shaped object, in pixels; its size is 1 to 20 % of the image."""
    size = height * np.exp(random.uniform(np.log(0.01), np.log(0.2)))
    centre = random.uniform([0.1 * width, 0.3 * height], [0.9 * width, 0.8 * height])
    angles = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    radii = size * random.uniform(0.7, 1.0, _VERTICES)
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip(corners, 0, [width - 1, height - 1])
