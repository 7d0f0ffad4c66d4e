"""What the config key ``DETERMINISTIC`` costs: a training step without and with it."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from cityscapes_maskrcnn.benchmarks.clock import median_times
from cityscapes_maskrcnn.benchmarks.new_process import in_new_process
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset
from cityscapes_maskrcnn.utils.errors import InputError


def benchmark_determinism(*, config_file: str, steps: int, opts: Sequence[str]) -> str:
    """Measure both, each in a process of its own: the switch is the process's.

    Args:
        config_file: a yaml file of a model with masks.
        steps: how many are measured, after five that are not.
        opts: alternating config keys and values.

    Returns:
        A Markdown table with the ratio.

    Raises:
        InputError: ``steps`` is below 1, or see :func:`.cli.build_config`.
    """
    if steps < 1:
        raise InputError("--steps must be 1 or more")
    build_config(config_file, [*opts])  # what is wrong in it is said before scenes are drawn
    rows = []
    for deterministic in (False, True):
        measured = in_new_process(measure_step, deterministic, config_file, steps, opts)
        rows.append([deterministic, *measured])
    rows[1].append(rows[1][1] / rows[0][1])
    headers = ["DETERMINISTIC", "ms/step", "peak GPU memory (GB)", "ratio of time"]
    return tabulate(rows, headers, tablefmt="github", floatfmt=".4g")


def measure_step(
    deterministic: bool,
    config_file: str,
    steps: int,
    opts: Sequence[str],
) -> tuple[float, float]:
    """Measure training steps on one batch of generated scenes, from random weights.

    Args:
        deterministic: the value of the key.
        config_file: see :func:`benchmark_determinism`.
        steps: see there.
        opts: see there.

    Returns:
        milliseconds, the median of a step, and gigabytes, the peak of the GPU's memory; 0 on a CPU.
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
        trainer = Trainer(build_config(config_file, [*words, *opts]))
        inner = trainer._trainer
        inner.data_loader = itertools.repeat(next(iter(inner.data_loader)))
        with EventStorage():
            for _ in range(5):
                inner.run_step()
            (ms,) = median_times({"step": inner.run_step}, blocks=steps, calls=1).values()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return ms, peak / 1e9
