#!/usr/bin/env python
"""Show how a checkpoint was made: config, code, initial weights, data, package versions, seed."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.engine.checkpoint_origin import describe_checkpoint, format_description
from cityscapes_maskrcnn.utils.files import to_json
from cityscapes_maskrcnn.utils.tool import run_tool, tool_parser

EXAMPLES = """
For files of other programs, it shows as much as they record. It never executes code from a file.

examples:
  tools/describe_checkpoint.py output/stage_1/model_final.pth
  extract its config, to train again:
    tools/describe_checkpoint.py --json model_final.pth | jq -r .config > config.yaml
"""


def main(argv: list[str] | None = None) -> None:
    """Read and print."""
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="a .pth, .ckpt, .safetensors or .pkl file")
    parser.add_argument("--config", action="store_true", help="print the whole config too")
    parser.add_argument("--json", action="store_true", help="print JSON, with the config")
    args = parser.parse_args(argv)
    description = describe_checkpoint(Path(args.file))
    if args.json:
        print(to_json(description, indent=1), end="")
    else:
        print(format_description(description, with_config=args.config))


if __name__ == "__main__":
    sys.exit(run_tool(main))
