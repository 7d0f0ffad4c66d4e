"""Inference of a Mask R-CNN: this project against stock Detectron2, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from cityscapes_maskrcnn.benchmarks.clock import (
    count_launches,
    median_times,
    peak_gigabytes,
)
from cityscapes_maskrcnn.benchmarks.rows import Row, device_name, launch_rows
from cityscapes_maskrcnn.benchmarks.workload import (
    CHANNELS_LAST,
    STOCK,
    Batch,
    check_machine,
    config_of,
    draw_batches,
    random_weights,
    set_weights,
)
from cityscapes_maskrcnn.engine.inference import for_inference
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.instances import leave_masks_unpasted

# On a GPU; on a CPU the memory layout alone.
_FASTEST = ("TEST.PRECISION", "bfloat16", *CHANNELS_LAST, "MODEL.COMPILE", "auto")


def benchmark_inference(*, config_file: str, small: bool) -> list[Row]:
    """Measure single images and batches, with 100 detections in every image.

    Detectron2 pastes masks into full frames, an image at a time; here they stay 28x28, as scoring
    and submission take them.

    Args:
        config_file: of stage 1.
        small: images of 256x512 and batches of 4, for CPUs; otherwise 1024x2048 and 8.

    Returns:
        The rows.

    Raises:
        InputError: see :func:`.check_machine`.
    """
    check_machine(small)
    height, width, batch_size = (256, 512, 4) if small else (1024, 2048, 8)
    on_gpu = torch.cuda.is_available()
    systems: dict[str, tuple[str, ...]] = {
        "stock float32": STOCK,
        "ours float32": (),
        "ours fastest": _FASTEST if on_gpu else CHANNELS_LAST,
    }
    state = random_weights(config_file)
    (images,) = draw_batches(count=1, batch_size=batch_size, height=height, width=width)
    for image in images:
        del image["instances"]
    works: dict[Hashable, Callable[[], object]] = {}
    memory: dict[str, float] = {}
    for name, opts in systems.items():
        already = torch.cuda.memory_allocated() if on_gpu else 0
        predict = _build(config_of(config_file, *opts), state)
        for size in (1, batch_size):
            works[name, size] = partial(predict, images[:size])
            # No warm-up on a CPU: a call takes seconds, and nothing is compiled.
            if on_gpu:
                for _ in range(3):
                    works[name, size]()
        if on_gpu:
            memory[name] = peak_gigabytes(works[name, 1], already)
    ms = median_times(works, blocks=3, calls=1 if small else 10)
    launches = {name: count_launches(works[name, 1]) for name in systems}

    device = device_name(torch.device("cuda" if on_gpu else "cpu"))
    stock = "stock float32"
    rows = []
    for name in ("ours float32", "ours fastest"):
        what = f"{height}x{width}, {name.removeprefix('ours ')} and {stock}"
        rows += [
            Row(
                name=f"batch 1 of {what}",
                device=device,
                ours=ms[name, 1],
                stock=ms[stock, 1],
                unit="ms",
            ),
            Row(
                name=f"batch {batch_size} of {what}",
                device=device,
                ours=1000 * batch_size / ms[name, batch_size],
                stock=1000 * batch_size / ms[stock, batch_size],
                unit="images/s",
            ),
        ]
    best = "ours fastest" if on_gpu else "ours float32"
    rows += launch_rows("batch 1", device, launches[best], launches[stock])
    if on_gpu:
        rows.append(
            Row(
                name="batch 1: peak memory",
                device=device,
                ours=memory[best],
                stock=memory[stock],
                unit="GB",
            )
        )
    return rows


def _build(cfg: CfgNode, state: dict[str, Tensor]) -> Callable[[Batch], object]:
    if cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
        model = set_weights(build_model(cfg), state).eval()
    else:
        model = set_weights(Trainer.build_model(cfg), state).eval()
        model = for_inference(cfg, leave_masks_unpasted(model))
    return torch.no_grad()(model)
