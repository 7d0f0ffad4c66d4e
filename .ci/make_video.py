#!/usr/bin/env python3
"""Join images into a video that drives a little way into each: something to try predict.py with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2

from cityscapes_maskrcnn.data.images import read_image
from cityscapes_maskrcnn.deploy.frame_detections import BgrImage
from cityscapes_maskrcnn.deploy.frames import Frame
from cityscapes_maskrcnn.deploy.prediction_output import VideoFile
from cityscapes_maskrcnn.utils.tool import count, run_tool
from cityscapes_maskrcnn.visualization.image_files import find_images

# What is left of an image at its last frame, and where its middle is: a little above the centre.
LAST, MIDDLE = 0.75, (0.5, 0.45)


def main() -> None:
    """Parse, and write frame by frame."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="WHAT", help="images, folders or patterns, of one size")
    add("--output", required=True, type=Path, metavar="FILE", help="the video, such as drive.mp4")
    add("--frames", type=count, default=12, metavar="N", help="of each image (default: 12)")
    add("--fps", type=float, default=12, metavar="F", help="frames a second (default: 12)")
    args = parser.parse_args()
    video = VideoFile(args.output, args.fps)
    for file in find_images(args.images):
        for picture in drive(read_image(file, "BGR"), args.frames):
            video.write(Frame(0, str(file), None, picture), picture)
    video.close()


def drive(image: BgrImage, num_frames: int) -> Iterator[BgrImage]:
    """Cut ever smaller parts out of an image, each enlarged to its size; the first is the image."""
    height, width = image.shape[:2]
    for number in range(num_frames):
        part = 1 - (1 - LAST) * number / num_frames
        top, left = ((1 - part) * MIDDLE[1] * height, (1 - part) * MIDDLE[0] * width)
        rows = slice(round(top), round(top + part * height))
        columns = slice(round(left), round(left + part * width))
        yield cv2.resize(image[rows, columns], (width, height), interpolation=cv2.INTER_LINEAR)


if __name__ == "__main__":
    sys.exit(run_tool(main))
