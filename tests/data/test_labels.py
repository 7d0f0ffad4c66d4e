from __future__ import annotations

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, labels

from cityscapes_maskrcnn.data.labels import (
    CONTIGUOUS_TO_ID,
    ID_TO_CONTIGUOUS,
    SEMANTIC_LABELS,
    THING_CLASSES,
    THING_COLORS,
    VOID_IDS,
    resolve_label,
    train_id_lookup,
)
from cityscapes_maskrcnn.utils.errors import InputError


def test_instance_classes():
    names = "person rider car truck bus train motorcycle bicycle"
    assert " ".join(THING_CLASSES) == names
    assert CONTIGUOUS_TO_ID == (24, 25, 26, 27, 28, 31, 32, 33)
    assert ID_TO_CONTIGUOUS[31] == 5 and len(ID_TO_CONTIGUOUS) == 8
    assert THING_COLORS[2] == (0, 0, 142)


def test_semantic_classes():
    assert [label.trainId for label in SEMANTIC_LABELS] == list(range(19))
    assert SEMANTIC_LABELS[0].name == "road" and SEMANTIC_LABELS[18].name == "bicycle"


def test_void_ids():
    # unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, parking,
    # rail track, guard rail, bridge, tunnel, polegroup, caravan, trailer
    assert VOID_IDS == (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)


def test_train_ids_are_looked_up():
    table = train_id_lookup()
    assert table.shape == (256,) and table.dtype == np.uint8
    for label_id in range(256):
        expected = id2label[label_id].trainId if label_id in id2label else 255
        assert table[label_id] == (expected if expected >= 0 else 255), label_id
    # road 7 -> 0, car 26 -> 13, void 0 and 29, no id 200
    ids = np.array([[7, 26], [0, 29], [200, 33]], np.uint8)
    assert table[ids].tolist() == [[0, 13], [255, 255], [255, 18]]
    assert table[np.zeros((0, 4), np.uint8)].shape == (0, 4)


def test_resolving_names():
    for label in labels:
        assert resolve_label(label.name) == (label, False)
    car, is_group = resolve_label("cargroup")
    assert car.id == 26 and is_group
    pole_group, is_group = resolve_label("polegroup")
    assert pole_group.id == 18 and not is_group


@pytest.mark.parametrize("name", ["", "group", "Car", "zebra", "zebragroup", "cargroupgroup"])
def test_unknown_names(name):
    with pytest.raises(InputError, match=f"unknown label '{name}'"):
        resolve_label(name)
