#!/usr/bin/env python3
"""Score instance segmentation results in the official txt + PNG format, from anybody's model."""

from __future__ import annotations

import argparse
import sys

from cityscapes_maskrcnn.evaluation.coco_ap import coco_scores, format_coco_scores, match_and_coco
from cityscapes_maskrcnn.evaluation.instance_ap import average_precision, averages, format_averages
from cityscapes_maskrcnn.evaluation.result_files import (
    map_result_files,
    match_result_files,
)
from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.tool import count, run_tool


def main() -> None:
    """Match, average, print, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: tools/evaluate_results.py --results results/ --gt-dir gtFine/val"
        " --coco --json scores.json",
    )
    add = parser.add_argument
    add("--results", required=True, metavar="DIR", help="folder with the text files and masks")
    help_gt = "a split's ground truth, such as gtFine/val; each of its images is scored"
    add("--gt-dir", required=True, metavar="DIR", help=help_gt)
    help_json = "write the official averages here: fractions, null where a class is absent"
    add("--json", metavar="FILE", help=help_json)
    help_workers = "processes (default: one per core)"
    add("--num-workers", type=count, metavar="N", help=help_workers)
    add("--coco", action="store_true", help="print COCO-style scores too, from the same masks")
    args = parser.parse_args()

    coco = []
    if args.coco:
        both = map_result_files(match_and_coco, args.results, args.gt_dir, args.num_workers)
        matches, coco = [image for image, _ in both], [image for _, image in both]
    else:
        matches = match_result_files(args.results, args.gt_dir, args.num_workers)
    scores = averages(average_precision(matches))
    print(f"{len(matches)} images of {args.gt_dir}")
    print(format_averages(scores))
    if coco:
        print(format_coco_scores({"masks": coco_scores(coco, "segm")}))
    if args.json:
        write_json(args.json, {"averages": scores})


if __name__ == "__main__":
    sys.exit(run_tool(main))
