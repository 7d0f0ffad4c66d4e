#!/usr/bin/env python
"""Make a model smaller and faster: quantise an exported one, or prune a checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import add_opts, count, folder, run_tool

QUANTIZE = """
The model is scored by the official protocol before and after. If int8 everywhere loses more than
the budget, groups of layers (mask head, box head, RPN head, FPN, first convolution, ...) stay in
float, starting with those that cost most AP. The result is a model.onnx with a model.json, which
every tool accepts like an exported model. Calibration images count as seen, and so do those of
--score if they decided what stays in float.

examples:
  tools/compress_model.py quantize --model output/onnx/model.onnx --output output/int8 \\
      --calibration cityscapes_instance_train --score cityscapes_instance_val_part3of4
  only the weights in int8, which needs no calibration:
    tools/compress_model.py quantize --model output/onnx/model.onnx --output output/weights \\
        --form weights --score cityscapes_instance_val_part3of4
"""
PRUNE = """
The same fraction of channels is removed from every layer, those with the smallest weights; the
outputs of the FPN and of the heads stay. The result, model_pruned.pth with a config.yaml, is a
model like any other: every tool accepts it. Its accuracy is low until it is fine-tuned; the command
for that is printed.

examples:
  tools/compress_model.py prune --config-file output/stage_3/config.yaml --ratio 0.5 \\
      --output output/pruned MODEL.WEIGHTS output/stage_3/model_final.pth
  tools/train_net.py --config-file output/pruned/config.yaml
"""


def main(argv: list[str] | None = None) -> None:
    """Compress a model, and print what was done."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, epilog, add_flags in (
        (
            "quantize",
            "quantise an exported model: int8, int8 weights, or float16",
            QUANTIZE,
            add_quantize_flags,
        ),
        ("prune", "remove channels from the layers of a checkpoint", PRUNE, add_prune_flags),
    ):
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=raw
        )
        add_flags(command)
    args = parser.parse_args(argv)
    {"quantize": quantize_exported, "prune": prune}[args.command](args)


def add_quantize_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of quantisation."""
    add = command.add_argument
    help_model = "an ONNX file from tools/export_model.py"
    add("--model", required=True, type=Path, metavar="FILE", help=help_model)
    help_output = "a new folder for model.onnx and model.json"
    add("--output", required=True, type=folder("--output"), metavar="DIR", help=help_output)
    help_calibration = "registered dataset of training images to calibrate on, for --form int8"
    add("--calibration", default="", metavar="DATASET", help=help_calibration)
    help_score = "registered dataset to score on, which the model has not seen"
    add("--score", required=True, metavar="DATASET", help=help_score)
    help_budget = "largest allowed loss of AP, in points (default: %(default)s)"
    add("--budget", type=float, default=0.5, metavar="POINTS", help=help_budget)
    help_images = "number of images to calibrate on, spread over the dataset (default: %(default)s)"
    add("--num-images", type=count, default=100, metavar="N", help=help_images)
    help_form = "int8; weights: only the weights in int8; fp16 (default: %(default)s)"
    add("--form", default="int8", choices=("int8", "weights", "fp16"), help=help_form)
    help_config = "a config with DATASETS.OWN, if the datasets are your own"
    add("--config-file", default="", metavar="FILE", help=help_config)


def add_prune_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of pruning."""
    add = command.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    help_ratio = "fraction of the channels to remove from every layer, between 0 and 1"
    add("--ratio", required=True, type=float, metavar="R", help=help_ratio)
    help_output = "a new folder for model_pruned.pth and config.yaml"
    add("--output", required=True, type=folder("--output"), metavar="DIR", help=help_output)
    add_opts(command, "MODEL.WEIGHTS, and other keys to set in config.yaml")


def prune(args: argparse.Namespace) -> None:
    """Prune a checkpoint, and print how to train it again."""
    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.deploy.pruning import prune_checkpoint

    cfg = build_config(args.config_file, args.opts)
    path, before, after = prune_checkpoint(cfg, args.ratio, args.output)
    print(f"{path}: {after:,} of {before:,} parameters are left ({after / before:.0%})")
    config = shlex.quote(str(args.output / "config.yaml"))
    print(f"to train it again: python tools/train_net.py --config-file {config}")


def quantize_exported(args: argparse.Namespace) -> None:
    """Quantise an exported model, and print what stayed in float and why."""
    from detectron2.data import DatasetCatalog

    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.data.registration import check_dataset_names
    from cityscapes_maskrcnn.deploy.accuracy_control import (
        CalibrationData,
        ScoringData,
        format_quantized,
        quantize,
    )
    from cityscapes_maskrcnn.evaluation.evaluator import (
        dataset_categories,
        image_and_ground_truth_files,
    )
    from cityscapes_maskrcnn.utils.spread import spread

    if args.form == "int8" and not args.calibration:
        raise InputError("--form int8 needs --calibration, a dataset of training images")
    if args.form != "int8" and args.calibration:
        raise InputError(
            f"--calibration {args.calibration}: --form {args.form} needs none; leave it out"
        )
    build_config(args.config_file, [])
    check_dataset_names(filter(None, [args.calibration, args.score]))
    calibrated = []
    if args.form == "int8":
        files = [Path(each["file_name"]) for each in DatasetCatalog.get(args.calibration)]
        calibrated = spread(files, min(args.num_images, len(files)))
    quantized = quantize(
        args.model,
        args.output,
        form=args.form,
        calibration=CalibrationData(args.calibration, calibrated),
        scoring=ScoringData(
            args.score,
            image_and_ground_truth_files(args.score),
            dataset_categories(args.score),
        ),
        budget=args.budget,
    )
    print(format_quantized(quantized))


if __name__ == "__main__":
    sys.exit(run_tool(main))
