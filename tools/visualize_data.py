#!/usr/bin/env python
"""Draw the annotations of a dataset, unchanged or as training augments them."""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser
from cityscapes_maskrcnn.visualization.annotated_images import (
    draw_example,
    draw_record,
    sample_dataset,
    training_examples,
)
from cityscapes_maskrcnn.visualization.image_files import (
    make_folder,
    picture_files,
    place_of_pictures,
    write_picture,
)

EXAMPLES = """
examples:
  twenty random validation images, always the same ones:
    tools/visualize_data.py --dataset cityscapes_instance_val --output pictures --num-images 20
  twenty others, with the coarse semantic labels:
    tools/visualize_data.py --dataset cityscapes_coarse_semantic_train_extra --output pictures \\
        --num-images 20 --seed 1
  the first twenty examples that a training with these keys would see:
    tools/visualize_data.py --augmented --config-file configs/stage_1_heads.yaml \\
        --dataset cityscapes_instance_train --output pictures --num-images 20 \\
        INPUT.LSJ.ENABLED True INPUT.COPY_PASTE.PROB 0.5
"""


def main(argv: list[str] | None = None) -> None:
    """Draw one image after the other."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="such as cityscapes_instance_val")
    help_config = "a config with DATASETS.OWN, or with the INPUT to use for --augmented"
    add("--config-file", default="", metavar="FILE", help=help_config)
    help_output = "folder for the pictures"
    add("--output", required=True, type=folder("--output"), metavar="DIR", help=help_output)
    add("--num-images", type=int, metavar="N", help="number of random images (default: all)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the sample (default: 0)")
    help_augmented = "draw the first N training examples of a run with seed S, in order"
    add("--augmented", action="store_true", help=help_augmented)
    add_opts(parser)
    args = parser.parse_args(argv)

    cfg = build_config(args.config_file, args.opts)
    draw = draw_augmented if args.augmented else draw_annotations
    number = draw(cfg, args)
    print(place_of_pictures(number, args.output))


def draw_annotations(_cfg: CfgNode, args: argparse.Namespace) -> int:
    """Draw a sample of a dataset as it is; return the number of pictures."""
    records, metadata = sample_dataset(args.dataset, args.num_images, args.seed)
    output = make_folder(args.output)
    pictures = picture_files([Path(each["file_name"]) for each in records], output, "_ground_truth")
    for record, picture in zip(tqdm(records, desc="Drawing", unit="image"), pictures, strict=True):
        write_picture(picture, draw_record(record, metadata))
    return len(pictures)


def draw_augmented(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Draw the first examples of a training; return the number of pictures."""
    stream, size = training_examples(cfg, args.dataset, args.num_images, args.seed)
    metadata, output = MetadataCatalog.get(args.dataset), make_folder(args.output)
    examples = tqdm(islice(stream, size), desc="Drawing", unit="image", total=size)
    for number, example in enumerate(examples):
        # An image may come several times.
        (picture,) = picture_files([Path(example["file_name"])], output, "_augmented")
        pixels = draw_example(example, cfg.INPUT.FORMAT, metadata)
        write_picture(picture.with_name(f"{number:05d}_{picture.name}"), pixels)
    return size


if __name__ == "__main__":
    sys.exit(run_tool(main))
