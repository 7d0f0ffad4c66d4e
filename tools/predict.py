#!/usr/bin/env python
"""Predict images, a video or a camera into JSON lines, a video or pictures, as a stream."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cityscapes_maskrcnn.utils.stop import StopRequests, end_on_signals

end_on_signals()  # before the slow imports

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cityscapes_maskrcnn.deploy import prediction_output as outputs
from cityscapes_maskrcnn.deploy.frame_detections import FrameDetections, FrameModel
from cityscapes_maskrcnn.deploy.frame_drawing import FrameArtist
from cityscapes_maskrcnn.deploy.frames import Frame, FrameSource, open_source, parse_size
from cityscapes_maskrcnn.deploy.prediction_stream import PredictionStream
from cityscapes_maskrcnn.deploy.tracking import ObjectTracker
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import count, one_line, run_tool

EXAMPLES = """
examples (a checkpoint's config is the config.yaml beside it):
  a video with its detections drawn, and all of them as JSON lines:
    tools/predict.py --model output/stage_3/model_final.pth --input drive.mp4 \\
        --output drawn.mp4 drive.jsonl --track
  every fifth frame of a camera, until Ctrl-C:
    tools/predict.py --model model.onnx --input 0 --every 5 --output pictures
  transparent pictures of the people in a folder of images:
    tools/predict.py --model output/stage_3/model_final.pth --input photographs \\
        --output overlays --overlay --classes person rider
  images whose names another program writes:
    find . -name '*.jpg' | tools/predict.py --model model.onnx --input - --output found.jsonl
"""
#: Of a video that is made from images, and of a camera that does not say its own.
DEFAULT_RATE = 10.0


def main(argv: list[str] | None = None) -> int:
    """Open the source and the outputs, load the model, and let the frames through."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    check_flags(args)
    size = None if args.resize is None else parse_size(args.resize)
    source = open_source(args.input, every=args.every, size=size)
    refuse_own_input(args)
    rate = args.fps or source.rate or DEFAULT_RATE
    tracker = ObjectTracker(rate, args.score_thresh) if args.track else None
    model = load_model(args)
    select = class_filter(args.classes, model.class_names)
    written = open_outputs(args, source, rate, model)

    def write(frame: Frame, detections: FrameDetections) -> None:
        detections = select(detections)
        written.write(frame, detections if tracker is None else tracker.update(detections))

    # What waits is late: of a camera no more than the next batch does.
    depth = model.batch_size if source.live else 2 * model.batch_size
    stream = PredictionStream(source, model, write, depth)
    requests = StopRequests(lambda _: stream.stop(), interruptible=True)
    problems = []
    with (
        requests.listening(),
        logging_redirect_tqdm(),
        tqdm(total=source.length, desc="Predicting", unit=source.unit) as progress,
    ):
        try:
            stream.run(progress.update)
        except (InputError, OSError) as error:
            problem = one_line(error)
            if problem is None:
                raise
            problems.append(problem)
        finally:
            problems += written.close()
        seconds = progress.format_dict["elapsed"]
    return report(args, source, stream, written.num_frames, seconds, problems, requests.signals)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the tool's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--input",
        required=True,
        nargs="+",
        metavar="WHAT",
        help="images, folders or patterns; or a video; or a camera's number, device or URL; or -:"
        " names of images on standard input",
    )
    add(
        "--output",
        required=True,
        nargs="+",
        type=Path,
        metavar="PATH",
        help=f"any of: NAME.jsonl, a video ({' '.join(outputs.CODECS)}), a folder for pictures",
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
    add("--device", metavar="D", help="cpu, cuda, cuda:1 (default: the config's; of .onnx the cpu)")
    add("--batch-size", type=count, metavar="N", help="frames that are predicted together")
    add("--every", type=count, default=1, metavar="N", help="predict every N-th frame only")
    add("--resize", metavar="SIZE", help="of frames, first of all: WxH, or the longer side")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    add("--track", action="store_true", help="number objects from frame to frame (ByteTrack)")
    layouts = parser.add_mutually_exclusive_group()
    help_overlay = "transparent pictures of the detections alone"
    layouts.add_argument("--overlay", action="store_true", help=help_overlay)
    help_side_by_side = "put the frame to the left of what is drawn"
    layouts.add_argument("--side-by-side", action="store_true", help=help_side_by_side)
    add(
        "--masks",
        choices=("rle", "polygons", "none"),
        default="rle",
        help="their form in JSON lines (default: %(default)s)",
    )
    help_fps = f"of a video (default: as the input; of images {DEFAULT_RATE:g})"
    add("--fps", type=float, metavar="F", help=help_fps)
    add("--codec", metavar="FOURCC", help="of a video (default: mp4v, in .avi MJPG, in .webm VP80)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Verify what argparse does not."""
    if not 0 <= args.score_thresh <= 1:
        raise InputError(f"--score-thresh {args.score_thresh}: it must lie between 0 and 1")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f"--fps {args.fps:g}: it must lie between 0 and 1000")
    if len(set(args.output)) < len(args.output):
        raise InputError("--output: the same name twice")
    videos = [path for path in args.output if is_video(path)]
    if args.overlay and videos:
        raise InputError(f"--output {videos[0]}: a video cannot be transparent; name a folder")
    drawn = [path for path in args.output if path.suffix != ".jsonl"]
    if args.codec and not videos:
        raise InputError(f"--codec {args.codec}: no --output is a video")
    if (args.overlay or args.side_by_side) and not drawn:
        flag = "--overlay" if args.overlay else "--side-by-side"
        raise InputError(f"{flag}: nothing is drawn into JSON lines; name a folder or video too")
    for path in drawn:
        if path.suffix and path not in videos and not path.is_dir():
            raise InputError(
                f"--output {path}: neither .jsonl nor a video's extension "
                f"({' '.join(outputs.CODECS)}); a folder must have none, or exist"
            )


def refuse_own_input(args: argparse.Namespace) -> None:
    """Keep a video from being replaced by its own drawing."""
    for given in args.input:
        for path in args.output:
            if path.is_file() and Path(given).is_file() and path.samefile(given):
                raise InputError(f"--output {path}: is the input")


def is_video(path: Path) -> bool:
    """Whether an output is a video."""
    return path.suffix.lower() in outputs.CODECS


def load_model(args: argparse.Namespace) -> FrameModel:
    """Load a checkpoint with its config, or an exported model, for which torch is not imported."""
    if not Path(args.model).is_file():
        raise InputError(f"--model {args.model}: no such file")
    if Path(args.model).suffix == ".onnx":
        if args.config_file or args.opts:
            flag = "--config-file" if args.config_file else args.opts[0]
            raise InputError(f"{flag}: an exported model has no config; export it with another one")
        from cityscapes_maskrcnn.deploy.onnx_model import OnnxModel

        return OnnxModel(
            args.model,
            score_thresh=args.score_thresh,
            device=args.device or "cpu",
            batch_size=args.batch_size or 1,
        )
    import torch

    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.deploy.checkpoint_model import CheckpointModel

    config_file = args.config_file or str(Path(args.model).with_name("config.yaml"))
    if not args.config_file and not Path(config_file).is_file():
        raise InputError(
            f"--model {args.model}: no config.yaml beside it: name it by --config-file"
        )
    # The default of MODEL.DEVICE means a GPU if there is one; the flag means what it says.
    if (args.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: PyTorch finds no GPU")
    device = ["MODEL.DEVICE", args.device] if args.device else []
    cfg = build_config(config_file, [*args.opts, *device, "MODEL.WEIGHTS", args.model])
    if args.batch_size is not None:
        cfg.TEST.BATCH_SIZE = args.batch_size
    return CheckpointModel(cfg, args.score_thresh)


def class_filter(
    chosen: Sequence[str] | None, names: Sequence[str]
) -> Callable[[FrameDetections], FrameDetections]:
    """Make the function that keeps the detections of some classes."""
    if chosen is None:
        return lambda detections: detections
    for name in chosen:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the model's are {', '.join(names)}"
            raise InputError(
                f"--classes {name}: {hint} (KEY VALUE pairs must not follow --classes directly)"
            )
    indices = [names.index(name) for name in chosen]
    return lambda detections: detections.select(np.isin(detections.classes, indices))


def open_outputs(
    args: argparse.Namespace, source: FrameSource, rate: float, model: FrameModel
) -> outputs.StreamOutputs:
    """Prepare the files and folders of ``--output``."""
    layout: outputs.Layout = "prediction"
    if args.overlay or args.side_by_side:
        layout = "overlay" if args.overlay else "side-by-side"
    jsonl = [path for path in args.output if path.suffix == ".jsonl"]
    videos = [path for path in args.output if is_video(path)]
    folders = [path for path in args.output if path not in [*jsonl, *videos]]
    return outputs.StreamOutputs(
        detections_to=[outputs.JsonLines(path, model.class_names, args.masks) for path in jsonl],
        pictures_to=[
            *(outputs.VideoFile(path, rate, args.codec) for path in videos),
            *(outputs.PictureFolder(str(path), layout, source.name) for path in folders),
        ],
        artist=FrameArtist(model.class_names, model.class_colors),
        layout=layout,
        in_motion=source.name is not None,
    )


def report(
    args: argparse.Namespace,
    source: FrameSource,
    stream: PredictionStream,
    num_frames: int,
    seconds: float,
    problems: Sequence[str],
    signals: Sequence[int],
) -> int:
    """Print what was done; returns the exit status."""
    where = " and ".join(map(str, args.output))
    done = f"{num_frames} {source.unit}s are in {where}"
    if num_frames < 2:
        done = f"{num_frames or 'no'} {source.unit} is in {where}"
    if stream.num_dropped:
        print(f"{stream.num_dropped} frames came while the model was busy, and were left out")
    if problems:
        raise InputError("; ".join([*problems, done]))
    if signals:
        print(f"stopped early: {done}")
        return 128 + signals[0]
    print(f"{done} ({num_frames / max(seconds, 1e-9):.1f} {source.unit}s a second)")
    if source.num_unreadable:
        raise InputError(f"images that could not be read, see above: {source.num_unreadable}")
    if not num_frames:
        raise InputError(f"--input {' '.join(args.input)}: there was no {source.unit} to predict")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
