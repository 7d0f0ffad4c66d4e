"""What the config key ``DETERMINISTIC`` costs: one training step with and without it."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset


def measure_step(
    deterministic: bool, config_file: str, *opts: str, steps: int = 30
) -> dict[str, float]:
    """Measure training steps on one batch of generated scenes, from random weights.

    The switch is the process's: measure with and without it in two processes.

    Args:
        deterministic: the value of the key.
        config_file: a yaml file of a model with masks.
        opts: alternating config keys and values.
        steps: how many are measured, after five that are not.

    Returns:
        ``milliseconds``, the median of a step, and ``gigabytes``, the peak of the GPU's memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = folder
        generate_dataset(Path(folder), {"train": 4, "val": 1}, height=1024, width=2048, seed=1)
        keys = {
            "MODEL.WEIGHTS": "",
            "SEED": 1,
            "DETERMINISTIC": deterministic,
            "DATASETS.TEST": "()",
            "TEST.VALIDATION_LOSS": False,
            "OUTPUT_DIR": Path(folder, "output"),
        }
        words = [str(word) for pair in keys.items() for word in pair]
        cfg = build_config(config_file, [*words, *opts])
        trainer = Trainer(cfg)
        inner = trainer._trainer
        inner.data_loader = itertools.repeat(next(iter(inner.data_loader)))
        seconds = []
        with EventStorage():
            for _ in range(5 + steps):
                start = time.perf_counter()
                inner.run_step()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "milliseconds": 1000 * statistics.median(seconds[5:]),
        "gigabytes": peak / 1e9,
    }
