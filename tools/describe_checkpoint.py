#!/usr/bin/env python
"""Show what a checkpoint says of its making: config, code, parents, data, packages, seed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.stop import end_on_signals

end_on_signals()  # before the slow imports

from cityscapes_maskrcnn.engine.checkpoint_origin import describe_checkpoint, format_description
from cityscapes_maskrcnn.utils.files import to_json
from cityscapes_maskrcnn.utils.tool import run_tool

EXAMPLES = """
Files of other programs are described as far as they go. No code is executed from any file.

examples:
  tools/describe_checkpoint.py output/stage_1/model_final.pth
  train again from the config that is in it:
    tools/describe_checkpoint.py --json model_final.pth | jq -r .config > config.yaml
"""


def main(argv: list[str] | None = None) -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", help="a .pth, .ckpt, .safetensors or .pkl file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    description = describe_checkpoint(Path(args.file))
    if args.json:
        print(to_json(description, indent=1), end="")
    else:
        print(format_description(description))


if __name__ == "__main__":
    sys.exit(run_tool(main))
