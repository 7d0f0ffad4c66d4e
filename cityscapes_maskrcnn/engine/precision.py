"""One training iteration, in the precision that the config names."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

from cityscapes_maskrcnn.utils.errors import InputError


def build_step(
    cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Build what runs one iteration, in full or in mixed precision.

    Args:
        cfg: ``SOLVER.AMP`` is read.
        model: to train, on its device.
        loader: gives batches without end.
        optimizer: of the model's trainable parameters.

    Raises:
        InputError: ``SOLVER.AMP.PRECISION`` is unknown.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer(model, loader, optimizer)
    precisions = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if cfg.SOLVER.AMP.PRECISION not in precisions:
        raise InputError(
            f"SOLVER.AMP.PRECISION {cfg.SOLVER.AMP.PRECISION!r}: it must be float16 or bfloat16"
        )
    precision = precisions[cfg.SOLVER.AMP.PRECISION]
    # bfloat16 has the range of float32: its gradients do not vanish, so nothing is to be scaled.
    scaler = torch.amp.GradScaler("cuda", enabled=precision is torch.float16)
    return AMPTrainer(model, loader, optimizer, grad_scaler=scaler, precision=precision)
