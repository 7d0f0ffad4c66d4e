#!/usr/bin/env python3
"""Measure this project against Detectron2, torchvision and the official scripts, in one run."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.parallel import available_cores
from cityscapes_maskrcnn.utils.run import run_tool

EXAMPLES = """
examples:
  tools/benchmark.py evaluation --images 8
  tools/benchmark.py stage-0 --steps 6 SOLVER.IMS_PER_BATCH 2 INPUT.CROP.SIZE "[256,512]"
"""
CONFIGS = Path(__file__).parents[1] / "configs"


def run(args: argparse.Namespace) -> str:
    """Run the chosen benchmark, importing only what it needs."""
    if args.benchmark == "stage-0":
        from cityscapes_maskrcnn.benchmarks.stage_0 import benchmark_stage_0

        return benchmark_stage_0(f"{CONFIGS}/stage_0_backbone.yaml", args.opts, args.steps)
    case = (args.images, args.predictions, args.height, args.width)
    from cityscapes_maskrcnn.benchmarks import evaluation, evaluation_at_scale

    if args.benchmark == "evaluation":
        return evaluation.benchmark_evaluation(*case, args.repeats)
    model = (CONFIGS / "stage_1_heads.yaml", args.model_side)
    return evaluation_at_scale.benchmark_scale(*case, args.workers, *model)


def main() -> None:
    """Parse, measure, print the table with the machine named."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    chosen = parser.add_subparsers(dest="benchmark", required=True)
    once = chosen.add_parser("evaluation", help="scoring, on one core")
    once.add_argument("--repeats", type=int, default=5, help="the median of them is shown")
    scale = chosen.add_parser("evaluation-at-scale", help="scoring in workers: time and memory")
    scale.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    scale.add_argument("--model-side", type=int, default=0, help="height of a model's images")
    for each, images, predictions in ((once, 4, 60), (scale, 500, 100)):
        each.add_argument("--images", type=int, default=images, help="scored")
        each.add_argument("--predictions", type=int, default=predictions, help="per image")
        each.add_argument("--height", type=int, default=1024, help="of the images, in pixels")
        each.add_argument("--width", type=int, default=2048, help="of the images, in pixels")
    stage_0 = chosen.add_parser("stage-0", help="a training step, and its memory")
    stage_0.add_argument("--steps", type=int, default=5, help="of each system; the median is shown")
    stage_0.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {available_cores()} cores\n{run(args)}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
