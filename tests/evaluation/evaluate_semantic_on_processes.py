"""Run by test_semantic_evaluator.py: score made-up logits on several processes.

Usage: evaluate_semantic_on_processes.py ROOT DATASET PROCESSES OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from cityscapes_maskrcnn.data.images import read_label_image
from cityscapes_maskrcnn.data.labels import train_id_lookup
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.evaluation.semantic_evaluator import CityscapesSemanticEvaluator


def make_logits(image: dict[str, Any]) -> torch.Tensor:
    """The truth moved by a few pixels, under noise; the same in every process. Void is anything."""
    random = np.random.default_rng(crc32(Path(image["file_name"]).name.encode()))
    train_ids = train_id_lookup()[read_label_image(image["sem_seg_file_name"])]
    moved = np.roll(train_ids, random.integers(-4, 5, size=2).tolist(), axis=(0, 1))
    logits = random.normal(size=(19, *moved.shape)).astype(np.float32)
    logits += 4 * (moved == np.arange(19)[:, None, None])
    return torch.from_numpy(logits)


def work(rank: int, root: str, dataset: str, size: str, out: str) -> None:
    """Score this process's share; every process gets the last image too."""
    torch.set_num_threads(1)
    processes = int(size)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=processes
    )
    comm.create_local_process_group(processes)
    register_all(root)
    evaluator = CityscapesSemanticEvaluator(dataset)
    evaluator.reset()
    images = DatasetCatalog.get(dataset)
    for image in [*images[rank::processes], images[-1]]:
        evaluator.process([image], [{"sem_seg": make_logits(image)}])
    results = evaluator.evaluate()
    if rank:
        assert not results
    else:
        Path(out).write_text(json.dumps({"results": results, "processes": comm.get_world_size()}))


if __name__ == "__main__":
    # Forked, unlike by detectron2.engine.launch: importing everything twice more takes 10 seconds.
    torch.multiprocessing.start_processes(
        work, tuple(sys.argv[1:]), nprocs=int(sys.argv[3]), start_method="fork"
    )
