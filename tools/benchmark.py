#!/usr/bin/env python3
"""Measure this project against Detectron2 and the official scripts, both in the same run."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable

from cityscapes_maskrcnn.utils.parallel import available_cores
from cityscapes_maskrcnn.utils.run import run_tool


def evaluation(args: argparse.Namespace) -> str:
    """Scoring, on one core."""
    from cityscapes_maskrcnn.benchmarks.evaluation import benchmark_evaluation

    return benchmark_evaluation(
        args.images, args.predictions, args.height, args.width, args.repeats
    )


def evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes of the generated case."""
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--predictions", type=int, default=60, help="per image")
    parser.add_argument("--height", type=int, default=1024, help="of the images, in pixels")
    parser.add_argument("--width", type=int, default=2048, help="of the images, in pixels")
    parser.add_argument(
        "--repeats", type=int, default=5, help="of `evaluation`: the median is shown"
    )


def evaluation_at_scale(args: argparse.Namespace) -> str:
    """Scoring in worker processes: time and memory over many images."""
    from cityscapes_maskrcnn.benchmarks.evaluation_at_scale import benchmark_scale

    return benchmark_scale(args.images, args.predictions, args.height, args.width, args.workers)


def scale_flags(parser: argparse.ArgumentParser) -> None:
    """Sizes of the case, and how many workers."""
    evaluation_flags(parser)
    parser.set_defaults(images=500, predictions=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])


# Name -> what it runs, and its flags. Imports wait until a benchmark is chosen.
Benchmark = Callable[[argparse.Namespace], str]
BENCHMARKS: dict[str, tuple[Benchmark, Callable[[argparse.ArgumentParser], None]]] = {
    "evaluation": (evaluation, evaluation_flags),
    "evaluation-at-scale": (evaluation_at_scale, scale_flags),
}


def main() -> None:
    """Parse, measure, print the table with the machine named."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: benchmark.py evaluation --images 8"
    )
    chosen = parser.add_subparsers(dest="benchmark", required=True)
    for name, (run, add_flags) in BENCHMARKS.items():
        add_flags(chosen.add_parser(name, help=run.__doc__, description=run.__doc__))
    args = parser.parse_args()
    table = BENCHMARKS[args.benchmark][0](args)
    print(f"{platform.processor() or platform.machine()}, {available_cores()} cores\n{table}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
