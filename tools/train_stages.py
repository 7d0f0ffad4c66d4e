#!/usr/bin/env python
"""Run the whole recipe: stage 0, stage 1, anchors, threshold search, stage 2, stage 3, scores."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import announce_imports, start_tool

start_tool()  # before the slow imports
announce_imports()

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.recipe.chain import (
    read_states,
    require_inputs,
    run_chain,
)
from cityscapes_maskrcnn.recipe.chain_status import format_plan
from cityscapes_maskrcnn.recipe.report import write_recipe_report
from cityscapes_maskrcnn.recipe.stage_table import STEPS
from cityscapes_maskrcnn.recipe.stages import Recipe, split_words
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser

EXAMPLES = """
examples:
  show the plan only:
    tools/train_stages.py --output output/recipe --dry-run
  run it; to continue after an interruption, run the same command again:
    tools/train_stages.py --output output/recipe
  with another backbone:
    tools/train_stages.py --config-dir configs/convnext_t --output output/convnext_t
  with timm's weights of it:
    tools/train_stages.py --config-dir configs/convnext_t --output output/convnext_t \\
        MODEL.WEIGHTS timm://convnext_tiny.in12k_ft_in1k
  without coarse data, from ImageNet weights instead of stage 0 (the plan names them):
    tools/train_stages.py --output output/recipe --stages stage_1 anchors search stage_2 stage_3 \\
        MODEL.WEIGHTS detectron2://ImageNetPretrained/torchvision/R-50.pkl
  some of the stages, from your own weights:
    tools/train_stages.py --output output/part --stages stage_1 stage_2 MODEL.WEIGHTS my.pth

Every step has a folder with its log, steps.log. Complete steps are not repeated. A step that was
run with another config is an error. If the outputs of an earlier step have changed since, the step
is run again, and its previous files are moved to OUTPUT/replaced.
"""


def main(argv: list[str] | None = None) -> None:
    """Print the plan, run it, and print the results."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    help_configs = "folder of the stages' configs (default: configs)"
    add("--config-dir", type=Path, default="configs", metavar="DIR", help=help_configs)
    help_output = "folder of the run, with a folder for every step"
    add("--output", type=folder("--output"), required=True, metavar="DIR", help=help_output)
    help_stages = f"steps to run (default: all): {' '.join(STEPS)}"
    add("--stages", nargs="+", default=list(STEPS), metavar="STEP", help=help_stages)
    add("--trials", type=int, default=42, metavar="N", help="trials of the search (default: 42)")
    help_confirm = "number of best trials to train again with other seeds (default: 3)"
    add("--confirm", type=int, default=3, metavar="K", help=help_confirm)
    help_gpus = "number of processes per training (default: 1)"
    add("--num-gpus", type=int, default=1, metavar="N", help=help_gpus)
    add("--dry-run", action="store_true", help="only print the plan")
    add_opts(parser, "config keys for all stages")
    args = parser.parse_args(argv)

    stages, opts = split_words(args.stages)
    recipe = Recipe(
        config_dir=args.config_dir,
        output=args.output,
        tools=Path(__file__).resolve().parent,
        build_config=build_config,
        opts=[*opts, *args.opts],
        selected=stages,
        trials=args.trials,
        confirm=args.confirm,
        num_gpus=args.num_gpus,
    )
    steps = recipe.steps()
    print(f"Each step writes to {args.output / 'STEP'}:")
    print(format_plan(steps, states := read_states(steps)), flush=True)
    require_inputs(steps, states)
    if args.dry_run:
        return
    run_chain(steps, args.output, sys.stdout)
    print(f"\n{write_recipe_report(args.output)}")
    print(f"All on one page: python tools/report.py --run {shlex.quote(str(args.output))}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
