#!/usr/bin/env python
"""Measure what pruning saves: run recorded trials again with it, in many orders."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from tabulate import tabulate

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.recipe import pruning_replay
from cityscapes_maskrcnn.recipe.storage import open_study, storage_url
from cityscapes_maskrcnn.recipe.tuning import build_pruner
from cityscapes_maskrcnn.utils.run import count, run_tool

EXAMPLES = """
examples:
  record the learning curves once, then replay them with the pruner of the config:
    tools/tune.py --config-file configs/demo/stage_2_search.yaml --trials 20 --no-prune \\
        OUTPUT_DIR output/curves SOLVER.MAX_ITER 60 TEST.EVAL_PERIOD 6 SEARCH.RANDOM_TRIALS 20
    tools/benchmark_search.py --storage output/curves/search.db
  another pruner; scores within 0.2 AP of the best count as the best:
    tools/benchmark_search.py --storage output/curves/search.db --tolerance 0.2 \\
        SEARCH.PRUNER.REDUCTION 3
  on simulated learning curves of 42 trials, 10 evaluations each:
    tools/benchmark_search.py --simulated 42
"""


def main() -> None:
    """Read the curves, replay, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--storage", metavar="URL", help="of the recorded study")
    source.add_argument("--simulated", type=count, metavar="N", help="simulate N trials instead")
    add("--study", default="", metavar="NAME", help="default: the only one")
    add("--orders", type=count, default=200, help="random orders (default: 200)")
    add("--tolerance", type=float, default=0, metavar="AP", help="this far below the best is equal")
    add("opts", nargs="*", metavar="KEY VALUE", help="keys of SEARCH.PRUNER")
    args = parser.parse_args()
    cfg = build_config("", args.opts)
    if args.simulated:
        curves = pruning_replay.simulated_curves(args.simulated)
    else:
        with open_study(storage_url(args.storage), args.study) as study:
            curves = pruning_replay.recorded_curves(study.get_trials(deepcopy=False))
    make_pruner = partial(build_pruner, cfg, min(curves[0]))
    replays = pruning_replay.replay_orders(curves, make_pruner, args.orders, args.tolerance)
    print(f"{len(curves)} trials of {max(curves[0])} iterations, with pruning / without")
    print(tabulate(pruning_replay.summary(curves, replays), tablefmt="plain"))


if __name__ == "__main__":
    sys.exit(run_tool(main))
