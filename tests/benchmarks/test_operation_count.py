"""Operations for which a GPU makes the host wait, counted on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter

VALUES = torch.tensor([1.0, 2.0, 3.0])
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])


@pytest.mark.parametrize(
    ("work", "waiting"),
    [
        (lambda: VALUES + VALUES, {}),
        (lambda: VALUES[1:], {}),
        (lambda: VALUES[torch.arange(2)], {}),
        (lambda: torch.where(VALUES > 1, VALUES, 0), {}),
        (lambda: VALUES.sum().item(), {"aten::_local_scalar_dense": 1}),
        (lambda: bool((VALUES > 0).all()), {"aten::_local_scalar_dense": 1}),
        (lambda: torch.where(VALUES > 1), {"aten::nonzero": 1}),
        (lambda: VALUES[VALUES > 1], {"aten::index": 1}),
        (lambda: VALUES.clone().masked_fill_(VALUES > 1, 0), {}),
        (lambda: VALUES.clone().__setitem__(VALUES > 1, 0.0), {"aten::index_put_": 1}),
        (lambda: VALUES.unique(), {"aten::_unique2": 1}),
        (lambda: nms(BOXES, VALUES, 0.5), {"torchvision::nms": 1}),
        (lambda: VALUES.tolist(), {"Tensor.tolist": 1}),
        (lambda: VALUES.cpu(), {"Tensor.cpu": 1}),
        (lambda: VALUES.to("cpu"), {"Tensor.to": 1}),
        (lambda: VALUES.to(torch.float64), {}),
        (lambda: torch.tensor([1, 2], device="cpu"), {"Tensor.tensor": 1}),
    ],
)
def test_what_waits(work: Callable[[], object], waiting: dict[str, int]) -> None:
    with OperationCounter() as counter:
        work()
    assert counter.waiting == waiting


def test_operations_of_autograd_count_too() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    with OperationCounter() as counter:
        (weight @ VALUES).sum().backward()
    assert counter.operations["aten::mv"] == 1
    # d(w @ v)/dw is the outer product of the gradient, ones of shape (2,), and v.
    assert isinstance(weight.grad, Tensor)
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    assert sum(counter.operations.values()) > 2
