from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.modeling import pooling
from cityscapes_maskrcnn.modeling.determinism import ROI_ALIGN_MODULE, deterministic_roi_align
from cityscapes_maskrcnn.modeling.pooling import BatchedROIPooler, pool_at_exact_boxes, pool_regions

STRIDES = (4, 8, 16, 32)


def settings(
    strides: tuple[int, ...] = STRIDES, kind: str = "ROIAlignV2", size: int = 7
) -> dict[str, Any]:
    return {
        "output_size": size,
        "scales": [1 / stride for stride in strides],
        "sampling_ratio": 0,
        "pooler_type": kind,
    }


def pyramid(images: int, strides: tuple[int, ...] = STRIDES) -> list[Tensor]:
    """Features of images of 256 x 512 pixels, the newest ones that need gradients."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(images, 5, 256 // stride, 512 // stride, generator=generator).requires_grad_()
        for stride in strides
    ]


def random_boxes(number: int, seed: int) -> Boxes:
    """Boxes of all sizes, some of which leave the image."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(number, 2, generator=generator) * torch.tensor([512.0, 256.0])
    size = 4 * torch.exp(5 * torch.rand(number, 2, generator=generator))
    return Boxes(torch.cat([center - size / 2, center + size / 2], dim=1))


SMALL = Boxes(torch.tensor([[10.0, 20.0, 30.0, 35.0], [400.5, 200.25, 431.0, 233.0]]))
NONE = Boxes(torch.zeros(0, 4))


@pytest.mark.parametrize(
    "boxes",
    [
        [random_boxes(60, seed=0), random_boxes(40, seed=2), random_boxes(1, seed=3)],
        [SMALL],  # of level p2 alone
        [NONE, SMALL],
        [random_boxes(30, seed=4), NONE],
        [NONE, NONE],
    ],
    ids=["all levels", "empty levels", "empty image", "empty last image", "no boxes"],
)
@pytest.mark.parametrize(
    ("strides", "kind"),
    [(STRIDES, "ROIAlignV2"), (STRIDES, "ROIAlign"), (STRIDES, "ROIPool"), ((16,), "ROIAlignV2")],
)
def test_equals_detectron2(boxes: list[Boxes], strides: tuple[int, ...], kind: str) -> None:
    # ROIPool's kernel takes boxes in float32 alone.
    dtype = torch.float32 if kind == "ROIPool" else torch.float64
    features = [each.detach().to(dtype).requires_grad_() for each in pyramid(len(boxes), strides)]
    results = []
    for pooler_class in (ROIPooler, BatchedROIPooler):
        pooled = pooler_class(**settings(strides, kind))(features, boxes)
        weights = torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape)
        results.append((pooled, *torch.autograd.grad((pooled * weights).sum(), features)))
    assert results[0][0].shape == (sum(map(len, boxes)), 5, 7, 7)
    for expected, actual in zip(*results, strict=True):
        if kind == "ROIPool":
            assert torch.equal(expected, actual)
        else:  # on a CPU up to rounding
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_boxes_without_an_area_to_choose_a_level_by_give_zeros() -> None:
    exchanged = [30.0, 20.0, 10.0, 35.0]
    boxes = [
        SMALL,
        Boxes(
            torch.tensor([exchanged, [100.0, 20.0, 300.0, 200.0], [torch.nan, 20.0, 300.0, 90.0]])
        ),
    ]
    features = pyramid(2)
    pooled = BatchedROIPooler(**settings())(features, boxes)
    expected = ROIPooler(**settings())(features, boxes)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    assert pooled.flatten(1).any(dim=1).tolist() == [True, True, False, True, False]


def test_heads_share_one_pass() -> None:
    features = pyramid(2)
    box_pooler = BatchedROIPooler(**settings())
    mask_pooler = BatchedROIPooler(**settings(size=14))
    boxes = [random_boxes(40, seed=0), random_boxes(30, seed=2)]
    fewer = [each[:5] for each in boxes]
    with OperationCounter() as count:
        pooled = pool_regions(features, [box_pooler, mask_pooler], [boxes, fewer])
    assert count.waiting.total() == 1  # for the numbers of boxes of every level and head
    assert torch.equal(pooled[0], box_pooler(features, boxes))
    assert torch.equal(pooled[1], mask_pooler(features, fewer))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_boxes_stay_exact(precision: torch.dtype, autocast: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    features = [
        torch.rand(1, 3, *size, generator=generator).to(precision)
        for size in ((64, 512), (32, 256))
    ]
    # As far right as in an image of Cityscapes, where bfloat16 knows multiples of 8 only.
    boxes = [Boxes(torch.tensor([[2003.3, 101.7, 2041.9, 187.2], [1500.1, 9.9, 1790.6, 250.0]]))]
    stock = ROIPooler(**settings((4, 8)))
    model = nn.Sequential(stock, BatchedROIPooler(**settings((4, 8))))
    in_float32 = [feature.float() for feature in features]
    exact = stock(in_float32, boxes)
    rounded = stock(in_float32, [Boxes(each.tensor.to(precision).float()) for each in boxes])
    with torch.autocast("cpu", precision, enabled=autocast):
        pooled = BatchedROIPooler(**settings((4, 8)))(features, boxes)
    # The result is rounded once, at its end.
    tolerance = torch.finfo(precision).eps
    torch.testing.assert_close(pooled.float(), exact, rtol=tolerance, atol=0)
    assert (rounded - exact).abs().max() > 0.01
    # So do those of Detectron2's own poolers, which then give float32.
    for _ in range(2):
        assert pool_at_exact_boxes(model) is model
    assert len(stock._forward_pre_hooks) == 1
    with torch.autocast("cpu", precision, enabled=autocast):
        assert torch.equal(stock(features, boxes), exact)
        assert torch.equal(stock(in_float32, boxes), exact)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest float32 tensor that an operation makes, in bytes."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_levels_are_converted_some_channels_at_a_time(
    monkeypatch: pytest.MonkeyPatch, memory_format: torch.memory_format
) -> None:
    features = [
        each.detach().bfloat16().contiguous(memory_format=memory_format).requires_grad_()
        for each in pyramid(2)
    ]
    poolers = [BatchedROIPooler(**settings()), BatchedROIPooler(**settings(size=14))]
    boxes = [random_boxes(4, seed=0), random_boxes(3, seed=2)]
    results = []
    finest = 2 * features[0].nbytes
    for most, largest in ((finest, finest), (finest // 2, finest // 5 * 2)):
        monkeypatch.setattr(pooling, "_MOST_BYTES", most)
        with LargestTensor() as made:
            pooled = pool_regions(features, poolers, [boxes, boxes])
            gradients = [torch.ones_like(each) for each in pooled]
            results.append((*pooled, *torch.autograd.grad(pooled, features, gradients)))
        assert made.nbytes == largest
    for whole, parts in zip(*results, strict=True):
        assert torch.equal(whole, parts)


def test_memory_layout_does_not_matter() -> None:
    features = pyramid(1)
    last = [each.contiguous(memory_format=torch.channels_last) for each in features]
    pooler = BatchedROIPooler(**settings())
    boxes = [random_boxes(20, seed=5)]
    assert torch.equal(pooler(last, boxes), pooler(features, boxes))


def test_deterministic_gradients_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the layers of all levels, which pool on GPUs; on a CPU Detectron2's pooler calls them."""
    features = pyramid(1)
    pooler = ROIPooler(**settings())
    boxes = [random_boxes(9, seed=6)]
    expected = torch.autograd.grad(pooler(features, boxes).square().sum(), features)
    calls = []

    def noted(*args: Any) -> Tensor:
        calls.append(args[3])
        return deterministic_roi_align(*args)

    monkeypatch.setattr(importlib.import_module(ROI_ALIGN_MODULE), "roi_align", noted)
    actual = torch.autograd.grad(pooler(features, boxes).square().sum(), features)
    assert calls == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_pools_on_which_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def noted(features: Tensor, rois: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        devices.append(features.device.type)
        return features.new_zeros(len(rois), 5, 7, 7)

    monkeypatch.setattr(importlib.import_module(ROI_ALIGN_MODULE), "roi_align", noted)
    # "meta" stands for a GPU: all that is not a CPU.
    (feature,) = (each.to("meta") for each in pyramid(1, (16,)))
    BatchedROIPooler(**settings((16,)))([feature], [Boxes(SMALL.tensor.to("meta"))])
    assert devices == ["meta"]
    monkeypatch.setattr(pooling, "cpu_roi_align", noted)
    features = pyramid(1)
    poolers = [BatchedROIPooler(**settings()) for _ in range(2)]
    boxes = [random_boxes(9, seed=6)]
    pool_regions(features, poolers, [boxes, boxes])
    assert devices[1:] == ["cpu"] * 2 * len(features)


def test_keeps_no_features_for_the_backward_pass() -> None:
    features = pyramid(1)
    pooler = BatchedROIPooler(**settings())
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        pooled = pooler(features, [random_boxes(20, seed=5)])
    # The regions, 5 numbers each, level by level, and their order: no features.
    assert saved
    assert max(tensor.numel() for tensor in saved) <= 5 * len(pooled) < pooled.numel()


def test_keeps_the_interface_of_detectron2() -> None:
    pooler = BatchedROIPooler(**settings())
    assert isinstance(pooler, ROIPooler)
    assert pooler.state_dict().keys() == ROIPooler(**settings()).state_dict().keys()
