#!/usr/bin/env python3
"""Write generated street scenes in the official Cityscapes layout.

The scenes are written to ROOT/cityscapes; to use them, set the environment variable
DETECTRON2_DATASETS to ROOT. Running it again with the same arguments does nothing.
"""

from __future__ import annotations

import shlex
import sys

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.synthetic.dataset import generate_dataset
from cityscapes_maskrcnn.utils.tool import count, folder, run_tool, tool_parser

EXAMPLES = """
examples:
  a small dataset for experiments:
    datasets/make_synthetic_cityscapes.py /tmp/streets --train 96 --val 24
  images of the official size, with some for stage 0 and for a submission:
    datasets/make_synthetic_cityscapes.py /tmp/large --train 80 --val 40 --test 8 \\
        --train-extra 80 --height 1024 --width 2048
"""


def main() -> int | None:
    """Parse the command line and generate."""
    parser = tool_parser(__doc__, EXAMPLES)
    help_root = "the folder in which cityscapes/ is created"
    parser.add_argument("root", type=folder("ROOT"), help=help_root)
    parser.add_argument("--train", type=int, default=96, help="number of images (default: 96)")
    parser.add_argument("--val", type=int, default=24, help="number of images (default: 24)")
    parser.add_argument("--test", type=int, default=0, help="number of images (default: 0)")
    parser.add_argument("--train-extra", type=int, default=0, help="number of images (default: 0)")
    parser.add_argument("--height", type=int, default=256, help="image height (default: 256)")
    parser.add_argument("--width", type=int, default=512, help="image width (default: 512)")
    help_seed = "the same seed gives the same bytes (default: 0)"
    parser.add_argument("--seed", type=int, default=0, help=help_seed)
    help_workers = "number of processes (default: one per core)"
    parser.add_argument("--num-workers", type=count, metavar="N", help=help_workers)
    args = parser.parse_args()
    counts = {
        "train": args.train,
        "val": args.val,
        "test": args.test,
        "train_extra": args.train_extra,
    }
    tree = generate_dataset(
        args.root,
        counts,
        height=args.height,
        width=args.width,
        seed=args.seed,
        num_workers=args.num_workers,
    )
    total = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
    print(f"{tree}: {total} images of {args.height}x{args.width}")
    print(f"to use it: export DETECTRON2_DATASETS={shlex.quote(str(args.root))}")
    return None


if __name__ == "__main__":
    sys.exit(run_tool(main))
