"""Reproducible runs on a GPU, bit for bit: the config key ``DETERMINISTIC``."""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.autograd.function import once_differentiable

from cityscapes_maskrcnn.utils.errors import InputError

# By its name: detectron2.layers has a function of the same name as the module.
ROI_ALIGN_MODULE = "detectron2.layers.roi_align"
#: Mask heads that sample features and ground truth at points.
POINT_HEADS: Final = ("PointRendMaskHead", "ImplicitPointRendMaskHead")
# Regions whose gradients are computed at once; 64 of 256 channels take 0.2 GB at 512 columns.
_CHUNK = 64


def make_deterministic(cfg: CfgNode) -> None:
    """Have this process compute equal numbers from equal inputs, if the config asks for it.

    torch then raises an error at an operation that cannot. Call it before anything is computed on
    a GPU.

    Args:
        cfg: reads ``DETERMINISTIC``, ``SEED``, ``CUDNN_BENCHMARK`` and what the mask head is.

    Raises:
        InputError: another key makes runs differ.
    """
    if not cfg.DETERMINISTIC:
        return
    if cfg.SEED < 0:
        raise InputError(f"DETERMINISTIC True: SEED {cfg.SEED} draws another one for every run")
    if cfg.CUDNN_BENCHMARK:
        raise InputError("DETERMINISTIC True: CUDNN_BENCHMARK True chooses algorithms by the clock")
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu and cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME in POINT_HEADS:
        raise InputError(
            f"DETERMINISTIC True: on a GPU the gradients of {cfg.MODEL.ROI_MASK_HEAD.NAME} are sums"
            " in any order, for which torch has no other way"
        )
    # Of the two sizes that NVIDIA names for reproducible results, the faster one.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # torchvision's own answer goes through every pixel for every region, also for ground-truth
    # masks of the whole image; Detectron2 finds the function by this name.
    importlib.import_module(ROI_ALIGN_MODULE).roi_align = deterministic_roi_align  # type: ignore[attr-defined]


def deterministic_roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool regions as :func:`torchvision.ops.roi_align`, whose gradients are summed in any order.

    Forward is torchvision's kernel. The weight of a pixel is a product of two of its row and its
    column, so the gradient of all regions is a sum of matrix products, which are reproducible.

    Args:
        features: shape (N, C, H, W).
        rois: index of the image and corners x0, y0, x1, y1; shape (K, 5).
        output_size: rows and columns of bins.
        spatial_scale: of the features to the coordinates of ``rois``.
        sampling_ratio: samples in a bin along each axis; 0: as many as it has pixels.
        aligned: whether coordinates are those of Detectron2's ROIAlignV2.

    Returns:
        Shape (K, C, *output_size).
    """
    pooled: Tensor = _ROIAlign.apply(
        features, rois, output_size, spatial_scale, sampling_ratio, aligned
    )
    return pooled


class _ROIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, rois: Tensor, *settings: Any) -> Tensor:
        (rows, columns), scale, sampling_ratio, aligned = settings
        ctx.save_for_backward(rois)
        ctx.shape, ctx.settings = features.shape, settings
        pooled: Tensor = torch.ops.torchvision.roi_align(
            features, rois, scale, rows, columns, sampling_ratio, aligned
        )
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        (rows, columns), scale, sampling_ratio, aligned = ctx.settings
        gradient = grad.new_zeros(ctx.shape)
        height, width = ctx.shape[2:]
        corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
        for image in rois[:, 0].unique().int().tolist():
            for chosen in (rois[:, 0] == image).nonzero().flatten().split(_CHUNK):
                x0, y0, x1, y1 = corners[chosen].unbind(1)
                down = _axis_weights(y0, y1, rows, height, sampling_ratio, aligned)
                right = _axis_weights(x0, x1, columns, width, sampling_ratio, aligned)
                across = torch.einsum("kcpq,kqx->kcpx", grad[chosen], right)
                gradient[image] += torch.einsum("kpy,kcpx->cyx", down, across)
        return gradient, None, None, None, None, None


def _axis_weights(
    start: Tensor, end: Tensor, bins: int, length: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Compute the weight of every pixel along one axis in every bin of torchvision's kernel.

    Args:
        start: of the regions, in pixels of the features; shape (K,).
        end: the same.
        bins: along the axis.
        length: of the axis, in pixels.
        sampling_ratio: as of :func:`deterministic_roi_align`.
        aligned: as of :func:`deterministic_roi_align`.

    Returns:
        Shape (K, bins, length).
    """
    size = end - start if aligned else (end - start).clamp(min=1.0)
    samples = size.new_full(size.shape, sampling_ratio)
    if sampling_ratio <= 0:
        samples = (size / bins).ceil()
    most = int(samples.max())
    number = torch.arange(most, device=size.device)
    samples = samples[:, None, None]
    within = (number + 0.5) / samples.clamp(min=1)
    bin_number = torch.arange(bins, device=size.device)[:, None]
    position = start[:, None, None] + (bin_number + within) * (size / bins)[:, None, None]
    counts = (number < samples) & (position >= -1) & (position <= length)
    pixels = torch.arange(length, device=size.device)
    distance = (position.clamp(0, length - 1)[..., None] - pixels).abs()
    weights = ((1 - distance).clamp(min=0) * counts[..., None]).sum(2)
    return weights / samples.clamp(min=1)
