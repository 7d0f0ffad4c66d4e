#!/usr/bin/env python
"""Predict a split and write the zip file for the Cityscapes benchmark server, or check one."""

from __future__ import annotations

import argparse
import sys

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX
from cityscapes_maskrcnn.evaluation import submission_check
from cityscapes_maskrcnn.utils.tool import add_opts, run_tool, tool_parser

EXAMPLES = """
examples:
  predict the test images; to continue after an interruption, run the same command again:
    tools/make_submission.py --config-file output/stage_1/config.yaml \\
        --output output/stage_1.zip MODEL.WEIGHTS output/stage_1/model_final.pth
  check the results of any model; with a list of the images, the data are not needed:
    tools/make_submission.py --check results/ --image-list test.txt
"""


def predict(args: argparse.Namespace) -> None:
    """Run in every process."""
    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.engine.submission import make_submission

    make_submission(build_config(args.config_file, args.opts), args.dataset, args.output)


def main() -> int:
    """Predict in --num-gpus processes, or check."""
    parser = tool_parser(__doc__, EXAMPLES)
    add, dataset = parser.add_argument, "cityscapes_instance_test"
    add("--config-file", default="", metavar="FILE", help="the model's config")
    add("--output", metavar="ZIP", help="the zip file to write")
    add("--dataset", default=dataset, metavar="NAME", help=f"default: {dataset}")
    help_gpus = "number of processes, with or without GPUs (default: 1)"
    add("--num-gpus", type=int, default=1, metavar="N", help=help_gpus)
    add("--check", metavar="PATH", help="check this zip file or folder and list its problems")
    help_list = "with --check, instead of --dataset: a file with one image name or file per line"
    add("--image-list", metavar="FILE", help=help_list)
    add(
        "--image-suffix",
        default=IMAGE_SUFFIX,
        metavar="SUFFIX",
        help="the end of the image names in --image-list (default: %(default)s)",
    )
    add("--list-all", action="store_true", help="with --check: do not shorten long lists")
    add_opts(parser)
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")
    args = parser.parse_args()
    if not args.check and not (args.output and args.config_file):
        parser.error("give --config-file and --output to predict, or --check to check")
    if args.image_list and not args.check:
        parser.error("--image-list: goes with --check; a part of a split is predicted by --dataset")
    if not (args.check and args.image_list):
        from cityscapes_maskrcnn.cli import build_config, launch
        from cityscapes_maskrcnn.engine.submission import expected_images
    if not args.check:
        return launch(predict, args)
    if args.image_list:
        images = submission_check.read_image_list(args.image_list, args.image_suffix)
    else:
        # Its DATASETS.OWN may name the dataset.
        build_config(args.config_file, args.opts)
        images = expected_images(args.dataset)
    violations = submission_check.check_submission(args.check, images)
    print(submission_check.format_violations(violations, None if args.list_all else 10))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
