"""Run by test_on_processes.py: what two processes, with other images each, agree on.

Usage: average_on_processes.py FOLDER; every process leaves RANK.pt with what it got.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from torch import nn

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.hooks import StopOnSignal, average_norm_statistics
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.engine.validation import validation_losses

NARROW = """
MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.SEM_SEG_HEAD.CONVS_DIM 8 MODEL.FPN.OUT_CHANNELS 8
MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8 INPUT.MASK_FORMAT bitmask
MODEL.RPN.BATCH_SIZE_PER_IMAGE 8 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8
"""  # so few regions that they are drawn from many more


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


def network(stage: str) -> nn.Module:
    torch.manual_seed(5)
    return Trainer.build_model(build_config(f"configs/{stage}.yaml", NARROW.split()))


def images() -> list[dict[str, Any]]:
    """Three, with an object each."""
    generator = torch.Generator().manual_seed(1)
    made = []
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
        made.append({"image": image, "sem_seg": labels, "instances": objects})
    return made


def measure(rank: int, batches: int, asked: bool) -> tuple[int, int, list[str]]:
    """Go through some batches; if asked to, stop in the first one of rank 1.

    Returns:
        Exit status, number of batches, names of the checkpoints.
    """
    saved: list[str] = []
    stop = StopOnSignal(SimpleNamespace(save=lambda name, **_: saved.append(name)), period=100)
    stop.trainer = SimpleNamespace(model=nn.Linear(1, 1), iter=4, max_iter=9)
    stop.before_train()
    seen, status = 0, 0
    try:
        for _ in stop.watch(range(batches)):
            seen += 1
            if asked and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as left:
        status = left.code
    stop.after_train()
    return status, seen, saved


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    comm.create_local_process_group(2)
    layers = norms(rank)
    average_norm_statistics(layers)
    one, two, three = images()
    semantic, instances = network("stage_0_backbone"), network("stage_1_heads")
    found = {
        "norms": layers.state_dict(),
        "two and one": validation_losses(semantic, [[[one, two]], [[three]]][rank]),
        "three and none": validation_losses(semantic, [[[one], [two], [three]], []][rank]),
        "none": validation_losses(semantic, []),
        "instances": validation_losses(instances, [[[one], [two]], [[three]]][rank]),
    }
    found["to the end"] = measure(rank, [5, 2][rank], asked=False)
    found["left"] = measure(rank, [1000, 1][rank], asked=True)
    torch.save(found, Path(folder, f"{rank}.pt"))


if __name__ == "__main__":
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
