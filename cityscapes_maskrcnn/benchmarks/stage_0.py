"""A training step of stage 0 against torchvision's own DeepLabv3 in a plain loop."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torchvision.models import segmentation

from cityscapes_maskrcnn.benchmarks.clock import median_times
from cityscapes_maskrcnn.benchmarks.new_process import in_new_process
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.precision import build_step_trainer
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.deeplab_weights import translate
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.memory import peak_resident_bytes

Batch = list[dict[str, Any]]
Step = Callable[[Batch], None]

OURS, PLAIN = "this project", "torchvision, plain loop"


def benchmark_stage_0(config_file: str, opts: list[str], steps: int) -> str:
    """Time both systems on the same batches in turn, in one process.

    Ours is the trainer's step with the config's model, optimizer and precision. The other is what
    one would write by hand: torchvision's model, the same normalisation and cross-entropy, Adam
    with torch's defaults, float32. Loading images is in neither.

    Args:
        config_file: a config of stage 0 at its full width.
        opts: changes to it, KEY VALUE in turn.
        steps: steps of each system that are timed.

    Returns:
        A Markdown table: images per second from the median step, ratio, peak memory.

    Raises:
        InputError: a number is out of range, or the config is wrong.
    """
    if steps < 1:
        raise InputError("--steps must be 1 or more")
    with tempfile.TemporaryDirectory() as root:
        batches = _load_batches(config_file, opts, root, count=min(steps, 4))
    size = tuple(batches[0][0]["image"].shape[1:])
    ms = _time_steps(config_file, opts, batches, steps)
    peaks = {name: _peak_bytes(name, config_file, opts, batches[0]) for name in (OURS, PLAIN)}
    return _table(ms, peaks, len(batches[0]), size)


def _time_steps(
    config_file: str, opts: list[str], batches: list[Batch], steps: int
) -> dict[Hashable, float]:
    """Get the milliseconds of a step of each system; their memory is free again afterwards."""
    works: dict[Hashable, Callable[[], None]] = {
        name: _in_turn(_build(name, config_file, opts), batches) for name in (OURS, PLAIN)
    }
    for work in works.values():
        work()
    return median_times(works, blocks=steps, calls=1)


def _in_turn(step: Step, batches: Sequence[Batch]) -> Callable[[], None]:
    endless = itertools.cycle(batches)
    return lambda: step(next(endless))


def _load_batches(config_file: str, opts: list[str], root: str, count: int) -> list[Batch]:
    """Load the first training batches of generated coarse data."""
    cfg = build_config(config_file, opts)
    height, width = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    generate_dataset(root, {"train_extra": 4}, height=height, width=width, seed=0)
    register_all(root)
    cfg.DATASETS.TRAIN = ("cityscapes_coarse_semantic_train_extra",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 0
    cfg.freeze()
    batches = iter(Trainer.build_train_loader(cfg))
    return [next(batches) for _ in range(count)]


def _build(name: str, config_file: str, opts: list[str]) -> Step:
    cfg = build_config(config_file, opts)
    torch.manual_seed(0)
    theirs = getattr(segmentation, f"deeplabv3_resnet{cfg.MODEL.RESNETS.DEPTH}")(
        weights=None, weights_backbone=None, num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    )
    return _plain_step(cfg, theirs) if name == PLAIN else _our_step(cfg, theirs.state_dict())


def _plain_step(cfg: CfgNode, model: torch.nn.Module) -> Step:
    device = torch.device(cfg.MODEL.DEVICE)
    model.train().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.SOLVER.BASE_LR)
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD, device=device).view(1, 3, 1, 1)

    def step(batch: Batch) -> None:
        images = torch.stack([item["image"] for item in batch]).to(device)
        labels = torch.stack([item["sem_seg"] for item in batch]).to(device)
        logits = model((images - mean) / std)["out"]
        loss = F.cross_entropy(logits, labels, ignore_index=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _our_step(cfg: CfgNode, state: dict[str, torch.Tensor]) -> Step:
    cfg.freeze()
    model = Trainer.build_model(cfg).train()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(translate(state, "torchvision", shapes)[0], strict=False)
    batches: list[Batch] = []
    # The trainer asks its loader for the next batch; this one hands out what the caller gave.
    loader = iter(batches.pop, None)
    trainer = build_step_trainer(cfg, model, loader, Trainer.build_optimizer(cfg, model))

    def step(batch: Batch) -> None:
        batches.append(batch)
        with EventStorage() as trainer.storage:
            trainer.run_step()

    trainer.iter = 0
    return step


def _peak_bytes(name: str, config_file: str, opts: list[str], batch: Batch) -> int:
    """Measure one step in a process of its own; see :func:`_measure_memory`."""
    return in_new_process(_measure_memory, name, config_file, opts, batch)


def _measure_memory(name: str, config_file: str, opts: list[str], batch: Batch) -> int:
    """Get the most memory that torch had allocated on the GPU; on a CPU that of the process."""
    _build(name, config_file, opts)(batch)
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def _table(
    ms: Mapping[Hashable, float],
    peaks: Mapping[str, int],
    batch_size: int,
    size: tuple[int, ...],
) -> str:
    rows = [
        (
            name,
            f"{1000 * batch_size / ms[name]:.3g}",
            f"{ms[PLAIN] / ms[name]:.2f}x",
            f"{peak / 2**30:.2f} GB",
        )
        for name, peak in peaks.items()
    ]
    headers = (
        f"stage 0, batch {batch_size} of {size[0]}x{size[1]}",
        "images/s",
        "speed",
        "peak memory",
    )
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
