from __future__ import annotations

import os
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
