#!/usr/bin/env python
"""Draw a model's most informative images, ground truth beside prediction, with errors by cause.

These are the best, the median and the worst image by official AP, those with the most false
positives, misses and small objects, and one image for each class. DIR/index.md shows them;
DIR/gallery.json describes them for programs.
"""

from __future__ import annotations

import sys

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.gallery import PAGE_FILE, write_gallery
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser
from cityscapes_maskrcnn.visualization.image_files import make_folder

EXAMPLES = """
examples:
  for DATASETS.TEST of the config:
    tools/make_gallery.py --config-file output/stage_3/config.yaml --output output/gallery \\
        MODEL.WEIGHTS output/stage_3/model_final.pth
  predictions of another program, as official result files:
    tools/make_gallery.py --dataset cityscapes_instance_val --predictions results/ \\
        --output output/gallery
"""


def main(argv: list[str] | None = None) -> None:
    """Write the gallery and print its captions."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="the model's config")
    help_output = "folder for the gallery"
    add("--output", required=True, type=folder("--output"), metavar="DIR", help=help_output)
    add("--dataset", metavar="NAME", help="a registered dataset (default: DATASETS.TEST)")
    help_predictions = "official result files to show instead of a model: a folder or zip file"
    add("--predictions", metavar="PATH", help=help_predictions)
    help_thresh = "lowest score of a detection (default: TEST.ANALYSIS_CONFIDENCE)"
    add("--score-thresh", type=float, metavar="T", help=help_thresh)
    add_opts(parser)
    args = parser.parse_args(argv)

    cfg = build_config(args.config_file, args.opts)
    if args.dataset:
        cfg.defrost()
        cfg.DATASETS.TEST = (args.dataset,)
    score_thresh = args.score_thresh
    if score_thresh is None:
        score_thresh = cfg.TEST.ANALYSIS_CONFIDENCE
    output = make_folder(args.output)
    captions = write_gallery(cfg, output, score_thresh, args.predictions)
    print("\n".join(captions))
    print(f"The pictures are in {output / PAGE_FILE}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
