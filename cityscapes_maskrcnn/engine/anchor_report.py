"""What fitted anchors are, how well they fit, and how that looks: three files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy.typing as npt

from cityscapes_maskrcnn.modeling.anchor_generator import K_MEANS
from cityscapes_maskrcnn.modeling.anchors import (
    DETECTRON2_DEFAULT,
    Anchors,
    format_fit,
    measure_fit,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.visualization.anchor_plot import plot_anchors


def write_anchor_report(
    boxes: npt.ArrayLike, anchors: Anchors, output: str | os.PathLike[str], source: str
) -> str:
    """Write a config fragment, and beside it the numbers (``.json``) and a picture (``.png``).

    Args:
        boxes: what the anchors were fitted to: width and height in pixels at network scale, shape
            (N, 2).
        anchors: the fitted anchors.
        output: the fragment; its name ends in ``.yaml``. Merged into a config it gives it these
            anchors. Each file appears only when it is complete.
        source: where the boxes are from, in words.

    Returns:
        A Markdown table of how well Detectron2's default anchors and these fit.

    Raises:
        InputError: ``output`` has another ending, one of the three is a folder, or a file cannot
            be written.
    """
    path = check_output(output)
    before, after = measure_fit(boxes, DETECTRON2_DEFAULT), measure_fit(boxes, anchors)
    numbers = {
        "boxes": source,
        "default": {**asdict(DETECTRON2_DEFAULT), "fit": [asdict(each) for each in before]},
        "fitted": {**asdict(anchors), "fit": [asdict(each) for each in after]},
    }
    sizes = ", ".join(f"[{size:g}]" for size in anchors.sizes)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
    fragment = (
        f"# Anchors fitted by k-means to {after[0].boxes:,} boxes: {source}.\n"
        f"# Mean best IoU {after[0].mean_iou:.3f}; Detectron2's default {before[0].mean_iou:.3f}.\n"
        "VERSION: 2\n"
        "MODEL:\n"
        "  ANCHOR_GENERATOR:\n"
        f'    NAME: "{K_MEANS}"\n'
        f"    SIZES: [{sizes}]  # pixels of the network's input, one size a level\n"
        f"    ASPECT_RATIOS: [[{ratios}]]  # height / width, shared by all levels\n"
    )
    plot_anchors(boxes, anchors, path.with_suffix(".png"))
    texts = {path.with_suffix(".json"): f"{json.dumps(numbers, indent=1)}\n", path: fragment}
    for file_path, text in texts.items():
        try:
            with atomic_write(file_path, "w") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"{file_path}: cannot be written: {error.strerror}") from error
    return format_fit(before, after)


def check_output(output: str | os.PathLike[str]) -> Path:
    """Make sure that a name is a yaml file's, and that no folder is in the way of the three files.

    Raises:
        InputError: it is not, or one is.
    """
    path = Path(output)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"--output {output}: the output is a config fragment, whose name ends in .yaml"
        )
    for each in (path, path.with_suffix(".png"), path.with_suffix(".json")):
        if each.is_dir():
            raise InputError(
                f"--output {output}: {each} is a folder, not a file; choose another name"
            )
    return path
