"""Scores of the ablation over its seeds, compared and laid out as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from tabulate import tabulate

from cityscapes_maskrcnn.data.labels import THING_CLASSES

# Areas in pixels: the official protocol counts objects from the first one on. COCO's limits would
# call nearly everything small, as images are an eighth as high as those of Cityscapes.
SIZE_LIMITS: Final = (10**2, 20**2)
SIZES: Final = {"APs": f"< {SIZE_LIMITS[0]} px", "APm": "between", "APl": f"> {SIZE_LIMITS[1]} px"}

# By arm (or variant) and seed the reported scores in percent, by name.
Scores = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        name: of the arm or variant.
        ap_by_seed: official AP of each training, in percent.
        mean: of every score over the seeds; NaN where a seed has none.
        spread: their standard deviation; None with one seed.
        gain: mean difference of AP to the base of the same seed; None for the base.
        gain_spread: standard deviation of that difference; None with one seed.
    """

    name: str
    ap_by_seed: Mapping[int, float]
    mean: Mapping[str, float]
    spread: Mapping[str, float] | None
    gain: float | None
    gain_spread: float | None

    @property
    def pays(self) -> bool:
        """Whether it is better than the base by more than the spread of the difference."""
        return (
            self.gain is not None and self.gain_spread is not None and self.gain > self.gain_spread
        )

    def as_json(self) -> dict[str, Any]:
        """The row as the benchmark's JSON file holds it."""
        return {
            "name": self.name,
            "ap_by_seed": {str(seed): ap for seed, ap in self.ap_by_seed.items()},
            "mean": dict(self.mean),
            "spread": None if self.spread is None else dict(self.spread),
            "gain": self.gain,
            "gain_spread": self.gain_spread,
            "pays": self.pays,
        }


def summarise(scores: Scores, base: str) -> list[Result]:
    """Average over seeds, and compare each arm with the base seed by seed.

    Args:
        scores: see :data:`Scores`; arms without a score are left out.
        base: name of the arm that others are compared with.
    """
    rows = []
    for name, by_seed in scores.items():
        if not by_seed:
            continue
        keys = list(next(iter(by_seed.values())))
        values = {key: [each[key] for each in by_seed.values()] for key in keys}
        common = [seed for seed in by_seed if seed in scores.get(base, {})]
        gains = [by_seed[seed]["AP"] - scores[base][seed]["AP"] for seed in common]
        compared = name != base and bool(gains)
        rows.append(
            Result(
                name=name,
                ap_by_seed={seed: each["AP"] for seed, each in by_seed.items()},
                mean={key: float(np.mean(each)) for key, each in values.items()},
                spread={key: float(np.std(each, ddof=1)) for key, each in values.items()}
                if len(by_seed) > 1
                else None,
                gain=float(np.mean(gains)) if compared else None,
                gain_spread=float(np.std(gains, ddof=1)) if len(gains) > 1 and compared else None,
            )
        )
    return rows


def format_tables(rows: Sequence[Result], *, base: str, num_train: int, num_reported: int) -> str:
    """Write the rows as two Markdown tables, of all classes and by class.

    Args:
        rows: of :func:`summarise`.
        base: name of the arm that others are compared with.
        num_train: scenes that were trained on.
        num_reported: scenes that the scores are of.
    """

    def cell(row: Result, key: str) -> str:
        value = row.mean[key]
        if math.isnan(value):
            return "-"
        return f"{value:.2f}" if row.spread is None else f"{value:.2f} ± {row.spread[key]:.2f}"

    def gain(row: Result) -> Iterator[str]:
        if row.gain is None:
            yield from ("", "")
        elif row.gain_spread is None:
            yield from (f"{row.gain:+.2f}", "?")
        else:
            yield f"{row.gain:+.2f} ± {row.gain_spread:.2f}"
            yield "yes" if row.pays else "no"

    main = [
        [
            row.name,
            len(row.ap_by_seed),
            cell(row, "AP"),
            cell(row, "AP50"),
            *gain(row),
            *[cell(row, key) for key in SIZES],
        ]
        for row in rows
    ]
    headers = ("", "seeds", "AP", "AP50", f"gain on {base}", "pays", *SIZES.values())
    by_class = [[row.name, *[cell(row, f"AP-{kind}") for kind in THING_CLASSES]] for row in rows]
    return "\n".join(
        [
            f"Generated scenes, {num_train} to train on, {num_reported} to report on; mean and"
            " standard deviation over the seeds. Sizes: COCO-style AP; all else: official.",
            "",
            tabulate(main, headers, "github", disable_numparse=True),
            "",
            tabulate(by_class, ("AP", *THING_CLASSES), "github", disable_numparse=True),
        ]
    )
