#!/usr/bin/env python3
"""Score instance segmentation results of any model, in the official format (txt and PNG files)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX
from cityscapes_maskrcnn.evaluation.coco_ap import coco_scores, format_coco_scores, match_and_coco
from cityscapes_maskrcnn.evaluation.instance_ap import (
    ALL_CATEGORIES,
    average_precision,
    averages,
    format_averages,
    match_image,
)
from cityscapes_maskrcnn.evaluation.result_files import (
    choose_images,
    find_ground_truth,
    map_result_files,
)
from cityscapes_maskrcnn.evaluation.submission_check import read_image_list
from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.tool import count, run_tool, tool_parser

EXAMPLES = """
examples:
    tools/evaluate_results.py --results results/ --gt-dir gtFine/val --coco --json scores.json
    tools/evaluate_results.py --results stage_1.zip --dataset cityscapes_instance_val_part3and4of4
  the predictions of an exported model, without torch, on images that it was not trained on:
    tools/evaluate_results.py --results output/onnx/model.onnx --gt-dir cityscapes/gtFine/val \\
        --image-list unseen.txt
"""


def main() -> None:
    """Match, average, print, and write the JSON."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    help_results = (
        "folder or zip file with the text files and masks; or a model from tools/export_model.py,"
        " NAME.onnx, which then predicts the images"
    )
    add("--results", required=True, metavar="PATH", help=help_results)
    what = parser.add_mutually_exclusive_group(required=True)
    help_gt = "ground truth of a split, such as gtFine/val; all of its images are scored"
    what.add_argument("--gt-dir", metavar="DIR", help=help_gt)
    help_dataset = "score the images of a registered dataset, such as a part of a split"
    what.add_argument("--dataset", metavar="NAME", help=help_dataset)
    help_images = (
        "images for NAME.onnx with --gt-dir, by city (default: leftImg8bit/SPLIT beside gtFine)"
    )
    add("--image-dir", type=Path, metavar="DIR", help=help_images)
    help_config = "a config with DATASETS.OWN, if the dataset is your own"
    add("--config-file", default="", metavar="FILE", help=help_config)
    help_list = "score only the images in this file: one name or file per line"
    add("--image-list", metavar="FILE", help=help_list)
    help_suffix = "the end of the image names in the list (default: %(default)s)"
    add("--image-suffix", default=IMAGE_SUFFIX, metavar="SUFFIX", help=help_suffix)
    help_json = "write the official averages to this file: fractions, null for absent classes"
    add("--json", metavar="FILE", help=help_json)
    help_workers = "number of processes (default: one per core)"
    add("--num-workers", type=count, metavar="N", help=help_workers)
    add("--coco", action="store_true", help="print COCO-style scores too, from the same masks")
    args = parser.parse_args()
    is_model = Path(args.results).suffix == ".onnx"
    if args.image_dir is not None and not is_model:
        parser.error("--image-dir: only a model, NAME.onnx, needs images; --results is none")
    if args.image_dir is not None and args.dataset is not None:
        parser.error("--image-dir: a dataset has its own images; it is for --gt-dir")
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)

    categories: Sequence[int] = ALL_CATEGORIES
    if args.dataset is not None:
        from cityscapes_maskrcnn.cli import build_config
        from cityscapes_maskrcnn.data.registration import check_dataset_names
        from cityscapes_maskrcnn.evaluation.evaluator import dataset_categories, ground_truth_files

        build_config(args.config_file, [])
        check_dataset_names([args.dataset])
        categories = sorted(dataset_categories(args.dataset))
        gt_files = ground_truth_files(args.dataset)
    else:
        gt_files = find_ground_truth(args.gt_dir)
    if args.image_list:
        images = read_image_list(args.image_list, args.image_suffix)
        gt_files = choose_images(gt_files, [image.name for image in images])
    compare: Callable[..., list[Any]] = partial(
        map_result_files,
        results=args.results,
        gt_files=gt_files,
        num_workers=args.num_workers,
        categories=categories,
    )
    if is_model:
        from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
        from cityscapes_maskrcnn.deploy.scoring import (
            image_of,
            map_exported,
            refuse_seen_by_exported,
        )

        predictor = OnnxPredictor(args.results, num_threads=args.num_workers)
        if args.dataset is not None:
            from cityscapes_maskrcnn.evaluation.evaluator import image_and_ground_truth_files

            chosen = {*gt_files.values()}
            of_dataset = image_and_ground_truth_files(args.dataset)
            pairs = [(image, gt) for image, gt in of_dataset if gt in chosen]
        else:
            pairs = [(image_of(gt, name, args.image_dir), gt) for name, gt in gt_files.items()]
        refuse_seen_by_exported(
            predictor,
            args.results,
            dataset=args.dataset or args.gt_dir,
            images=[image for image, _ in pairs],
            flag="--dataset" if args.dataset else "--gt-dir",
        )
        compare = partial(map_exported, predictor=predictor, images=pairs)
    coco = []
    if args.coco:
        both = compare(match_and_coco)
        matches, coco = [image for image, _ in both], [image for _, image in both]
    else:
        matches = compare(match_image)
    scores = averages(average_precision(matches), categories)
    print(f"{len(matches)} images of {args.dataset or args.gt_dir}")
    print(format_averages(scores))
    if coco:
        print(format_coco_scores({"masks": coco_scores(coco, "segm", categories)}))
    if args.json:
        write_json(args.json, {"averages": scores})


if __name__ == "__main__":
    sys.exit(run_tool(main))
