#!/usr/bin/env python
"""Predict on images, a video or a camera; write JSON lines, a video or pictures, as a stream."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.deploy.frame_detections import FrameModel
from cityscapes_maskrcnn.deploy.frames import open_source, parse_size
from cityscapes_maskrcnn.deploy.prediction_job import DEFAULT_RATE, OutputPlan, predict_stream
from cityscapes_maskrcnn.deploy.prediction_output import CODECS
from cityscapes_maskrcnn.deploy.tracking import ObjectTracker
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import (
    add_opts,
    check_score_thresh,
    count,
    folder,
    run_tool,
    tool_parser,
)

EXAMPLES = """
examples (the config of a checkpoint is the config.yaml beside it):
  draw the detections into a video, and write them as JSON lines:
    tools/predict.py --model output/stage_3/model_final.pth --input drive.mp4 \\
        --output drawn.mp4 drive.jsonl --track
  every fifth frame of a camera, until Ctrl-C:
    tools/predict.py --model model.onnx --input 0 --every 5 --output pictures
  transparent overlays of the people in a folder of images:
    tools/predict.py --model output/stage_3/model_final.pth --input photographs \\
        --output overlays --overlay --classes person rider
  read the names of the images from another program:
    find . -name '*.jpg' | tools/predict.py --model model.onnx --input - --output found.jsonl
"""


def main(argv: list[str] | None = None) -> int:
    """Open the source, load the model, and predict the stream."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    check_score_thresh(args.score_thresh)
    plan = OutputPlan(
        args.output,
        layout=args.layout,
        segmentation=args.masks,
        codec=args.codec,
        rate=args.fps,
    )
    size = None if args.resize is None else parse_size(args.resize)
    source = open_source(args.input, every=args.every, size=size)
    plan.refuse_inputs(args.input)
    tracker = None
    if args.track:
        # --fps repeats frames in the video; the tracker gets each of the source once.
        tracker = ObjectTracker(source.rate or plan.rate(source), args.score_thresh)
    model = load_model(args)
    result = predict_stream(source, model, plan, classes=args.classes, tracker=tracker)
    for line in result.lines:
        print(line)
    if result.problem:
        raise InputError(result.problem)
    return result.status


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the tool's flags."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--input",
        required=True,
        nargs="+",
        metavar="WHAT",
        help="images, folders or patterns; or a video; or a camera's number, device or URL; or -,"
        " to read the names of images from standard input",
    )
    add(
        "--output",
        required=True,
        nargs="+",
        type=folder("--output"),
        metavar="PATH",
        help=f"one or several of: NAME.jsonl, a video ({' '.join(CODECS)}), a folder for pictures",
    )
    add("--model", required=True, metavar="FILE", help="a checkpoint, or an exported model.onnx")
    add("--config-file", metavar="FILE", help="default: the config.yaml beside the checkpoint")
    add(
        "--score-thresh",
        type=float,
        default=0.5,
        metavar="T",
        help="lowest score of a detection (default: %(default)s)",
    )
    add("--device", metavar="D", help="cpu, cuda, cuda:1 (default: the config's; for .onnx: cpu)")
    add("--batch-size", type=count, metavar="N", help="number of frames predicted together")
    add("--every", type=count, default=1, metavar="N", help="predict only every N-th frame")
    add("--resize", metavar="SIZE", help="resize frames first: WxH, or the longer side")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    help_track = "track objects: the same number in all frames (ByteTrack)"
    add("--track", action="store_true", help=help_track)
    layouts = parser.add_mutually_exclusive_group()
    parser.set_defaults(layout="prediction")
    for layout, text in (
        ("overlay", "draw only the detections, as transparent pictures"),
        ("side-by-side", "show the original frame to the left of the drawing"),
    ):
        flag = f"--{layout}"
        layouts.add_argument(flag, dest="layout", action="store_const", const=layout, help=text)
    add(
        "--masks",
        choices=("rle", "polygons", "none"),
        default="rle",
        help="format of masks in JSON lines (default: %(default)s)",
    )
    help_fps = f"frame rate of the video (default: that of the input; {DEFAULT_RATE:g} for images)"
    add("--fps", type=float, metavar="F", help=help_fps)
    help_codec = "codec of the video (default: mp4v; MJPG in .avi, VP80 in .webm)"
    add("--codec", metavar="FOURCC", help=help_codec)
    add_opts(parser)
    return parser


def load_model(args: argparse.Namespace) -> FrameModel:
    """Load a checkpoint with its config, or an exported model, for which torch is not imported."""
    if not Path(args.model).is_file():
        raise InputError(f"--model {args.model}: no such file")
    if Path(args.model).suffix == ".onnx":
        if args.config_file or args.opts:
            flag = "--config-file" if args.config_file else args.opts[0]
            raise InputError(f"{flag}: an exported model has no config; export it with other keys")
        from cityscapes_maskrcnn.deploy.onnx_model import OnnxModel

        return OnnxModel(
            args.model,
            score_thresh=args.score_thresh,
            device=args.device or "cpu",
            batch_size=args.batch_size or 1,
        )
    if Path(args.model).suffix.lower() in (".torchscript", ".pt2"):
        raise InputError(
            f"--model {args.model}: TorchScript and torch.export files cannot be used here; give"
            " the checkpoint, or a model.onnx of tools/export_model.py --format onnx"
        )
    import torch

    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.deploy.checkpoint_model import CheckpointModel

    config_file = args.config_file or str(Path(args.model).with_name("config.yaml"))
    if not args.config_file and not Path(config_file).is_file():
        raise InputError(
            f"--model {args.model}: no config.yaml beside it; name one with --config-file"
        )
    # The default of MODEL.DEVICE means a GPU if there is one; the flag means what it says.
    if (args.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: PyTorch finds no GPU")
    device = ["MODEL.DEVICE", args.device] if args.device else []
    cfg = build_config(config_file, [*args.opts, *device, "MODEL.WEIGHTS", args.model])
    if args.batch_size is not None:
        cfg.TEST.BATCH_SIZE = args.batch_size
    return CheckpointModel(cfg, args.score_thresh)


if __name__ == "__main__":
    sys.exit(run_tool(main))
