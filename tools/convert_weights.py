#!/usr/bin/env python
"""Convert torchvision's deeplabv3_resnet50 to a file that Detectron2 loads as it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, read_history, to_plain
from cityscapes_maskrcnn.modeling.deeplab_weights import translate
from cityscapes_maskrcnn.modeling.weight_files import (
    TORCHVISION_SCHEME,
    fetch_torchvision,
    read_checkpoint,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.utils.tool import run_tool

EXAMPLES = """
examples:
  torchvision's own weights, downloaded and their hash checked:
    tools/convert_weights.py torchvision://deeplabv3_resnet50 deeplab.pth
  then start any ResNet-50 model of Detectron2 from it:
    train_net.py ... MODEL.WEIGHTS deeplab.pth MODEL.RESNETS.STRIDE_IN_1X1 False INPUT.FORMAT RGB \\
        MODEL.PIXEL_MEAN "(123.675,116.28,103.53)" MODEL.PIXEL_STD "(58.395,57.12,57.375)"
"""


def main(argv: list[str] | None = None) -> None:
    """Read, translate, write, and report what became of every tensor."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input", metavar="IN", help="a .pth or .safetensors file, or torchvision://...")
    add("output", metavar="OUT", help="the .pth file to write")
    add("--list", action="store_true", help="print a line for every tensor")
    args = parser.parse_args(argv)

    if Path(args.output).suffix != ".pth":
        raise InputError(
            f"{args.output}: OUT must end in .pth, by which Detectron2 knows the format"
        )
    is_name = args.input.startswith(TORCHVISION_SCHEME)
    path = fetch_torchvision(args.input) if is_name else Path(args.input)
    checkpoint = read_checkpoint(path)
    tensors, report = translate(checkpoint["model"], args.input)
    # Detectron2 looks for names that end in these, wherever the model keeps its backbone.
    content = {"model": tensors, "__author__": "torchvision", "matching_heuristics": True}
    if history := read_history(checkpoint, args.input):
        content[SEEN_IMAGES_KEY] = to_plain(history)
    with atomic_write(args.output) as file:
        torch.save(content, file)
    print(report.summary())
    if args.list:
        for new, old in report.used.items():
            print(f"used     {old} -> {new}")
        for name, reason in report.skipped.items():
            print(f"skipped  {name}: {reason}")
        for name in report.missing:
            print(f"missing  {name}")
    print(f"{len(tensors)} tensors are in {args.output}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
