from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from cityscapes_maskrcnn.benchmarks.operation_count import OperationCounter
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.precision import build_step_trainer
from cityscapes_maskrcnn.modeling import nms
from cityscapes_maskrcnn.modeling.polygon_masks import FlatPolygons
from cityscapes_maskrcnn.modeling.step_metrics import StepMetrics
from cityscapes_maskrcnn.utils.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


def test_channels_last_computes_the_same(build: Callable[..., nn.Module]) -> None:
    torch.manual_seed(3)
    inputs = [
        {
            "image": torch.randint(256, (3, 65, 97), dtype=torch.uint8),
            "sem_seg": torch.randint(19, (65, 97)),
        }
        for _ in range(4)
    ]
    losses, gradients = [], []
    for channels_last in (False, True):
        options = ["MODEL.CHANNELS_LAST", channels_last, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0]
        model = build("stage_0_backbone", *options)
        assert model.backbone.res3[0].conv2.weight.is_contiguous() != channels_last
        losses.append(model.train()(inputs)["loss_sem_seg"])
        losses[-1].backward()
        gradients.append(model.sem_seg_head.conv.weight.grad)
    torch.testing.assert_close(*losses)
    # Rounding grows from layer to layer, so the gradient as a whole is compared.
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[1].norm()


def gpu_config(*options: str) -> CfgNode:
    """A config for mixed precision; what is built from it works without a GPU too."""
    cfg = build_config("", ["SOLVER.AMP.ENABLED", "True", *options])
    cfg.MODEL.DEVICE = "cuda"
    return cfg


def step_trainer(cfg: CfgNode, model: nn.Module) -> SimpleTrainer:
    return build_step_trainer(cfg, model, [], torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("name", "precision", "scales"),
    [("float16", torch.float16, True), ("bfloat16", torch.bfloat16, False)],
)
def test_mixed_precision_takes_the_type_that_the_config_names(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: torch.dtype, scales: bool
) -> None:
    asked: list[bool] = []

    class Scaler(torch.amp.GradScaler):
        """Without a GPU torch switches every scaler off, so what was asked for is noted."""

        def __init__(self, device: str, enabled: bool) -> None:
            asked.append(enabled)
            super().__init__(device, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    step = step_trainer(gpu_config("SOLVER.AMP.PRECISION", name), nn.Linear(1, 1))
    assert isinstance(step, AMPTrainer)
    assert step.precision is precision
    assert asked == [scales]


def test_what_mixed_precision_needs() -> None:
    with pytest.raises(InputError, match="fp16: it must be float16 or bfloat16"):
        step_trainer(gpu_config("SOLVER.AMP.PRECISION", "fp16"), nn.Linear(1, 1))
    cfg = gpu_config()
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(InputError, match=r"SOLVER\.AMP\.ENABLED: needs a GPU"):
        step_trainer(cfg, nn.Linear(1, 1))


class Reporting(StepMetrics, nn.Linear):
    """A layer that reports how many inputs of the newest forward pass were above 0."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.step_metrics = {"layer/num_positive": (inputs > 0).sum()}
        return super().forward(inputs)


class Losing(nn.Module):
    """A model whose only loss is that of a layer, over a batch of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Reporting(3, 1)

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(batch[0]).sum() ** 2}


def test_metrics_of_modules_are_written_with_the_losses() -> None:
    model = Losing()
    batches = [[torch.tensor([1.0, 2.0, -1.0])], [torch.tensor([-1.0, 2.0, -1.0])]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = build_step_trainer(build_config("", []), model, batches, optimizer)
    with EventStorage() as storage:
        for trainer.iter in range(2):
            trainer.run_step()
            storage.step()
    counts = storage.history("layer/num_positive").values()
    assert counts == [(2.0, 0), (1.0, 1)]
    # Without a trainer and a storage:
    losses = [model(batch)["loss"].item() for batch in batches]
    assert [value for value, _ in storage.history("total_loss").values()] == losses


def test_a_run_in_full_precision_is_resumed_in_mixed_precision() -> None:
    full = step_trainer(build_config("", []), nn.Linear(1, 1))
    mixed = step_trainer(gpu_config(), nn.Linear(1, 1))
    full.iter = 7
    mixed.load_state_dict(full.state_dict())
    assert mixed.iter == 7


def image_of(number: int, seed: int) -> dict[str, Any]:
    """Triangles on an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * torch.tensor([90.0, 40.0])
    boxes = torch.cat([corner, corner + 20], dim=1)
    triangles = [[np.array([x0, y0, x1, y0, x1, y1])] for x0, y0, x1, y1 in boxes.tolist()]
    instances = Instances(
        (64, 128),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.full((number,), 2),
        gt_masks=FlatPolygons.from_polygons(triangles),
    )
    image = torch.randint(256, (3, 64, 128), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances}


def test_a_step_waits_as_often_for_four_images_as_for_one(
    build: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms, "_on_gpu", lambda _: True)
    monkeypatch.setattr(nms, "_ROUNDS", 50)  # boxes of random weights can take more than usual
    model = build("stage_1_heads", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100).train()
    waiting = []
    for numbers in ((1,), (4,), (4, 0, 7, 2)):
        batch = [image_of(number, seed) for seed, number in enumerate(numbers)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        trainer = build_step_trainer(build_config("", []), model, [batch], optimizer)
        with OperationCounter() as moved:
            [(each["image"].to("cpu"), each["instances"].to("cpu")) for each in batch]
        with EventStorage() as storage, OperationCounter() as counter:
            trainer.run_step()
        assert storage.latest()["mask_rcnn/accuracy"][0] > 0
        # What the model's device is, where the inputs are already, is the host here. Several images
        # are moved once more when they are put together.
        moved.waiting["Tensor.to"] += len(numbers) > 1
        waiting.append(counter.waiting - moved.waiting)
    # The first step also places anchors.
    assert waiting[1] == waiting[2]
    # Proposals, the samples of the RoI heads, their levels, and the losses with all metrics.
    assert waiting[1]["Tensor.tolist"] == 4
    # The others are Detectron2's, on tensors of the host: sizes of images, and losses when written.
    assert waiting[1].total() <= 20
