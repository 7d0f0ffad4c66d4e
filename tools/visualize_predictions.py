#!/usr/bin/env python
"""Draw a model's predictions, beside the ground truth where an image is annotated."""

from __future__ import annotations

import sys

from cityscapes_maskrcnn.utils.startup import start_tool

start_tool()  # before the slow imports

from tqdm import tqdm

from cityscapes_maskrcnn.cli import build_config, split_at_first_key
from cityscapes_maskrcnn.engine.predictor import Predictor
from cityscapes_maskrcnn.utils.tool import add_opts, folder, run_tool, tool_parser
from cityscapes_maskrcnn.visualization import image_files as files

EXAMPLES = """
examples:
  your own photographs:
    tools/visualize_predictions.py --config-file output/stage_1/config.yaml \\
        --input street.jpg 'holiday/*.png' --output pictures \\
        MODEL.WEIGHTS output/stage_1/model_final.pth
  the validation images of one city, ground truth and prediction side by side:
    tools/visualize_predictions.py --config-file output/stage_1/config.yaml \\
        --input datasets/cityscapes/leftImg8bit/val/lindau --output pictures \\
        --score-thresh 0.7 MODEL.WEIGHTS output/stage_1/model_final.pth
"""


def main(argv: list[str] | None = None) -> None:
    """Predict, ``TEST.BATCH_SIZE`` images at a time, and draw one image after the other."""
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's config")
    add("--input", required=True, nargs="+", metavar="IMG", help="files, folders or patterns")
    help_output = "folder for the pictures"
    add("--output", required=True, type=folder("--output"), metavar="DIR", help=help_output)
    add(
        "--score-thresh",
        "--confidence-threshold",  # its name in Detectron2's demo.py
        type=float,
        default=0.5,
        metavar="T",
        help="lowest score of a detection (default: 0.5)",
    )
    add_opts(parser)
    args = parser.parse_args(argv)

    inputs, opts = split_at_first_key(args.input)
    cfg = build_config(args.config_file, [*opts, *args.opts])
    images = files.find_images(inputs)
    predictor = Predictor(cfg, args.score_thresh)
    output = files.make_folder(args.output)
    pictures = files.picture_files(images, output, "_prediction")
    progress = tqdm(images, desc="Drawing", unit="image")
    for image, picture, found in zip(progress, pictures, predictor(images), strict=True):
        files.write_picture(picture, predictor.draw(image, found))
    print(files.place_of_pictures(len(pictures), output))


if __name__ == "__main__":
    sys.exit(run_tool(main))
