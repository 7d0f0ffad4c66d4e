#!/usr/bin/env python
"""Report what is in a dataset, or how several differ: classes, sizes, shapes, places, occlusion."""

from __future__ import annotations

import argparse
import sys

from cityscapes_maskrcnn.utils.stop import end_on_signals

end_on_signals()  # before the slow imports

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.dataset_report import write_dataset_report
from cityscapes_maskrcnn.utils.tool import run_tool

EXAMPLES = """
examples:
  what the training images hold:
    tools/analyze_dataset.py --dataset cityscapes_instance_train --output output/data
  how the validation images differ from them:
    tools/analyze_dataset.py --output output/data \\
        --dataset cityscapes_instance_train cityscapes_instance_val
  data of your own, which a config names in DATASETS.OWN:
    tools/analyze_dataset.py --config-file my_data.yaml --dataset my_train --output output/data

Writes report.md, classes.csv, objects.csv (a line an object) and six pictures.
"""


def main(argv: list[str] | None = None) -> None:
    """Measure, write, and print the overview."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", required=True, nargs="+", metavar="NAME", help="one to four, to be compared")
    help_config = "whose DATASETS.OWN may name the datasets, and DATASETS.CLASSES their classes"
    add("--config-file", default="", metavar="FILE", help=help_config)
    add("--output", required=True, metavar="DIR", help="folder for the report")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    args = parser.parse_args(argv)
    build_config(args.config_file, args.opts)  # which registers the datasets
    overview, files = write_dataset_report(args.dataset, args.output)
    print("\n".join([overview, "", *map(str, files)]))


if __name__ == "__main__":
    sys.exit(run_tool(main))
