#!/usr/bin/env python3
"""Measure this project against Detectron2, torchvision and the official scripts, in one run."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import import_module
from pathlib import Path

from cityscapes_maskrcnn.utils.parallel import available_cores
from cityscapes_maskrcnn.utils.run import run_tool

EXAMPLES = """
examples:
  tools/benchmark.py evaluation-at-scale --workers 0 1 --model-side 128
  tools/benchmark.py stage-0 --steps 6 SOLVER.IMS_PER_BATCH 2 INPUT.CROP.SIZE "[256,512]"
"""
CONFIGS = Path(__file__).parents[1] / "configs"


def main() -> None:
    """Parse, measure, print the table with the machine named."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    chosen = parser.add_subparsers(required=True)
    load = chosen.add_parser("loading", help="reading a split's annotations")
    load.set_defaults(function="loading.benchmark_loading")
    load.add_argument("--objects", type=int, default=75, dest="num_objects", help="per image")
    once = chosen.add_parser("evaluation", help="scoring, on one core")
    once.set_defaults(function="evaluation.benchmark_evaluation")
    scale = chosen.add_parser("evaluation-at-scale", help="scoring in workers: time and memory")
    stage_1 = CONFIGS / "stage_1_heads.yaml"
    scale.set_defaults(function="evaluation_at_scale.benchmark_scale", config_file=stage_1)
    scale.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    scale.add_argument("--model-side", type=int, default=0, help="height of a model's images")
    for each, images in ((load, 2975), (once, 4), (scale, 500)):
        each.add_argument("--images", type=int, default=images, dest="num_images", help="number")
    for each in (load, once):
        each.add_argument("--repeats", type=int, default=5, help="the median of them is shown")
    for each, predictions in ((once, 60), (scale, 100)):
        each.add_argument("--predictions", type=int, default=predictions, dest="num_predictions")
        each.add_argument("--height", type=int, default=1024, help="of the images, in pixels")
        each.add_argument("--width", type=int, default=2048, help="of the images, in pixels")
    stage_0 = chosen.add_parser("stage-0", help="a training step, and its memory")
    config = str(CONFIGS / "stage_0_backbone.yaml")
    stage_0.set_defaults(function="stage_0.benchmark_stage_0", config_file=config)
    stage_0.add_argument("--steps", type=int, default=5, help="of each system; the median is shown")
    stage_0.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    options = vars(parser.parse_args())
    # Imported when it is chosen: scoring from files needs less than training.
    module, _, name = options.pop("function").partition(".")
    function = getattr(import_module(f"cityscapes_maskrcnn.benchmarks.{module}"), name)
    cores = f"{platform.processor() or platform.machine()}, {available_cores()} cores"
    print(f"{cores}\n{function(**options)}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
