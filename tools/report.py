#!/usr/bin/env python
"""Write a report of a recipe run: one page, which needs no other files and no network."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.report.page import write_report
from cityscapes_maskrcnn.utils.tool import folder, run_tool, tool_parser

EXAMPLES = """
example:
    tools/report.py --run output/recipe --output report.html

The page shows what was trained on what, scores, curves, anchors, search, errors, examples, the
commands to repeat the run, and its limitations. If the run is incomplete, the page covers what
there is. Its examples are those in RUN/gallery, which tools/train_stages.py draws; for stages that
were trained by hand, run tools/make_gallery.py --output RUN/gallery first.
"""


def main(argv: list[str] | None = None) -> None:
    """Read the run and write the page."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    help_run = "the run's folder, the --output of tools/train_stages.py"
    add("--run", type=folder("--run"), required=True, metavar="DIR", help=help_run)
    help_output = "the page to write (default: report.html in the run's folder)"
    add("--output", type=Path, metavar="HTML", help=help_output)
    args = parser.parse_args(argv)
    output = args.output or args.run / "report.html"
    write_report(args.run, output)
    size = output.stat().st_size
    text = f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1000:.0f} kB"
    print(f"{output}: {text}, open it in a browser")


if __name__ == "__main__":
    sys.exit(run_tool(main))
