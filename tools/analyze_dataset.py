#!/usr/bin/env python
"""Report the classes, object sizes, shapes, positions and occlusion in one or several datasets."""

from __future__ import annotations

import sys

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.dataset_report import write_dataset_report
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser

EXAMPLES = """
examples:
  what the training images contain:
    tools/analyze_dataset.py --dataset cityscapes_instance_train --output output/data
  how the validation images differ from them:
    tools/analyze_dataset.py --output output/data \\
        --dataset cityscapes_instance_train cityscapes_instance_val
  data of your own, which a config names in DATASETS.OWN:
    tools/analyze_dataset.py --config-file my_data.yaml --dataset my_train --output output/data

Writes report.md, classes.csv, objects.csv (one line per object) and six charts.
"""


def main(argv: list[str] | None = None) -> None:
    """Measure, write, and print the overview."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    help_dataset = "one to four registered datasets, which are compared"
    add("--dataset", required=True, nargs="+", metavar="NAME", help=help_dataset)
    help_config = "a config with DATASETS.OWN or DATASETS.CLASSES, if the datasets need it"
    add("--config-file", default="", metavar="FILE", help=help_config)
    help_output = "folder for the report"
    add("--output", required=True, type=folder("--output"), metavar="DIR", help=help_output)
    add_opts(parser)
    args = parser.parse_args(argv)
    build_config(args.config_file, args.opts)  # which registers the datasets
    overview, files = write_dataset_report(args.dataset, args.output)
    print("\n".join([overview, "", *map(str, files)]))


if __name__ == "__main__":
    sys.exit(run_tool(main))
