#!/usr/bin/env python
"""Draw the annotations of a dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.stop import end_on_signals

end_on_signals()  # before the slow imports

from tqdm import tqdm

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.utils.tool import run_tool
from cityscapes_maskrcnn.visualization.annotated_images import draw_record, sample_dataset
from cityscapes_maskrcnn.visualization.image_files import make_folder, picture_files, write_picture

EXAMPLES = """
examples:
  twenty validation images, always the same:
    tools/visualize_data.py --dataset cityscapes_instance_val --output pictures --num-images 20
  other ones, with the coarse semantic labels:
    tools/visualize_data.py --dataset cityscapes_coarse_semantic_train_extra --output pictures \\
        --num-images 20 --seed 1
"""


def main(argv: list[str] | None = None) -> None:
    """Draw one image after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="such as cityscapes_instance_val")
    help_config = "a config whose DATASETS.OWN may name the dataset"
    add("--config-file", default="", metavar="FILE", help=help_config)
    add("--output", required=True, metavar="DIR", help="folder for the pictures")
    add("--num-images", type=int, metavar="N", help="draw a random sample only (default: all)")
    add("--seed", type=int, default=0, metavar="S", help="of the sample (default: 0)")
    args = parser.parse_args(argv)

    build_config(args.config_file, [])
    records, metadata = sample_dataset(args.dataset, args.num_images, args.seed)
    folder = make_folder(args.output)
    pictures = picture_files([Path(each["file_name"]) for each in records], folder, "_ground_truth")
    for record, picture in zip(tqdm(records, desc="Drawing", unit="image"), pictures, strict=True):
        write_picture(picture, draw_record(record, metadata))
    print(f"{len(pictures)} pictures are in {folder}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
