#!/usr/bin/env python3
"""Measure speed, memory and accuracy, compared with Detectron2, torchvision, official scripts."""

from __future__ import annotations

import argparse
import platform
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.parallel import available_cores
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser

EXAMPLES = """
examples:
  tools/benchmark.py training --json training.json
  tools/benchmark.py inference --small
  tools/benchmark.py recipe --workers 2 --output output/ablation --json recipe.json
  tools/benchmark.py deployment --config-file output/stage_3/config.yaml \\
      --onnx output/onnx/model.onnx output/int8/model.onnx \\
      --also pruned output/pruned/fine_tuned/config.yaml output/pruned/fine_tuned/model_final.pth \\
      --json trade.json --picture trade.png MODEL.WEIGHTS output/stage_3/model_final.pth
  tools/benchmark.py stage-0 --steps 6 SOLVER.IMS_PER_BATCH 2 INPUT.CROP.SIZE "[256,512]"
"""
STAGE_0 = str(Path(__file__).parents[1] / "configs" / "stage_0_backbone.yaml")
STAGE_1 = Path(__file__).parents[1] / "configs" / "stage_1_heads.yaml"
DEMO = str(Path(__file__).parents[1] / "configs" / "demo")


def main() -> None:
    """Parse, import what is chosen, measure, print the table with the machine named."""
    parser = tool_parser(__doc__, EXAMPLES)
    chosen = parser.add_subparsers(required=True)
    new = partial(chosen.add_parser, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    load = new("loading", help="reading the annotations of a split")
    load.set_defaults(function="loading.benchmark_loading")
    load.add_argument("--objects", type=int, default=75, dest="num_objects", help="per image")
    once = new("evaluation", help="scoring on one core")
    once.set_defaults(function="evaluation.benchmark_evaluation")
    scale = new("evaluation-at-scale", help="scoring in worker processes: time and memory")
    scale.set_defaults(function="evaluation_at_scale.benchmark_scale", config_file=STAGE_1)
    help_workers = "numbers of workers to compare"
    scale.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help=help_workers)
    help_side = "height of the images on which a model predicts; 0: no model"
    scale.add_argument("--model-side", type=int, default=0, help=help_side)
    for each, number in ((load, 2975), (once, 4), (scale, 500)):
        add, dest = each.add_argument, "num_images"
        add("--images", type=int, default=number, dest=dest, help="number of images")
    for each in (load, once):
        each.add_argument("--repeats", type=int, default=5, help="the median is reported")
    for each, number in ((once, 60), (scale, 100)):
        add, dest = each.add_argument, "num_predictions"
        add("--predictions", type=int, default=number, dest=dest, help="per image")
        add("--height", type=int, default=1024, help="of the images, in pixels")
        add("--width", type=int, default=2048, help="of the images, in pixels")
    step = new("stage-0", help="time and memory of a training step of stage 0")
    step.set_defaults(function="stage_0.benchmark_stage_0", config_file=STAGE_0)
    help_steps = "steps of each system; the median is reported"
    step.add_argument("--steps", type=int, default=5, help=help_steps)
    equal = new("determinism", help="cost of DETERMINISTIC in a training step of stage 1")
    equal.set_defaults(function="determinism_cost.benchmark_determinism", config_file=str(STAGE_1))
    equal.add_argument("--steps", type=int, default=30, help="the median is reported")
    whole = {
        "training": "a training step of stages 1 to 3, compared with Detectron2",
        "inference": "inference, compared with Detectron2",
        "mapper": "reading training images, compared with Detectron2's mapper",
    }
    for name, text in whole.items():
        each = new(name, help=text)
        each.set_defaults(function=f"{name}_speed.benchmark_{name}", config_file=str(STAGE_1))
        help_small = "smaller sizes for a CPU; takes at most five minutes"
        each.add_argument("--small", action="store_true", help=help_small)
        each.add_argument("--json", metavar="FILE", help="write the results to this file too")
    recipe = new("recipe", help="ablation of the recipe: the AP of each part, on generated data")
    recipe.set_defaults(function="recipe_ablation.benchmark_recipe", config_dir=DEMO)
    recipe.set_defaults(report=partial(print, flush=True))
    help_small = "few steps, to try the command; the scores mean nothing"
    recipe.add_argument("--small", action="store_true", help=help_small)
    help_pieces = "run only these parts, such as EMA"
    recipe.add_argument("--pieces", nargs="+", metavar="NAME", help=help_pieces)
    output = "folder for trainings and scores; the same command continues there, also in several"
    output += " processes"
    recipe.add_argument(
        "--output",
        type=folder("--output"),
        default="output/recipe_ablation",
        dest="folder",
        help=output,
    )
    help_iterations = (
        "of the staged recipe (None: 220, with --small 12); the other trainings get as"
    )
    help_iterations += " much compute"
    recipe.add_argument("--iterations", type=int, metavar="N", help=help_iterations)
    help_workers = "number of processes that share the work"
    recipe.add_argument("--workers", type=int, default=1, help=help_workers)
    help_json = "write the results to this file"
    recipe.add_argument("--json", metavar="FILE", dest="json_file", help=help_json)
    trade = new("deployment", help="AP, time, file size and memory of a model in several forms")
    add_deployment_flags(trade)
    for each in (step, equal, trade):
        add_opts(each, "config keys")
    options = vars(parser.parse_args())
    module, _, name = options.pop("function").partition(".")
    function = getattr(import_module(f"cityscapes_maskrcnn.benchmarks.{module}"), name)
    print(f"{platform.processor() or platform.machine()}, {available_cores()} cores")
    json_file = options.pop("json", None)
    result = function(**options)
    if isinstance(result, str):
        print(result)
        return
    print(import_module("cityscapes_maskrcnn.benchmarks.rows").table(result))
    if json_file is not None:
        write_json(Path(json_file), [row.as_json() for row in result])


def add_deployment_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the benchmark of a trained model."""
    parser.set_defaults(function="deployment.benchmark_deployment")
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    help_score = "registered dataset to score on; empty: the config's DATASETS.TEST"
    add("--score", default="", dest="dataset", metavar="DATASET", help=help_score)
    names = ("NAME", "CONFIG", "WEIGHTS")
    help_also = "another model, such as a pruned one; can be repeated"
    add("--also", action="append", nargs=3, default=[], metavar=names, help=help_also)
    help_onnx = "exported files, quantised or not"
    add("--onnx", nargs="+", type=Path, default=[], metavar="FILE", help=help_onnx)
    help_sizes = "shorter image sides in pixels (None: half and three quarters of the config's)"
    add("--sizes", nargs="+", type=int, metavar="PX", help=help_sizes)
    help_proposals = "numbers of proposals per image"
    add("--proposals", nargs="+", type=int, default=[1000, 300, 100], help=help_proposals)
    help_timed = "number of images to time, one at a time"
    add("--images", type=int, default=8, dest="num_timed", help=help_timed)
    add("--repeats", type=int, default=5, dest="blocks", help="the median is reported")
    help_json = "write the results to this file"
    add("--json", type=Path, dest="json_file", metavar="FILE", help=help_json)
    add("--picture", type=Path, metavar="FILE", help="draw a chart into this PNG file")


if __name__ == "__main__":
    sys.exit(run_tool(main))
