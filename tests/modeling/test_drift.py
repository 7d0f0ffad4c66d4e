from __future__ import annotations

import math
from dataclasses import astuple

import pytest
import torch

from cityscapes_maskrcnn.modeling.deeplab_weights import deeplab_shapes
from cityscapes_maskrcnn.modeling.drift import (
    drift_to_csv,
    format_drift,
    format_percent,
    measure_drift,
)
from cityscapes_maskrcnn.utils.errors import InputError


def constant_state(convolution=2.0, norm=1.0, statistic=4.0, depth=50):
    """A ResNet of three numbers; it takes no memory."""
    state = {}
    for name, shape in deeplab_shapes(depth=depth).items():
        value = convolution if ".norm." not in name else statistic if "running" in name else norm
        state[name] = torch.tensor(value).expand(shape)
    return state


def test_everything_moved_by_a_known_share():
    # 2 -> 2.5 is 25 %, 1 -> 0.9 is 10 %, 4 -> 10 is 150 %.
    drift = measure_drift(constant_state(), constant_state(2.5, 0.9, 10.0))
    assert [row.group for row in drift] == ["stem", "res2", "res3", "res4", "res5", "backbone"]
    for row in drift:
        assert row.convolutions == pytest.approx(0.25)
        assert row.norms == pytest.approx(0.1)
        assert row.statistics == pytest.approx(1.5)
    # 64 x 3 x 7 x 7 weights of the stem's convolution; 64 weights and 64 biases of BatchNorm.
    assert drift[0].num_parameters == 9408 + 128
    # 9,408 x 0.5^2 + 128 x 0.1^2 of 9,408 x 2^2 + 128 x 1^2.
    expected = math.sqrt((9408 * 0.25 + 128 * 0.01) / (9408 * 4 + 128))
    assert drift[0].parameters == pytest.approx(expected)
    # What torchvision says of resnet50, less its classifier: 25,557,032 - 2048 x 1000 - 1000.
    assert drift[-1].num_parameters == 23508032


def test_one_tensor_moves_its_group_and_the_whole():
    start = constant_state()
    end = {**start, "res3.1.conv2.weight": torch.tensor(2.2).expand(128, 128, 3, 3)}
    drift = {row.group: row for row in measure_drift(start, end)}
    for group in ("stem", "res2", "res4", "res5"):
        assert astuple(drift[group])[2:] == (0, 0, 0, 0)
    # 1,219,584 parameters in res3. Its 13 BatchNorms are of 128 channels (8), 512 (5): 3,584
    # channels, 7,168 parameters; the others belong to convolutions.
    convolutions = 1219584 - 7168
    moved = 128 * 128 * 9 * 0.2**2
    assert drift["res3"].convolutions == pytest.approx(math.sqrt(moved / (convolutions * 4)))
    length = convolutions * 4 + 7168 * 1
    assert drift["res3"].parameters == pytest.approx(math.sqrt(moved / length))
    assert drift["res3"].norms == drift["res3"].statistics == 0
    assert 0 < drift["backbone"].parameters < drift["res3"].parameters


def test_the_last_blocks_of_a_resnet_101_count():
    start = constant_state(depth=101)
    end = {**start, "res4.22.conv2.weight": torch.tensor(2.2).expand(256, 256, 3, 3)}
    drift = {row.group: row for row in measure_drift(start, end)}
    # What torchvision says of resnet101, less its classifier: 44,549,160 - 2048 x 1000 - 1000.
    assert drift["backbone"].num_parameters == 42500160
    moved = 256 * 256 * 9 * 0.2**2
    # Of res4: 23 blocks of 1024 x 256 + 256 x 256 x 9 + 256 x 1024, but 512 x 256 in the first, and
    # the shortcut of 512 x 1024.
    weights = 23 * (1024 * 256 + 256 * 256 * 9 + 256 * 1024) - 512 * 256 + 512 * 1024
    assert drift["res4"].convolutions == pytest.approx(math.sqrt(moved / (weights * 4)))
    assert drift["res3"].parameters == drift["res5"].parameters == 0
    with pytest.raises(InputError, match="another backbone than at the start: 255 tensors are in"):
        measure_drift(constant_state(), end)


def test_torchvisions_and_detectron2s_names_are_compared(deeplab):
    ours = {f"module.backbone.{name}": tensor for name, tensor in constant_state().items()}
    drift = {row.group: row for row in measure_drift(deeplab.state_dict(), ours)}
    # The convolutions as torchvision's modules have them; 2 is the constant.
    for group, layer in (("res2", "layer1"), ("res5", "layer4")):
        modules = getattr(deeplab.backbone, layer).modules()
        weights = [m.weight.detach() for m in modules if isinstance(m, torch.nn.Conv2d)]
        start = torch.cat([weight.double().flatten() for weight in weights])
        expected = float((2 - start).norm() / start.norm())
        assert drift[group].convolutions == pytest.approx(expected, rel=1e-9)


def test_a_narrow_resnet_is_measured_as_well():
    # The demo's has half of the channels; of another width than the start's is an error.
    whole = constant_state()
    half = {}
    for name, tensor in whole.items():
        half[name] = tensor[tuple(slice(max(1, size // 2)) for size in tensor.shape)]
    moved = {name: 1.5 * tensor for name, tensor in half.items()}
    assert measure_drift(half, moved)[-1].parameters == pytest.approx(0.5)
    with pytest.raises(InputError, match="end of the drift report"):
        measure_drift(half, whole)


def test_from_zero_and_in_half_precision():
    zero = constant_state(0.0, 0.0, 0.0)
    row = measure_drift(zero, constant_state())[0]
    assert row.parameters == row.statistics == math.inf
    assert measure_drift(zero, zero)[0].parameters == 0
    # Squared, 4,000 x 4,000 is more than float16 can hold.
    big = {name: value.half() for name, value in constant_state(4000.0).items()}
    assert measure_drift(big, constant_state(4400.0))[1].convolutions == pytest.approx(0.1)


def test_csv_and_table():
    # 4 -> 100 is 2,400 %.
    drift = measure_drift(constant_state(2.0, 2.0), constant_state(2.5, 2.5, 100.0))
    header, _, res2, *_ = drift_to_csv(drift).splitlines()
    assert header == "group,num_parameters,parameters,convolutions,norms,statistics"
    assert res2 == "res2,215808,0.25,0.25,0.25,24.0"
    lines = format_drift(drift).splitlines()
    assert lines[0].split("|")[1:4] == [" layers   ", "   parameters ", "   moved by (%) "]
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells == ["res2", "215,808", "25", "25", "25", "2,400"]
    assert len(lines) == 2 + 6
    # 0.0000123 is 0.00123 %; 0.99 is 99 %; 12.5 is 1,250 %.
    texts = [format_percent(fraction) for fraction in (0.0, 0.0000123, 0.99, 12.5, math.inf)]
    assert texts == ["0", "0.00123", "99", "1,250", "inf"]


def test_not_a_resnet_and_not_finite():
    state = constant_state()
    with pytest.raises(InputError, match="start of the drift report"):
        measure_drift({"weight": torch.zeros(3)}, state)
    broken = {**state, "res5.2.conv3.weight": torch.tensor(math.nan).expand(2048, 512, 1, 1)}
    with pytest.raises(InputError, match=r"end of the drift report: res5\.2\.conv3\.weight"):
        measure_drift(state, broken)
