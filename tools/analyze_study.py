#!/usr/bin/env python
"""Report what a search found: summary, pictures, top trials, and best.yaml for stage 2."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.stop import end_on_signals

end_on_signals()  # before the slow imports

from cityscapes_maskrcnn.search.storage import open_study, storage_url, without_password
from cityscapes_maskrcnn.search.study_report import write_study_report
from cityscapes_maskrcnn.utils.tool import run_tool

EXAMPLES = """
examples:
  a search by tools/tune.py:
    tools/analyze_study.py --storage output/search/search.db --study thresholds \\
        --output output/search
  then train with what it found:
    tools/train_net.py --config-file configs/stage_2_tuned.yaml \\
        INCLUDE "('output/search/best.yaml',)" OUTPUT_DIR output/stage_2

Studies of other programs are read too, whatever Optuna made them. Nothing in them is changed. Where
the best trial cannot become config keys, all but best.yaml is written.
"""


def main(argv: list[str] | None = None) -> None:
    """Read the study, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--storage", required=True, metavar="URL", help="an SQLite file, or postgresql://..."
    )
    parser.add_argument("--study", default="", metavar="NAME", help="default: the only one")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="for the report")
    args = parser.parse_args(argv)
    url = storage_url(args.storage)
    with open_study(url, args.study) as study:
        files, missing = write_study_report(study, without_password(url), args.output)
    print("\n".join(filter(None, [*map(str, files), missing])))


if __name__ == "__main__":
    sys.exit(run_tool(main))
