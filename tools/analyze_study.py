#!/usr/bin/env python
"""Report the result of a search: summary, charts, best trials, and best.yaml for stage 2."""

from __future__ import annotations

import sys

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.search.storage import open_study, storage_url, without_password
from cityscapes_maskrcnn.search.study_report import write_study_report
from cityscapes_maskrcnn.utils.tool import folder, run_tool, tool_parser

EXAMPLES = """
examples:
  a search by tools/tune.py:
    tools/analyze_study.py --storage output/search/search.db --study thresholds \\
        --output output/search
  then train with the best values:
    tools/train_net.py --config-file configs/stage_2_tuned.yaml \\
        INCLUDE "('output/anchors/anchors.yaml', 'output/search/best.yaml')" \\
        OUTPUT_DIR output/stage_2

It also reads Optuna studies of other programs, and never changes a study. If the parameters of the
best trial are not config keys, it writes everything except best.yaml.
"""


def main(argv: list[str] | None = None) -> None:
    """Read the study, write the report."""
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--storage", required=True, metavar="URL", help="an SQLite file, or postgresql://..."
    )
    help_study = "name of the study (default: the only one in the storage)"
    parser.add_argument("--study", default="", metavar="NAME", help=help_study)
    help_output = "folder for the report"
    parser.add_argument(
        "--output", required=True, metavar="DIR", type=folder("--output"), help=help_output
    )
    args = parser.parse_args(argv)
    url = storage_url(args.storage)
    with open_study(url, args.study) as study:
        files, missing = write_study_report(study, without_password(url), args.output)
    print("\n".join(filter(None, [*map(str, files), missing])))


if __name__ == "__main__":
    sys.exit(run_tool(main))
