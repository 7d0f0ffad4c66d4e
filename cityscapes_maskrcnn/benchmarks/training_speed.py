"""A training step: this project against stock Detectron2, on the same batches and weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch import Tensor

from cityscapes_maskrcnn.benchmarks.clock import (
    Launches,
    count_launches,
    median_times,
    peak_gigabytes,
    saved_gigabytes,
)
from cityscapes_maskrcnn.benchmarks.rows import Row, device_name, launch_rows
from cityscapes_maskrcnn.benchmarks.workload import (
    CHANNELS_LAST,
    STOCK,
    Batch,
    check_machine,
    config_of,
    draw_batches,
    endless_loader,
    flat_polygons,
    random_weights,
    set_weights,
)
from cityscapes_maskrcnn.data.prefetch import prefetch
from cityscapes_maskrcnn.engine.precision import build_step_trainer
from cityscapes_maskrcnn.engine.trainer import Trainer

# Config keys and values in turn.
_MIXED = ("SOLVER.AMP.ENABLED", "True")
_BFLOAT16 = (*_MIXED, "SOLVER.AMP.PRECISION", "bfloat16")
# On a GPU; on a CPU the memory layout alone.
_FASTEST = (*_BFLOAT16, *CHANNELS_LAST, "MODEL.COMPILE", "auto")
_DEPTHS = {"frozen": "5", "all live": "0"}  # MODEL.BACKBONE.FREEZE_AT
# MODEL.ACTIVATION_CHECKPOINTING
_CHECKPOINTED = {
    "frozen": "('fpn', 'rpn_head')",
    "all live": "('res2', 'res3', 'res4', 'res5', 'fpn', 'rpn_head')",
}


@dataclass(frozen=True)
class _Measured:
    """What was measured of one system.

    Attributes:
        ms: of a step; see :func:`.median_times`.
        memory: gigabytes: the peak on a GPU; on a CPU what is kept for the backward pass.
        launches: of a step.
    """

    ms: float
    memory: float
    launches: Launches


def benchmark_training(*, config_file: str, small: bool) -> list[Row]:
    """Measure steps with the backbone frozen, as in stages 1 and 2, and with everything live.

    Args:
        config_file: of stage 1.
        small: images of 256x512 in batches of 2, for CPUs; otherwise 4 of 1024x2048.

    Returns:
        The rows; on a CPU those of mixed precision are there, without values.

    Raises:
        InputError: see :func:`.check_machine`.
    """
    check_machine(small)
    state = random_weights(config_file)
    height, width, batch_size = (256, 512, 2) if small else (1024, 2048, 4)
    batches = draw_batches(4, batch_size, height, width)
    rows = []
    for depth in _DEPTHS:
        measured = _measure(config_file, depth, state, batches, small)
        rows += _rows(f"{depth}, batch {batch_size} of {height}x{width}", measured)
    return rows


def _systems(depth: str) -> dict[str, tuple[str, ...]]:
    """By name the config keys of the systems that this machine can run."""
    on_gpu = torch.cuda.is_available()
    checkpointed = ("MODEL.ACTIVATION_CHECKPOINTING", _CHECKPOINTED[depth])
    systems: dict[str, tuple[str, ...]] = {
        "stock float32": STOCK,
        "ours float32": (),
        "ours fastest": _FASTEST if on_gpu else CHANNELS_LAST,
        "ours checkpointed": (*_FASTEST, *checkpointed) if on_gpu else checkpointed,
    }
    if on_gpu:
        systems["stock AMP"] = (*STOCK, *_MIXED)
    return systems


def _measure(
    config_file: str,
    depth: str,
    state: dict[str, Tensor],
    batches: list[Batch],
    small: bool,
) -> dict[str, _Measured]:
    """Build all systems, then measure them; their steps are timed in turn."""
    steps: dict[Hashable, Callable[[], None]] = {}
    memory: dict[Hashable, float] = {}
    for name, opts in _systems(depth).items():
        already = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        step, forward = _build(
            config_file, (*opts, "MODEL.BACKBONE.FREEZE_AT", _DEPTHS[depth]), state, batches
        )
        if torch.cuda.is_available():
            for _ in range(4):
                step()
            memory[name] = peak_gigabytes(step, already)
        else:
            # No warm-up: a step takes seconds, and nothing is compiled.
            memory[name] = saved_gigabytes(forward)
        steps[name] = step
    ms = median_times(steps, blocks=3 if small else 5, calls=1 if small else 5)
    launches = {name: count_launches(step) for name, step in steps.items()}
    return {str(name): _Measured(ms[name], memory[name], launches[name]) for name in steps}


def _build(
    config_file: str,
    opts: tuple[str, ...],
    state: dict[str, Tensor],
    batches: list[Batch],
) -> tuple[Callable[[], None], Callable[[], Any]]:
    """Build one system; returns its step, and its forward pass alone."""
    cfg = config_of(config_file, *opts)
    stock = cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    model = set_weights(build_model(cfg) if stock else Trainer.build_model(cfg), state).train()
    endless = endless_loader(batches)
    if not stock:
        loader = prefetch(endless_loader(flat_polygons(batches)), cfg.MODEL.DEVICE)
        trainer: SimpleTrainer = build_step_trainer(
            cfg, model, loader, Trainer.build_optimizer(cfg, model)
        )
    elif cfg.SOLVER.AMP.ENABLED:
        trainer = AMPTrainer(model, endless, build_optimizer(cfg, model))
    else:
        trainer = SimpleTrainer(model, endless, build_optimizer(cfg, model))
    storage = EventStorage()
    trainer.iter = 0

    def step() -> None:
        with storage:
            trainer.run_step()

    def forward() -> Any:
        with storage:
            return model(batches[0])

    return step, forward


def _rows(name: str, measured: dict[str, _Measured]) -> list[Row]:
    on_gpu = torch.cuda.is_available()
    device = device_name(torch.device("cuda" if on_gpu else "cpu"))

    def row(what: str, *, ours: str, stock: str, unit: str) -> Row:
        missing = not {ours, stock} <= measured.keys()
        values = [
            None if missing else getattr(measured[system], "ms" if unit == "ms" else "memory")
            for system in (ours, stock)
        ]
        return Row(
            name=f"{name}: {what}",
            device=device,
            ours=values[0],
            stock=values[1],
            unit=unit,
            note="needs a GPU" if missing else "",
        )

    memory = "peak memory" if on_gpu else "kept for the backward pass"
    best, peer = ("ours fastest", "stock AMP") if on_gpu else ("ours float32", "stock float32")
    rows = [
        row("step, both float32", ours="ours float32", stock="stock float32", unit="ms"),
        row("step, fastest and float32", ours="ours fastest", stock="stock float32", unit="ms"),
        row("step, fastest and AMP", ours="ours fastest", stock="stock AMP", unit="ms"),
        row(f"{memory}, both float32", ours="ours float32", stock="stock float32", unit="GB"),
        row("peak memory, fastest and AMP", ours="ours fastest", stock="stock AMP", unit="GB"),
        row(f"{memory}, checkpointed", ours="ours checkpointed", stock=peer, unit="GB"),
        row("step, checkpointed", ours="ours checkpointed", stock=peer, unit="ms"),
    ]
    return [*rows, *launch_rows(name, device, measured[best].launches, measured[peer].launches)]
