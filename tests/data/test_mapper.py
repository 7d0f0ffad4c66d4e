from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from PIL import Image

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.mapper import CityscapesMapper


def test_a_signal_to_the_process_group_does_not_reach_loading_workers(tmp_path: Path) -> None:
    """Of scoring and of the validation loss too, during which a run may be asked to stop."""
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "image.png")
    record = {"file_name": str(tmp_path / "image.png"), "height": 32, "width": 64}
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    mapper = CityscapesMapper(cfg, is_train=False)
    batches = iter(build_detection_test_loader([record] * 40, mapper=mapper, num_workers=1))
    next(batches)
    (worker,) = batches._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)


STUCK = """
import sys, time
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.data.mapper import CityscapesMapper
cfg = get_cfg()
add_cityscapes_maskrcnn_config(cfg)
mapper = CityscapesMapper(cfg, is_train=False)
loader = build_detection_test_loader([{"file_name": sys.argv[1]}], mapper=mapper, num_workers=1)
batches = iter(loader)
print(batches._workers[0].pid, flush=True)
time.sleep(100)
"""


def test_a_stuck_loading_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.png")  # nobody writes into it
    parent = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "image.png")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        worker = int(parent.stdout.readline())
        end = time.monotonic() + 60
        while os.getpgid(worker) != worker and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        parent.kill()
        parent.wait()
        while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < end:
            time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
