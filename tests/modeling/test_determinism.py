from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torchvision.ops import roi_align

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.modeling.determinism import (
    ROI_ALIGN_MODULE,
    deterministic_roi_align,
    make_deterministic,
)
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def _own_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the switch changes in this process."""
    monkeypatch.setattr(importlib.import_module(ROI_ALIGN_MODULE), "roi_align", roi_align)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_own_switches")
def test_the_switch() -> None:
    make_deterministic(build_config("", []))
    assert not torch.are_deterministic_algorithms_enabled()
    make_deterministic(build_config("", ["DETERMINISTIC", "True", "SEED", "1"]))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert importlib.import_module(ROI_ALIGN_MODULE).roi_align is deterministic_roi_align


@pytest.mark.usefixtures("_own_switches")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("SEED -1", "DETERMINISTIC True: SEED -1 draws another one"),
        ("SEED 1 CUDNN_BENCHMARK True", "DETERMINISTIC True: CUDNN_BENCHMARK True chooses"),
    ],
)
def test_keys_that_contradict_it(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_deterministic(build_config("", ["DETERMINISTIC", "True", *options.split()]))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("regions", [150, 0])
def test_regions_and_their_gradients_are_torchvisions(
    sampling_ratio: int, aligned: bool, regions: int
) -> None:
    generator = torch.Generator().manual_seed(regions)
    features = torch.randn(3, 5, 14, 23, generator=generator).requires_grad_()
    # Over the borders too, some with less than a pixel or no area, in images 0 and 2.
    corners = torch.rand(regions, 4, generator=generator) * 130 - 15
    corners = torch.cat([corners[:, :2].minimum(corners[:, 2:]), corners[:, 2:]], dim=1)
    corners[:5, 2:] = corners[:5, :2] + torch.tensor([0.0, 0.5])
    images = torch.randint(2, (regions, 1), generator=generator) * 2.0
    rois = torch.cat([images, corners], dim=1)
    weights = torch.randn(regions, 5, 7, 4, generator=generator)

    def run(function: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = function(features, rois, (7, 4), 0.25, sampling_ratio, aligned)
        (gradient,) = torch.autograd.grad((pooled * weights).sum(), features)
        return pooled, gradient

    pooled, gradient = run(deterministic_roi_align)
    expected, expected_gradient = run(roi_align)
    assert torch.equal(pooled, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    assert bool(gradient.any()) == bool(regions)
