"""Run by test_on_processes.py: what one process finds alone, and what two find together.

Usage: on_processes.py FOLDER; leaves alone.pt, 0.pt, 1.pt and saved, and ends with status 143.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from conftest import tiny_model
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine import hooks
from cityscapes_maskrcnn.engine.precision import CheckedTrainer
from cityscapes_maskrcnn.engine.processes import GroupSettings, run_processes
from cityscapes_maskrcnn.engine.run_anchors import resolve_anchors
from cityscapes_maskrcnn.engine.validation import validation_losses
from cityscapes_maskrcnn.utils.errors import InputError

# No layer looks at the other images, and none drops anything.
ALIKE = ["MODEL.RESNETS.NORM", "LN", "MODEL.SEM_SEG_HEAD.NORM", "LN"]
ALIKE += ["MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0]


def norms(rank: int) -> nn.Module:
    """Layers with parameters of their own on every process, and statistics that tell its rank."""
    torch.manual_seed(rank)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)
    )
    nn.init.normal_(model[1].weight)
    model[1].running_mean = torch.tensor([1.0, -2.0]) * (1 + 2 * rank)  # 1 -2, and 3 -6
    model[1].running_var = torch.tensor([0.5, 4.0]) * (1 + rank)  # 0.5 4, and 1 8
    model[1].num_batches_tracked += 10 * (1 + rank)
    return model


def images() -> list[dict[str, Any]]:
    """Three, with an object each."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for number in range(3):
        mask = torch.zeros(1, 64, 96, dtype=torch.bool)
        mask[:, 8:40, 10 : 50 + 9 * number] = True
        objects = Instances(
            (64, 96),
            gt_boxes=Boxes(torch.tensor([[10.0, 8.0, 50.0 + 9 * number, 40.0]])),
            gt_classes=torch.tensor([number]),
            gt_masks=BitMasks(mask),
        )
        image = torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8)
        labels = torch.randint(19, (64, 96), generator=generator)
        examples.append({"image": image, "sem_seg": labels, "instances": objects})
    return examples


def measure(folder: Path) -> None:
    """Measure without end; one process is asked to stop, all end and the main one saves."""

    def save(name: str, iteration: int) -> None:
        (folder / "saved").write_text(f"{name} {iteration}")

    stop = hooks.StopOnSignal(SimpleNamespace(save=save, saved_iteration=None))
    stop.trainer = SimpleNamespace(
        model=nn.Linear(1, 1), iter=4, max_iter=9, storage=EventStorage(), _hooks=[stop]
    )
    stop.before_train()
    for batch in stop.watch(range(1000)):
        if batch == 3 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)


def fit_anchors() -> dict[str, Any]:
    """Fit anchors to thirty boxes, and then more of them than there are boxes."""
    reads: list[bool] = []

    def load() -> list[dict[str, Any]]:
        reads.append(True)
        boxes = [(0, 0, 5 + 3 * number, 9 + 2 * number) for number in range(30)]
        objects = [{"bbox": box, "bbox_mode": 0, "category_id": 0} for box in boxes]
        return [{"height": 200, "width": 400, "annotations": objects}]

    DatasetCatalog.register("thirty_boxes", load)
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    node = cfg.MODEL.ANCHOR_GENERATOR
    node.NAME, node.SIZES = "KMeansAnchorGenerator", []
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
    cfg.DATASETS.TRAIN = ("thirty_boxes",)
    cfg.MODEL.WEIGHTS = ""
    resolve_anchors(cfg, resume=False, eval_only=False)
    found = {"anchors": [node.SIZES, node.ASPECT_RATIOS], "read": bool(reads)}
    node.SIZES, node.NUM_RATIOS = [], 31
    try:
        resolve_anchors(cfg, resume=False, eval_only=False)
    except InputError as error:
        found["error"] = str(error)
    return found


def partly_labelled() -> list[dict[str, Any]]:
    """Three images of which 0, 20 and 40 of the 64 rows have no labels."""
    examples = images()
    for number, each in enumerate(examples):
        each["sem_seg"][: 20 * number] = 255
    return examples


def gradients(model: nn.Module, batch: list[Any], accumulate: int) -> dict[str, torch.Tensor]:
    """Sum the gradients of micro-batches that count alike."""
    step = CheckedTrainer(
        model,
        [],
        torch.optim.SGD(model.parameters(), lr=0.1),
        accumulate=accumulate,
        exactly=False,
    )
    step.optimizer.zero_grad()
    step.compute_gradients(model, batch)
    inner = getattr(model, "module", model)
    return {name: each.grad for name, each in inner.named_parameters()}


def gradients_together(model: nn.Module, batch: list[Any]) -> dict[str, Any]:
    """Compute gradients of two micro-batches, and count how often the processes exchange them."""
    exchanges = []

    def exchange(group: Any, bucket: Any) -> Any:
        exchanges.append(bucket.index())
        return allreduce_hook(group, bucket)

    exchange.__annotations__.clear()  # torch compares them with types, and they are strings here
    together = DistributedDataParallel(model, broadcast_buffers=False)
    together.register_comm_hook(None, exchange)
    return {"found": gradients(together, batch, 2), "exchanges": exchanges}


def work(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rank, folder = comm.get_rank(), Path(args.folder)
    layers = norms(rank)
    hooks.average_norm_statistics(layers)
    one, two, three = images()
    first, second, third = partly_labelled()
    batch = [[first, second], [third, first]][rank]
    semantic, instances = tiny_model("stage_0_backbone"), tiny_model("stage_1_heads")
    found = {
        "norms": layers.state_dict(),
        "two and one": validation_losses(semantic, [[[one, two]], [[three]]][rank]),
        "three and none": validation_losses(semantic, [[[one], [two], [three]], []][rank]),
        "none": validation_losses(semantic, []),
        "instances": validation_losses(instances, [[[one], [two]], [[three]]][rank]),
        "fit": fit_anchors(),
        "gradients": gradients_together(tiny_model("stage_0_backbone", *ALIKE), batch),
    }
    torch.save(found, folder / f"{rank}.pt")
    comm.synchronize()
    measure(folder)


def main(folder: str) -> int:
    torch.set_num_threads(1)
    semantic, instances = tiny_model("stage_0_backbone"), tiny_model("stage_1_heads")
    one, two, three = images()
    first, second, third = partly_labelled()
    alone = {
        "norms": [norms(rank).state_dict() for rank in (0, 1)],
        "semantic": validation_losses(semantic, [[one], [two], [three]]),
        "parts": [validation_losses(semantic, part) for part in ([[one, two]], [[three]])],
        "instances": validation_losses(instances, [[one], [two], [three]]),
        "gradients": gradients(
            tiny_model("stage_0_backbone", *ALIKE), [first, second, third, first], accumulate=4
        ),
    }
    torch.save(alone, Path(folder, "alone.pt"))
    args = argparse.Namespace(
        num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto", folder=folder
    )
    return run_processes(work, args, GroupSettings(gpus=0, timeout=60))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
