"""Run by test_run_anchors.py: two processes resolve the anchors of one config.

Usage: resolve_on_processes.py FOLDER; every process leaves its anchors, and a mark if it read data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed
import torch.multiprocessing
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine.run_anchors import resolve_anchors
from cityscapes_maskrcnn.utils.errors import InputError


def work(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    comm.create_local_process_group(2)

    def load() -> list[dict[str, Any]]:
        Path(folder, f"read_by_{rank}").touch()
        boxes = [(0, 0, 5 + 3 * number, 9 + 2 * number) for number in range(30)]
        objects = [{"bbox": box, "bbox_mode": 0, "category_id": 0} for box in boxes]
        return [{"height": 200, "width": 400, "annotations": objects}]

    DatasetCatalog.register("thirty_boxes", load)
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "KMeansAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = []
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
    cfg.DATASETS.TRAIN = ("thirty_boxes",)
    cfg.MODEL.WEIGHTS = ""
    resolve_anchors(cfg, resume=False, eval_only=False)
    node = cfg.MODEL.ANCHOR_GENERATOR
    content = json.dumps([node.SIZES, node.ASPECT_RATIOS])
    Path(folder, f"anchors_{rank}.json").write_text(content)
    # What the main process finds wrong ends the others too, with the same line.
    node.SIZES, node.NUM_RATIOS = [], 31
    try:
        resolve_anchors(cfg, resume=False, eval_only=False)
    except InputError as error:
        Path(folder, f"error_{rank}").write_text(str(error))


if __name__ == "__main__":
    torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
