#!/usr/bin/env python
"""Run the whole recipe: stage 0, stage 1, anchors, threshold search, stage 2, stage 3, scores."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.stop import end_on_signals

end_on_signals()  # before the slow imports

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
from cityscapes_maskrcnn.utils.tool import folder, run_tool

EXAMPLES = """
examples:
  see what would be done:
    tools/train_stages.py --output output/recipe --dry-run
  do it; the same command goes on after an interruption:
    tools/train_stages.py --output output/recipe
  with another backbone:
    tools/train_stages.py --config-dir configs/convnext_t --output output/convnext_t
  without coarse data: ImageNet weights in the place of stage 0 (the plan names them):
    tools/train_stages.py --output output/recipe --stages stage_1 anchors search stage_2 stage_3 \\
        MODEL.WEIGHTS detectron2://ImageNetPretrained/torchvision/R-50.pkl
  a part of it, from weights of your own:
    tools/train_stages.py --output output/part --stages stage_1 stage_2 MODEL.WEIGHTS my.pth
every step has a folder with its log, steps.log, in it; a complete step is not repeated; one that
was made with another config is an error; one that was made from outputs of an earlier step which
have changed since is made anew, and what it had is moved to OUTPUT/replaced
"""


def main(argv: list[str] | None = None) -> None:
    """Print the plan, run it, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-dir", type=Path, default="configs", metavar="DIR", help="default: configs")
    add("--output", type=folder("--output"), required=True, metavar="DIR", help="for every step")
    add("--stages", nargs="+", default=list(STEPS), metavar="STEP", help=f"of {' '.join(STEPS)}")
    add("--trials", type=int, default=42, metavar="N", help="of the search (default: 42)")
    help_confirm = "best trials of the search to train again with other seeds (default: 3)"
    add("--confirm", type=int, default=3, metavar="K", help=help_confirm)
    add("--num-gpus", type=int, default=1, metavar="N", help="processes a training (default: 1)")
    add("--dry-run", action="store_true", help="print the plan only")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys for all stages")
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
    print(f"Every step in a folder of its name in {args.output}:")
    print(format_plan(steps, states := read_states(steps)), flush=True)
    require_inputs(steps, states)
    if args.dry_run:
        return
    run_chain(steps, args.output, sys.stdout)
    print(f"\n{write_recipe_report(args.output)}")
    print(f"All on one page: python tools/report.py --run {shlex.quote(str(args.output))}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
