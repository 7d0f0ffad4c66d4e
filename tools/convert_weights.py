#!/usr/bin/env python
"""Convert weights to a file that Detectron2 loads, or average the checkpoints of a run.

No code from the files is run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.engine.checkpoint_average import average_checkpoints
from cityscapes_maskrcnn.engine.weight_conversion import convert_checkpoint, take_as_named
from cityscapes_maskrcnn.modeling.weight_files import write_tensors
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import run_tool, tool_parser

EXAMPLES = """
A checkpoint of PyTorch Lightning, MMDetection 3 or another program may contain objects besides its
tensors, and loading those can execute code. They are skipped, so no code is executed.

examples:
  torchvision's weights, which are downloaded and whose hash is checked:
    tools/convert_weights.py torchvision://deeplabv3_resnet50 deeplab.pth
  (or deeplabv3_resnet101); then initialise any Detectron2 model that has this ResNet:
    train_net.py ... MODEL.WEIGHTS deeplab.pth MODEL.RESNETS.STRIDE_IN_1X1 False INPUT.FORMAT RGB \\
        MODEL.PIXEL_MEAN "(123.675,116.28,103.53)" MODEL.PIXEL_STD "(58.395,57.12,57.375)"
  the tensors of a Detectron2 model that was trained with PyTorch Lightning:
    tools/convert_weights.py --keep-names last.ckpt model.pth
  the mean of a run's last checkpoints (stochastic weight averaging), to score with its config:
    tools/convert_weights.py --average output/model_001[5-9]999.pth output/averaged.pth
"""


def main(argv: list[str] | None = None) -> None:
    """Read, translate, write, and report what became of every tensor."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    help_inputs = "a .pth or .safetensors file, torchvision://... or timm://..."
    add("inputs", metavar="IN", nargs="+", help=help_inputs)
    add("output", metavar="OUT", help="the .pth file to write")
    add(
        "--keep-names",
        action="store_true",
        help="write all tensors of any network, with unchanged names",
    )
    add(
        "--average",
        action="store_true",
        help="write the mean of all IN, which are checkpoints of one run, with unchanged names",
    )
    add("--list", action="store_true", help="print a line for every tensor")
    args = parser.parse_args(argv)

    if Path(args.output).suffix != ".pth":
        raise InputError(
            f"{args.output}: OUT must end in .pth, by which Detectron2 recognises the format"
        )
    if args.average:
        # Otherwise all files of a pattern, without OUT after it, would replace the last of them.
        if Path(args.output).exists():
            raise InputError(f"{args.output}: exists; name a new file, OUT, after all IN")
        content = average_checkpoints(args.inputs)
        _, report = take_as_named(content["model"], f"the mean of {len(args.inputs)} files")
    elif len(args.inputs) > 1:
        raise InputError(
            f"{args.inputs[1]}: only one file is converted at a time, except with --average"
        )
    elif os.path.realpath(args.output) == os.path.realpath(args.inputs[0]):
        raise InputError(f"{args.output}: is the input; name another file, OUT")
    else:
        content, report = convert_checkpoint(args.inputs[0], keep_names=args.keep_names)
    write_tensors(args.output, content)
    print(report.summary())
    if args.list:
        for new, old in report.used.items():
            print(f"used     {old} -> {new}")
        for name, reason in report.skipped.items():
            print(f"skipped  {name}: {reason}")
        for name in report.missing:
            print(f"missing  {name}")
    print(f"{len(content['model'])} tensors are in {args.output}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
