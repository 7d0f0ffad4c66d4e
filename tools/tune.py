#!/usr/bin/env python
"""Search for the best matching thresholds with Optuna, with any number of workers."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.tuning import tune
from cityscapes_maskrcnn.utils.stop import Stopped, StopRequests
from cityscapes_maskrcnn.utils.tool import add_opts, run_tool, tool_parser

EXAMPLES = """
examples:
  search on this machine; run the same command again to continue, or to add a worker:
    tools/tune.py --config-file configs/stage_2_search.yaml --study thresholds --trials 42 \\
        INCLUDE "('output/anchors/anchors.yaml',)" OUTPUT_DIR output/search \\
        MODEL.WEIGHTS output/stage_1/model_final.pth
  a worker of a search on many machines:
    tools/tune.py --config-file configs/stage_2_search.yaml --study thresholds --trials 42 \\
        --storage postgresql://user:password@host/optuna \\
        INCLUDE "('output/anchors/anchors.yaml',)" OUTPUT_DIR output/search \\
        MODEL.WEIGHTS output/stage_1/model_final.pth
  search the learning rate too, in a separate study:
    tools/tune.py --config-file configs/stage_2_search.yaml --study with_rate \\
        OUTPUT_DIR output/search_rate SEARCH.PARAMETERS.base_lr.ENABLED True
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and search."""
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the trials")
    parser.add_argument("--study", default="search", help="name of the study (default: search)")
    help_storage = "postgresql://... or an SQLite file (default: OUTPUT_DIR/search.db)"
    parser.add_argument("--storage", default="", metavar="URL", help=help_storage)
    help_trials = "trials of the whole study, including those of other workers (default: 42)"
    parser.add_argument("--trials", type=int, default=42, metavar="N", help=help_trials)
    parser.add_argument("--no-prune", action="store_true", help="do not end bad trials early")
    help_confirm = (
        "repeat the best K trials with 2 other seeds each, and rank them by the mean (default: 0)"
    )
    parser.add_argument("--confirm", type=int, default=0, metavar="K", help=help_confirm)
    help_gpus = "number of processes per trial (default: 1)"
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help=help_gpus)
    add_opts(parser, "config keys, after all flags")
    args = parser.parse_args(argv)

    cfg = build_config(args.config_file, args.opts)
    train_net = str(Path(__file__).resolve().with_name("train_net.py"))
    command = [sys.executable, train_net, "--num-gpus", str(args.num_gpus)]
    with StopRequests(notice="stopping when the trial has saved").listening() as stop:
        try:
            tune(
                cfg,
                study_name=args.study,
                storage=args.storage,
                budget=args.trials,
                prune=not args.no_prune,
                confirm_best=args.confirm,
                train_command=command,
                stop=stop,
            )
        except Stopped as stopped:
            return stopped.status
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
