#!/usr/bin/env python
"""Plot the curves of trainings: losses, scores, learning rate, throughput, waiting for data."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import run_tool, tool_parser
from cityscapes_maskrcnn.visualization.training_curves import find_runs, plot_each_run, plot_runs

EXAMPLES = """
examples:
  one run, also while it trains:
    tools/plot_training.py output/stage_1 --output stage_1.png
  two runs in one chart:
    tools/plot_training.py output/stage_1 output/stage_1_large --output both.png
  all stages of a recipe in one chart:
    tools/plot_training.py output/recipe --output recipe.png
  one picture per stage, and one of all (comparison.png):
    tools/plot_training.py output/recipe --output output/recipe/curves
"""


def main(argv: list[str] | None = None) -> None:
    """Read the runs and draw them."""
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="output folder of a training, which contains metrics.json, or of a recipe, for all of"
        " its stages",
    )
    help_output = "a PNG file for one picture of all runs; or a folder, for one of each and of all"
    parser.add_argument("--output", required=True, metavar="FILE.png|DIR", help=help_output)
    args = parser.parse_args(argv)
    output = Path(args.output)
    is_png = output.suffix.lower() == ".png"
    if not args.output or (not is_png and output.is_file()):
        raise InputError(f"--output {args.output or 'is empty'}: name a PNG file or a folder")
    runs = find_runs(args.runs)
    if is_png:
        plot_runs(runs, output)
        print(output)
    else:
        for file in plot_each_run(runs, output):
            print(file)


if __name__ == "__main__":
    sys.exit(run_tool(main))
