"""The Cityscapes classes and their ids, taken from the official package.

Three numberings are in use and easily confused:

* **id**: the official label id, as stored in ``*_labelIds.png`` and result files (car is 26);
* **train id**: 0 to 18 for the 19 classes of semantic segmentation, 255 for what is ignored;
* **contiguous id**: 0 to 7, the order of the 8 instance classes; what Detectron2 calls
  ``category_id`` and ``pred_classes``.

Source: ``cityscapesscripts/helpers/labels.py``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cityscapesscripts.helpers import labels as official
from cityscapesscripts.helpers.labels import Label

from cityscapes_maskrcnn.utils.errors import InputError

IGNORE_TRAIN_ID: Final = 255

LABELS: Final[tuple[Label, ...]] = tuple(official.labels)
INSTANCE_LABELS: Final[tuple[Label, ...]] = tuple(
    label for label in LABELS if label.hasInstances and not label.ignoreInEval
)
SEMANTIC_LABELS: Final[tuple[Label, ...]] = tuple(
    sorted((label for label in LABELS if 0 <= label.trainId < 255), key=lambda label: label.trainId)
)

THING_CLASSES: Final[tuple[str, ...]] = tuple(label.name for label in INSTANCE_LABELS)
THING_COLORS: Final[tuple[tuple[int, int, int], ...]] = tuple(
    label.color for label in INSTANCE_LABELS
)

ID_TO_CONTIGUOUS: Final[dict[int, int]] = {
    label.id: index for index, label in enumerate(INSTANCE_LABELS)
}
CONTIGUOUS_TO_ID: Final[tuple[int, ...]] = tuple(label.id for label in INSTANCE_LABELS)

#: Official label ids are 0 to 33; the license plate's -1 appears in no image.
NUM_IDS: Final = 1 + max(label.id for label in LABELS)
VOID_IDS: Final[tuple[int, ...]] = tuple(
    label.id for label in LABELS if label.ignoreInEval and label.id >= 0
)


def resolve_label(name: Any) -> tuple[Label, bool]:
    """Look up the label of an annotated object.

    Args:
        name: the ``label`` field of an object in ``*_polygons.json``. ``"cargroup"`` stands for
            several cars without visible borders; ``"polegroup"`` is a label of its own.

    Returns:
        The official label and whether the object is a group of it.

    Raises:
        InputError: the name is no Cityscapes label, or not even text.
    """
    if not isinstance(name, str):
        raise InputError(f"its label must be a name, such as 'car', not {name!r}")
    if name in official.name2label:
        return official.name2label[name], False
    single = name.removesuffix("group")
    if single != name and single in official.name2label:
        return official.name2label[single], True
    raise InputError(f"unknown label {name!r}: not one of the official Cityscapes labels")


def train_id_lookup() -> npt.NDArray[np.uint8]:
    """Build the table from official label id to train id.

    Returns:
        Array of shape (256,), dtype uint8: ``table[label_ids]`` turns a ``*_labelIds.png`` into
        train ids; ids without a train id, and values that are no id, become 255.
    """
    table = np.full(256, IGNORE_TRAIN_ID, dtype=np.uint8)
    for label in SEMANTIC_LABELS:
        table[label.id] = label.trainId
    return table
