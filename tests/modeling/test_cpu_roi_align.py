"""Pooling on CPUs against torchvision's kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from cityscapes_maskrcnn.modeling.cpu_roi_align import cpu_roi_align


def random_rois(number: int, num_images: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Regions of all sizes and shapes in images of 256x512 pixels, some of which leave them."""
    generator = torch.Generator().manual_seed(number)
    center = torch.rand(number, 2, generator=generator) * torch.tensor([512.0, 256.0])
    size = 2 * torch.exp(5.5 * torch.rand(number, 2, generator=generator))
    images = torch.randint(num_images, (number, 1), generator=generator)
    return torch.cat([images, center - size / 2, center + size / 2], dim=1).to(dtype)


OUTSIDE = torch.tensor(
    [
        [0, -500, -300, -400, -200],
        [0, 600, 10, 700, 90],
        [0, -3.9, -3.9, 515.9, 259.9],  # by less than a pixel of the features
        [0, 511, 255, 512, 256],
        [0, 0, 0, 0, 0],
        [0, 90, 80, 30, 20],  # exchanged corners
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("rois", "shape", "scale", "output_size"),
    [
        (random_rois(90, 3), (3, 5, 64, 128), 1 / 4, (7, 7)),
        (random_rois(30, 1), (1, 2, 64, 128), 1 / 4, (3, 14)),
        (random_rois(20, 2), (2, 1, 8, 16), 1 / 32, (7, 7)),
        (random_rois(5, 1), (1, 3, 1, 1), 1 / 256, (2, 2)),
        (OUTSIDE, (1, 4, 64, 128), 1 / 4, (7, 7)),
        (OUTSIDE[:0], (2, 4, 6, 7), 1 / 4, (7, 7)),
    ],
    ids=["pyramid's finest level", "few columns", "coarse level", "one pixel", "outside", "none"],
)
def test_equals_torchvision(
    rois: Tensor,
    shape: tuple[int, ...],
    scale: float,
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> None:
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    results = []
    for function in (roi_align, cpu_roi_align):
        pooled = function(features, rois, output_size, scale, sampling_ratio, aligned)
        weights = torch.linspace(-1, 1, pooled.numel(), dtype=torch.float64).reshape(pooled.shape)
        results.append((pooled, *torch.autograd.grad((pooled * weights).sum(), features)))
    assert results[1][0].shape == (len(rois), shape[1], *output_size)
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling_ratio", [3, 5, 6])
def test_samples_at_the_borders(sampling_ratio: int, dtype: torch.dtype) -> None:
    """One pixel outside of the features is the last place where a sample counts."""
    features = 1 + torch.rand(1, 1, 8, 10, generator=torch.Generator().manual_seed(2), dtype=dtype)
    rois = []
    for size in torch.arange(1, 40, dtype=dtype) / 3:
        # The first sample at -1, or the last one at the features' width or height.
        before = -0.5 - size / sampling_ratio / 2
        rois.append([0, before, before, before + size, before + size])
        behind = [length + 0.5 + size / sampling_ratio / 2 for length in (10, 8)]
        rois.append([0, *(end - size for end in behind), *behind])
    regions = torch.tensor(rois, dtype=dtype)
    results = [
        function(features, regions, (1, 1), 1.0, sampling_ratio, True)
        for function in (roi_align, cpu_roi_align)
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


def test_float32_equals_torchvision_up_to_rounding() -> None:
    rois = random_rois(200, 2, torch.float32)
    features = torch.randn(2, 8, 64, 128, generator=torch.Generator().manual_seed(1))
    pooled = cpu_roi_align(features, rois, (7, 7), 1 / 4, 0, True)
    assert pooled.dtype == torch.float32
    expected = roi_align(features, rois, (7, 7), 1 / 4, 0, True)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_regions_that_are_not_finite_give_zeros(
    value: float, sampling_ratio: int, aligned: bool
) -> None:
    rois = random_rois(3, 1)
    rois[1, 3] = value
    features = torch.ones(1, 2, 64, 128, dtype=torch.float64)
    pooled = cpu_roi_align(features, rois, (7, 7), 1 / 4, sampling_ratio, aligned)
    assert pooled.flatten(1).any(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_results_depend_neither_on_threads_nor_on_the_layout(num_threads: int) -> None:
    rois = random_rois(60, 2, torch.float32)
    features = torch.randn(2, 16, 64, 128, generator=torch.Generator().manual_seed(1))
    results = []
    before = torch.get_num_threads()
    try:
        for threads, layout in ((2, torch.contiguous_format), (num_threads, torch.channels_last)):
            torch.set_num_threads(threads)
            leaf = features.contiguous(memory_format=layout).requires_grad_()
            pooled = cpu_roi_align(leaf, rois, (7, 7), 1 / 4, 0, True)
            results.append((pooled, *torch.autograd.grad(pooled.square().sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_only_gradients_of_features_are_computed() -> None:
    features = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    rois = random_rois(4, 1).requires_grad_()
    cpu_roi_align(features, rois, (2, 2), 1 / 32, 0, True).sum().backward()
    assert features.grad is not None
    assert rois.grad is None
