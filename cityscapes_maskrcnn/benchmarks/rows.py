"""Rows of a benchmark: this project against Detectron2, as a table and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tabulate import tabulate

from cityscapes_maskrcnn.benchmarks.clock import Launches

# Of these units more is better; of all others less.
_MORE_IS_BETTER = ("images/s", "% busy")


@dataclass(frozen=True)
class Row:
    """One measurement of both systems in one run.

    Attributes:
        name: what was measured.
        device: what it ran on, see :func:`device_name`.
        ours: this project's value; None: not measured.
        stock: Detectron2's value; None: not measured.
        unit: of both values.
        note: why something was not measured, or what else a reader has to know.
    """

    name: str
    device: str
    ours: float | None
    stock: float | None
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better this project is; None if one of the values is missing or zero."""
        if not self.ours or not self.stock:
            return None
        better = self.ours / self.stock
        return better if self.unit in _MORE_IS_BETTER else 1 / better

    def as_json(self) -> dict[str, str | float | None]:
        """The row as the benchmark's JSON file holds it."""
        return {
            "name": self.name,
            "device": self.device,
            "ours": self.ours,
            "stock": self.stock,
            "ratio": self.ratio,
            "unit": self.unit,
            "note": self.note,
        }


def table(rows: Iterable[Row]) -> str:
    """Write rows as a Markdown table; above 1 a ratio says that this project is better."""
    cells = [
        (
            row.name,
            "-" if row.stock is None else f"{row.stock:.4g}",
            "-" if row.ours is None else f"{row.ours:.4g}",
            row.unit,
            "-" if row.ratio is None else f"{row.ratio:.2f}x",
            row.note,
        )
        for row in rows
    ]
    headers = ("", "Detectron2", "this project", "unit", "ratio", "note")
    align = ("left", "right", "right", "left", "right", "left")
    return tabulate(cells, headers, "github", colalign=align, disable_numparse=True)


def launch_rows(name: str, device: str, ours: Launches, stock: Launches) -> list[Row]:
    """Compare what both systems ask of the device.

    Args:
        name: of the computation that was called once.
        device: see :func:`device_name`.
        ours: this project's.
        stock: Detectron2's.
    """
    if not torch.cuda.is_available():
        # What a CPU computes otherwise than a GPU would be counted as waits here.
        missing = Row(
            name=f"{name}: waits for the device",
            device=device,
            ours=None,
            stock=None,
            unit="a call",
            note="needs a GPU; tests count them",
        )
        return [_count(f"{name}: operations", device, ours.operations, stock.operations), missing]
    return [
        _count(f"{name}: kernels", device, ours.operations, stock.operations),
        _count(f"{name}: waits for the device", device, ours.waits, stock.waits),
        Row(
            name=f"{name}: GPU busy",
            device=device,
            ours=ours.busy_percent,
            stock=stock.busy_percent,
            unit="% busy",
        ),
    ]


def _count(name: str, device: str, ours: int, stock: int) -> Row:
    return Row(name=name, device=device, ours=ours, stock=stock, unit="a call")


def device_name(device: torch.device) -> str:
    """Name a GPU, or a processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
