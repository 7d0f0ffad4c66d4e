#!/usr/bin/env python3
"""Check a Cityscapes tree (counts, pairs, damaged files), after downloading it if asked to."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.stop import end_on_signals

end_on_signals()  # before the slow imports

from cityscapes_maskrcnn.data.download import COARSE_PACKAGES, FINE_PACKAGES, download, unpack
from cityscapes_maskrcnn.data.tree import IMAGE_SUFFIX, dataset_root, tree_folder
from cityscapes_maskrcnn.data.tree_check import check_tree, format_checks
from cityscapes_maskrcnn.utils.text import printable
from cityscapes_maskrcnn.utils.tool import count, run_tool

EXAMPLES = """
examples:
  check the tree in $DETECTRON2_DATASETS (or ./datasets):
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
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("root", nargs="?", default=dataset_root(), help="holds cityscapes/ (default: %(default)s)")
    add("--download", action="store_true", help="first fetch and unpack what is missing")
    add("--coarse", action="store_true", help="with --download: the coarse data too (46 GB more)")
    add("--allow-subset", action="store_true", help="accept other counts and image sizes")
    add("--image-folder", default="leftImg8bit", metavar="DIR", help="default: %(default)s")
    help_suffix = "what the names of the images end in (default: %(default)s)"
    add("--image-suffix", default=IMAGE_SUFFIX, metavar="SUFFIX", help=help_suffix)
    add("--num-workers", type=count, metavar="N", help="processes (default: one per core)")
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
        print("\nA part of the official data, or generated data, is checked with --allow-subset.")
    print("\nThe tree is not in order." if troubled else "\nThe tree is in order.")
    root = Path(args.root).absolute()
    if root != Path(dataset_root()).absolute():
        print(f"Training looks elsewhere: export DETECTRON2_DATASETS={shlex.quote(str(root))}")
    return int(troubled)


if __name__ == "__main__":
    sys.exit(run_tool(main))
