#!/usr/bin/env python3
"""Check that a Cityscapes folder is complete and undamaged, or download it first."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.data.download import COARSE_PACKAGES, FINE_PACKAGES, download, unpack
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, dataset_root, tree_folder
from cityscapes_maskrcnn.data.tree_check import check_tree, format_checks
from cityscapes_maskrcnn.utils.text import printable
from cityscapes_maskrcnn.utils.tool import count, run_tool, tool_parser

EXAMPLES = """
examples:
  check the data in $DETECTRON2_DATASETS (or ./datasets):
    datasets/prepare_cityscapes.py
  download, unpack and check the fine annotations and their images (11 GB):
    datasets/prepare_cityscapes.py /data --download
  check generated data, or a part of the official data:
    datasets/prepare_cityscapes.py /data/synthetic --allow-subset
  check a weather variant:
    datasets/prepare_cityscapes.py --allow-subset --image-folder leftImg8bit_foggy \\
        --image-suffix _leftImg8bit_foggy_beta_0.02.png
"""


def main() -> int:
    """Download if asked to, check, print the table."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    help_root = "the folder that contains cityscapes/ (default: %(default)s)"
    add("root", nargs="?", default=dataset_root(), help=help_root)
    add("--download", action="store_true", help="first download and unpack what is missing")
    help_coarse = "with --download: download the coarse data too (45 GB more)"
    add("--coarse", action="store_true", help=help_coarse)
    help_subset = "accept other image counts and sizes than the official ones"
    add("--allow-subset", action="store_true", help=help_subset)
    help_folder = "folder of the images in cityscapes/ (default: %(default)s)"
    add("--image-folder", default="leftImg8bit", metavar="DIR", help=help_folder)
    help_suffix = "the end of the image names (default: %(default)s)"
    add("--image-suffix", default=IMAGE_SUFFIX, metavar="SUFFIX", help=help_suffix)
    help_workers = "number of processes (default: one per core)"
    add("--num-workers", type=count, metavar="N", help=help_workers)
    args = parser.parse_args()

    if args.download:
        folder = Path(args.root, "cityscapes")
        packages = FINE_PACKAGES + COARSE_PACKAGES * args.coarse
        download(folder, packages)
        for package in packages:
            print(f"{unpack(folder / package, folder)} files unpacked from {folder / package}")
        print("The zip files are no longer needed.")
    folder = tree_folder(args.root, args.image_folder)
    checks = check_tree(
        folder,
        allow_subset=args.allow_subset,
        num_workers=args.num_workers,
        image_folder=args.image_folder,
        image_suffix=args.image_suffix,
    )
    print(printable(folder), format_checks(checks), sep="\n")
    troubled = any(check.problems for check in checks)
    if any(check.subset for check in checks):
        print("\nTo check generated data or a part of the official data, add --allow-subset.")
    print("\nThe tree is not in order." if troubled else "\nThe tree is in order.")
    root = Path(args.root).absolute()
    if root != Path(dataset_root()).absolute():
        print(f"Training looks elsewhere: export DETECTRON2_DATASETS={shlex.quote(str(root))}")
    return int(troubled)


if __name__ == "__main__":
    sys.exit(run_tool(main))
