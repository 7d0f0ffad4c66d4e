"""Metrics of a training step that stay on the GPU until they are fetched with the losses."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class StepMetrics:
    """A base class of modules that report metrics while training.

    Attributes:
        step_metrics: name -> scalar, a tensor of no dimensions without a gradient; of the newest
            forward pass. The trainer writes them; without a trainer nothing needs them.
    """

    step_metrics: Mapping[str, Tensor] = {}


def collect_step_metrics(model: nn.Module) -> dict[str, Tensor]:
    """Collect the metrics that the modules of a model reported in the newest forward pass."""
    reporting = [module for module in model.modules() if isinstance(module, StepMetrics)]
    return {name: value for each in reporting for name, value in each.step_metrics.items()}
