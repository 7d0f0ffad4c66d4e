"""Gradients of micro-batches: which sums of them are the gradients of the whole batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.projects.point_rend import mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from cityscapes_maskrcnn.engine.accumulation import LossShares, split_batch
from cityscapes_maskrcnn.engine.precision import CheckedTrainer
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

Build = Callable[..., nn.Module]
Config = Callable[..., CfgNode]
Train = Callable[..., Trainer]

# No layer looks at the other images, and all candidates are sampled.
ALIKE = ["MODEL.RESNETS.NORM", "LN", "MODEL.FPN.NORM", "LN"]
SEMANTIC = ["MODEL.SEM_SEG_HEAD.NORM", "LN", "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0]
ALL = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 9999, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 9999]


POINT_HEAD = ["MODEL.ROI_MASK_HEAD.FC_DIM", 32, "MODEL.POINT_HEAD.FC_DIM", 16]


@pytest.fixture
def _points_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """PointRend draws its points at random, others for the whole batch than for its parts."""
    monkeypatch.setattr(
        mask_head,
        "get_uncertain_point_coords_with_randomness",
        lambda masks, *_: mask_head.generate_regular_grid_point_coords(len(masks), 14, "cpu"),
    )


def images(objects: list[int], heights: Sequence[int] = (64,)) -> list[dict[str, Any]]:
    """Images with so many objects each, and ten times so many columns without labels."""
    generator = torch.Generator().manual_seed(1)
    batch = []
    for number, (count, height) in enumerate(zip(objects, cycle(heights), strict=False)):
        boxes = torch.tensor([[4.0 + 9 * i, 6.0, 30.0 + 11 * i, 50.0] for i in range(count)])
        masks = torch.zeros(count, height, 96, dtype=torch.bool)
        for mask, box in zip(masks, boxes, strict=True):
            x0, y0, x1, y1 = map(int, box)
            mask[y0 : y1 - 5, x0 + 3 : x1] = True
        labels = torch.randint(19, (height, 96), generator=generator)
        labels[:, : 10 * count] = 255
        image = torch.randint(256, (3, height, 96), generator=generator, dtype=torch.uint8)
        batch.append(
            {
                "file_name": f"{number}.png",
                "image": image,
                "sem_seg": labels,
                "instances": Instances(
                    (height, 96),
                    gt_boxes=Boxes(boxes.reshape(-1, 4)),
                    gt_classes=torch.arange(count),
                    gt_masks=BitMasks(masks),
                ),
            }
        )
    return batch


def gradients(
    model: nn.Module, batch: list[dict[str, Any]], accumulate: int, exactly: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute losses and gradients of a batch."""
    step = CheckedTrainer(
        model,
        [],
        torch.optim.SGD(model.parameters(), lr=0.1),
        accumulate=accumulate,
        exactly=exactly,
    )
    step.optimizer.zero_grad()
    torch.manual_seed(2)
    with EventStorage():
        losses, _ = step.compute_gradients(model, batch)
    found = {
        name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad
    }
    return dict(losses), found


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a gradient, relative to the gradient's norm."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / one[n].norm().clamp(min=1e-7)) for n in one)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    ("stage", "options", "losses", "heights"),
    [
        ("stage_1_heads", [*ALIKE, *ALL], 5, [64]),
        ("stage_1_heads", [*ALIKE, *ALL], 5, [64, 56, 96, 64]),
        ("stage_0_backbone", [*ALIKE, *SEMANTIC], 1, [64]),
        ("pointrend_rcnn_R_50_FPN", [*ALIKE, *ALL, *POINT_HEAD], 6, [64]),
        ("patchdct_rcnn_R_50_FPN", [*ALIKE, *ALL, *POINT_HEAD], 7, [64]),
    ],
)
@pytest.mark.usefixtures("_points_of_a_grid")
def test_gradients_are_those_of_the_whole_batch(
    build: Build, stage: str, options: list[object], losses: int, heights: list[int], parts: int
) -> None:
    model = build(stage, *options)
    batch = images([5, 2, 0, 1], heights)
    of_whole, whole = gradients(model, batch, 1)
    of_sum, summed = gradients(model, batch, parts)
    assert len(of_whole) == losses
    assert {name: float(loss) for name, loss in of_sum.items()} == pytest.approx(
        {name: float(loss) for name, loss in of_whole.items()}, rel=1e-5
    )
    assert largest_difference(whole, summed) < 1e-4
    assert "preprocess_image" not in vars(model)
    # If each micro-batch counts alike, as each process does, they are others.
    _, means = gradients(model, batch, parts, exactly=False)
    assert largest_difference(whole, means) > 1e-2


def test_the_regions_that_are_trained_on_are_those_that_were_counted(build: Build) -> None:
    """They are drawn at random: 8 of dozens in each image. Statistics of BatchNorm move once."""
    model = build("stage_1_heads")
    parts = split_batch(images([5, 2, 0, 1, 4, 3]), 3)
    before = {name: each.clone() for name, each in model.named_buffers()}
    with EventStorage() as storage:
        noted: list[Any] = []
        shares = LossShares(model, parts, exactly=True, note=noted.append)
        after = dict(model.named_buffers())
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        numbers = []
        for number, part in enumerate(shares):
            shares.weigh(number, model(part))
            latest = storage.latest()
            numbers.append(
                [round(2 * latest[f"roi_head/num_{kind}_samples"][0]) for kind in ("fg", "bg")]
            )
    assert model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked == 3
    counted = [(each["objects"], each["regions"]) for each in shares.counts]
    assert counted == [(objects, objects + background) for objects, background in numbers]
    assert len({objects for objects, _ in counted}) > 1


def test_a_batch_is_split_in_order() -> None:
    assert split_batch([1, 2, 3, 4, 5, 6], 3) == [[1, 2], [3, 4], [5, 6]]
    # Loaders of the user's own may give any number of images.
    assert split_batch([1, 2, 3], 2) == [[1], [2, 3]]
    assert split_batch([1], 4) == [[1]]


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [
        (0, "SOLVER.ACCUMULATE 0: it must be 1 or more"),
        (
            3,
            "SOLVER.IMS_PER_BATCH 2 cannot be divided into SOLVER.ACCUMULATE 3 equal micro-batches "
            "in 1 process",
        ),
    ],
)
def test_what_cannot_be_accumulated(config: Config, accumulate: int, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Trainer(config("SOLVER.ACCUMULATE", accumulate))


class Note(HookBase):
    """Notes the images of every step's last micro-batch."""

    def __init__(self) -> None:
        self.images: list[str] = []

    def after_step(self) -> None:
        self.images.append(self.trainer._trainer.images.rpartition("/")[2])


class Noted(Trainer):
    def build_hooks(self) -> list[HookBase]:
        self.note = Note()
        return [self.note, *super().build_hooks()]


QUICK = ["DATASETS.TEST", "()", "TEST.VALIDATION_LOSS", False, "SOLVER.IMS_PER_BATCH", 4]
# A constant rate does not depend on the length of training.
QUICK += ["SOLVER.BASE_LR_END", 1e-4]


def test_iterations_are_steps_and_resuming_sees_the_same_images(
    train: Train, tmp_path: Path
) -> None:
    four = [*QUICK, "SOLVER.MAX_ITER", 4, "SOLVER.ACCUMULATE", 2]
    whole = train(*four, "OUTPUT_DIR", tmp_path / "whole", kind=Noted)
    assert whole.iter == 4
    train(*four, "SOLVER.MAX_ITER", 2)
    resumed = train(*four, kind=Noted, resume=True)
    assert resumed.start_iter == 2
    assert whole.note.images[2:] == resumed.note.images
    expected, found = (each.model.state_dict() for each in (whole, resumed))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    # With another number of micro-batches the steps see the same images.
    other = train(*four, "SOLVER.ACCUMULATE", 4, "SOLVER.MAX_ITER", 5, kind=Noted, resume=True)
    one = train(
        *four,
        "SOLVER.ACCUMULATE",
        1,
        "SOLVER.MAX_ITER",
        5,
        "OUTPUT_DIR",
        tmp_path / "one",
        kind=Noted,
    )
    last = [each.rpartition(", ")[2] for each in one.note.images]
    assert other.note.images == last[4:]
    assert whole.note.images == last[:4]


class Broken(Trainer):
    """The third of four images has pixels that are not finite."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:
        for batch in super().build_train_loader(cfg):
            batch[2]["image"] = batch[2]["image"] * float("inf")
            batch[2]["file_name"] = "third.png"
            yield batch


def test_a_loss_that_is_not_finite_names_the_micro_batch(train: Train) -> None:
    with pytest.raises(InputError, match=r"images of the batch: third\.png;"):
        train(*QUICK, "SOLVER.ACCUMULATE", 4, kind=Broken)
