"""Run by test_evaluator.py: score saved predictions on several processes, the way a sampler pads.

Usage: evaluate_on_processes.py CASE.pkl PROCESSES OUT.json
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator


def to_output(arrays: dict[str, Any]) -> dict[str, Any]:
    """A Detectron2 model's output for an image."""
    instances = Instances(arrays["masks"].shape[1:])
    instances.pred_masks = torch.from_numpy(arrays["masks"])
    instances.pred_classes = torch.tensor(arrays["classes"], dtype=torch.int64)
    instances.scores = torch.tensor(arrays["scores"], dtype=torch.float32)
    instances.pred_boxes = Boxes(torch.tensor(arrays["boxes"], dtype=torch.float32).reshape(-1, 4))
    return {"instances": instances}


def register(name: str, case: dict[str, Any]) -> None:
    """Register a dataset of the case's images."""
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: [{"file_name": file} for file in case["files"]])
    MetadataCatalog.get(name).set(gt_dir=case["gt_dir"])


def work(rank: int, size: int, case_file: str, out: str) -> None:
    """Score this process's share; the last image is handed out more than once to fill it up."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=size
    )
    comm.create_local_process_group(size)
    case = pickle.loads(Path(case_file).read_bytes())
    register("case", case)
    evaluator = CityscapesInstanceEvaluator("case", num_workers=1)
    evaluator.reset()
    files = case["files"]
    share = list(range(rank, len(files), size))
    share += [len(files) - 1] * (-(-len(files) // size) - len(share) + 1)
    for index in share:
        evaluator.process([{"file_name": files[index]}], [to_output(case["outputs"][index])])
    results = evaluator.evaluate()
    if rank:
        assert not results
    else:
        Path(out).write_text(json.dumps({"results": results, "processes": comm.get_world_size()}))


if __name__ == "__main__":
    # Forked, unlike by detectron2.engine.launch: importing everything twice more takes 10 seconds.
    torch.multiprocessing.start_processes(
        work, (int(sys.argv[2]), *sys.argv[1::2]), nprocs=int(sys.argv[2]), start_method="fork"
    )
