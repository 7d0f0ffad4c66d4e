#!/usr/bin/env python
"""Export a trained Mask R-CNN to ONNX, TorchScript or torch.export, and compare it with PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser

EXAMPLES = """
Exported models accept any number of uint8 images of any height and width. model.json beside the
model describes resizing, outputs, classes, colours, thresholds, and the origin of the weights. A
model is written only if its predictions agree with PyTorch's.

examples:
  tools/export_model.py --config-file output/stage_3/config.yaml --output output/onnx \\
      MODEL.WEIGHTS output/stage_3/model_final.pth
  with the official scores of both on a dataset:
    tools/export_model.py --config-file output/stage_3/config.yaml --output output/onnx \\
        --score cityscapes_instance_val_part3and4of4 MODEL.WEIGHTS output/stage_3/model_final.pth
  then, on a machine with only ONNX Runtime, NumPy and OpenCV:
    from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
    boxes, classes, scores, masks = OnnxPredictor("output/onnx/model.onnx")("street.png")
"""


def main(argv: list[str] | None = None) -> None:
    """Export, and score if asked to."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    formats = ("onnx", "torchscript", "torch_export")
    add("--format", default="onnx", choices=formats, help="file format (default: %(default)s)")
    add(
        "--output",
        required=True,
        type=folder("--output"),
        metavar="DIR",
        help="folder for the model and model.json; an earlier export there is replaced",
    )
    add("--opset", type=int, default=17, metavar="N", help="ONNX opset, 16 to 20 (default: 17)")
    add(
        "--image",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="an image on which to compare with PyTorch; can be repeated (default: generated street"
        " scenes of several sizes)",
    )
    add(
        "--score",
        metavar="DATASET",
        help="print the official scores of PyTorch and of the ONNX file on a registered dataset",
    )
    add_opts(parser, "MODEL.WEIGHTS and other keys")
    args = parser.parse_args(argv)

    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.data.registration import check_dataset_names
    from cityscapes_maskrcnn.deploy.export import (
        check_scores,
        compare_scores,
        export_model,
        format_check,
        format_scores,
    )

    if args.score and args.format != "onnx":
        raise InputError(f"--score: only --format onnx can be scored, not {args.format}")
    cfg = build_config(args.config_file, args.opts)
    if args.score:
        check_dataset_names([args.score])
    path, check = export_model(
        cfg,
        args.output,
        file_format=args.format,
        opset=args.opset,
        images=args.image,
    )
    print(f"{path}: {format_check(check)}")
    if args.score:
        scores = compare_scores(cfg, path, args.score)
        print(format_scores(scores))
        check_scores(scores, path)


if __name__ == "__main__":
    sys.exit(run_tool(main))
