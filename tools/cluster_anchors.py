#!/usr/bin/env python
"""Fit anchors to the boxes of a dataset by k-means, and show how well they fit."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.run_anchors import (
    check_report_name,
    dataset_boxes,
    write_anchor_report,
)
from cityscapes_maskrcnn.modeling.anchors import fit_anchors, read_boxes
from cityscapes_maskrcnn.utils.tool import add_opts, run_tool, tool_parser

CONFIG = Path(__file__).parents[1] / "configs" / "Base-MaskRCNN-R50-FPN.yaml"
EXAMPLES = """
examples:
  for images resized as in the recipe's configs:
    tools/cluster_anchors.py --dataset cityscapes_instance_train --output output/anchors.yaml
  for smaller images:
    tools/cluster_anchors.py --dataset cityscapes_instance_train --output output/anchors.yaml \\
        INPUT.MIN_SIZE_TEST 512 INPUT.MAX_SIZE_TEST 1024
  for your own boxes, one line "width,height" per box, in pixels of the network's input:
    tools/cluster_anchors.py --boxes boxes.csv --output output/anchors/anchors.yaml
"""


def main(argv: list[str] | None = None) -> None:
    """Gather the boxes, fit, write, and print how well the anchors fit."""
    parser = tool_parser(__doc__, EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="such as cityscapes_instance_train")
    source.add_argument("--boxes", metavar="CSV", help="a file of width,height lines")
    add = parser.add_argument
    help_config = "the config whose INPUT says how images are resized"
    add("--config-file", default=str(CONFIG), metavar="FILE", help=help_config)
    help_sizes = "number of sizes, one per pyramid level (default: 5)"
    add("--num-sizes", type=int, default=5, metavar="N", help=help_sizes)
    help_ratios = "number of aspect ratios, which is that of anchors per cell (default: 3)"
    add("--num-ratios", type=int, default=3, metavar="N", help=help_ratios)
    add("--seed", type=int, metavar="S", help="0 to 4294967295 (default: SEED of the config)")
    help_output = "config file to write; a .png and a .json file are written beside it"
    add("--output", required=True, metavar="YAML", help=help_output)
    add_opts(parser)
    args = parser.parse_args(argv)
    check_report_name(args.output)
    cfg = build_config(args.config_file, args.opts)
    size, seed = cfg.INPUT, max(0, cfg.SEED) if args.seed is None else args.seed
    if args.boxes is not None:
        boxes, origin = read_boxes(args.boxes), args.boxes
    else:
        boxes = dataset_boxes(args.dataset, size.MIN_SIZE_TEST, size.MAX_SIZE_TEST)
        origin = f"{args.dataset}, shorter side {size.MIN_SIZE_TEST}, longer {size.MAX_SIZE_TEST}"
    anchors = fit_anchors(boxes, num_sizes=args.num_sizes, num_ratios=args.num_ratios, seed=seed)
    table = write_anchor_report(
        boxes, anchors, args.output, source=origin, dataset=args.dataset or ""
    )
    print(f"sizes {anchors.sizes}, height/width {anchors.ratios}\n{table}")
    print(f"Written to {args.output}. The table compares these anchors with Detectron2's default.")


if __name__ == "__main__":
    sys.exit(run_tool(main))
