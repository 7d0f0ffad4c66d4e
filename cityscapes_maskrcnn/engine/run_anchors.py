"""The anchors of a run, fitted once for all its processes, and the report of a fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from detectron2.utils import comm

from cityscapes_maskrcnn.data.loaders import training_dicts
from cityscapes_maskrcnn.data.registration import check_dataset_names, is_generated_dataset
from cityscapes_maskrcnn.engine.checkpoint import holds_run
from cityscapes_maskrcnn.modeling.anchor_generator import K_MEANS
from cityscapes_maskrcnn.modeling.anchors import (
    DETECTRON2_DEFAULT,
    Anchors,
    Floats,
    fit_anchors,
    format_fit,
    measure_fit,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_json, write_text
from cityscapes_maskrcnn.utils.yaml_files import read_yaml
from cityscapes_maskrcnn.visualization.anchor_plot import plot_anchors
from cityscapes_maskrcnn.visualization.style import About

# Sizes and ratios, as the config has them.
Lists = tuple[list[list[float]], list[list[float]]]


def dataset_boxes(name: str, min_size: int, max_size: int) -> Floats:
    """Get the boxes of a registered dataset at network scale; see :func:`boxes_at_network_scale`.

    Raises:
        InputError: there is no such dataset, or it has no boxes.
    """
    check_dataset_names([name])
    boxes = boxes_at_network_scale(DatasetCatalog.get(name), min_size, max_size)
    if not len(boxes):
        raise InputError(f"{name}: it has no boxes to fit anchors to")
    return boxes


def boxes_at_network_scale(dicts: Sequence[dict[str, Any]], min_size: int, max_size: int) -> Floats:
    """Get width and height of every box in pixels of the network's input at inference.

    Args:
        dicts: Detectron2 dataset dicts. Groups (``iscrowd``), which are no training examples, are
            left out, and so are boxes with a side of less than a pixel of the network's input: what
            is left of an object behind another one. Far from all others on a logarithmic scale, a
            few of them would get a cluster of their own.
        min_size: ``INPUT.MIN_SIZE_TEST``: the length of an image's shorter side; 0: as it is.
        max_size: ``INPUT.MAX_SIZE_TEST``: what its longer side may not exceed.

    Returns:
        Shape (N, 2).
    """
    boxes = [np.zeros((0, 2))]
    for image in dicts:
        objects = [each for each in image.get("annotations", ()) if not each.get("iscrowd", 0)]
        if not objects:
            continue
        height, width = image["height"], image["width"]
        scale = np.ones(2)
        if min_size:
            new_height, new_width = ResizeShortestEdge.get_output_shape(
                height, width, min_size, max_size
            )
            scale = np.array([new_width / width, new_height / height])
        corners = np.array([each["bbox"] for each in objects], np.float64)
        corners = BoxMode.convert(corners, objects[0]["bbox_mode"], BoxMode.XYXY_ABS)
        boxes.append((corners[:, 2:] - corners[:, :2]) * scale)
    stacked = np.concatenate(boxes)
    return stacked[(stacked >= 1).all(axis=1)]


def resolve_anchors(cfg: CfgNode, resume: bool, eval_only: bool) -> str:
    """Fill in the anchors of a config that asks for fitted ones and has none.

    Call it in all processes: the main one decides, the others get what it found. In this order:

    1. Anchors in the config are used. So are all of other generators than the k-means one.
    2. A resumed run goes on with those in its ``OUTPUT_DIR/config.yaml``.
    3. ``MODEL.WEIGHTS`` that were trained with fitted anchors go on with them: those in the
       ``config.yaml`` beside the weights. Refinement of a model on other data keeps its anchors.
    4. They are fitted to ``DATASETS.TRAIN``, in training only.

    Args:
        cfg: edited in place: ``MODEL.ANCHOR_GENERATOR.SIZES`` and ``ASPECT_RATIOS``.
        resume: whether the run continues one in ``OUTPUT_DIR``, if there is one.
        eval_only: whether a model is only scored.

    Returns:
        What was chosen and why, for the log; empty if there was nothing to choose.

    Raises:
        InputError: nothing to fit to, or too few different boxes; a model is to be scored whose
            anchors are not known.
    """
    node = cfg.MODEL.ANCHOR_GENERATOR
    if node.NAME != K_MEANS or node.SIZES:
        return ""
    chosen: Lists | None = None
    reason = ""
    if comm.is_main_process():
        try:
            chosen, reason = _choose(cfg, resume, eval_only)
        except InputError as error:
            # The other processes wait: they must end as well.
            reason = str(error)
    chosen, reason = comm.all_gather((chosen, reason))[0]
    if chosen is None:
        raise InputError(reason)
    node.SIZES, node.ASPECT_RATIOS = chosen
    return f"sizes {node.SIZES}, height/width {node.ASPECT_RATIOS}, {reason}"


def check_report_name(output: str | os.PathLike[str]) -> Path:
    """Get the path of an anchor report's config fragment; raise unless it ends in ``.yaml``."""
    path = Path(output)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"--output {output}: the output is a config fragment, whose name ends in .yaml"
        )
    return path


def write_anchor_report(
    boxes: npt.ArrayLike,
    anchors: Anchors,
    output: str | os.PathLike[str],
    *,
    source: str,
    dataset: str = "",
) -> str:
    """Write a config fragment, and beside it the numbers (``.json``) and a picture (``.png``).

    Args:
        boxes: what the anchors were fitted to: width and height in pixels at network scale, shape
            (N, 2).
        anchors: the fitted anchors.
        output: the fragment, which gives a config that includes it these anchors.
        source: where the boxes are from, in words.
        dataset: registered name of the dataset that the boxes are from. The fragment then lists it
            in ``DATASETS.TUNED_ON``, since the anchors were chosen by its annotations.

    Returns:
        A Markdown table of how well Detectron2's default anchors and these fit.

    Raises:
        InputError: ``output`` has another ending, or a file cannot be written.
    """
    path = check_report_name(output)
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
    if dataset:
        fragment += f'DATASETS:\n  TUNED_ON: ["{dataset}"]  # its boxes chose the anchors\n'
    about = About(
        dataset=source,
        num_images=len(DatasetCatalog.get(dataset)) if dataset else None,
        generated=bool(dataset) and is_generated_dataset(dataset),
        protocol="k-means, refined for the mean best IoU",
    )
    plot_anchors(boxes, anchors, path.with_suffix(".png"), about)
    write_json(path.with_suffix(".json"), numbers)
    write_text(path, fragment)
    return format_fit(before, after)


def _choose(cfg: CfgNode, resume: bool, eval_only: bool) -> tuple[Lists, str]:
    """Get the anchors of a run, and where they are from."""
    output = Path(cfg.OUTPUT_DIR)
    resumed = resume and holds_run(output)
    folders = [output] if resume else []
    if not resumed and cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS:
        folders.append(Path(cfg.MODEL.WEIGHTS).parent)
    for folder in folders:
        found = _read_anchors(folder / "config.yaml")
        if found is not None:
            return found, f"as in {folder / 'config.yaml'}"
    if eval_only or resumed:
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR.SIZES is empty, and {folders[-1] if folders else output} has "
            "no config.yaml with the anchors that the model was trained with: set SIZES and "
            "ASPECT_RATIOS to them"
        )
    boxes = boxes_at_network_scale(
        training_dicts(cfg), cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    anchors = fit_anchors(
        boxes,
        num_sizes=len(cfg.MODEL.RPN.IN_FEATURES),
        num_ratios=cfg.MODEL.ANCHOR_GENERATOR.NUM_RATIOS,
        seed=max(0, cfg.SEED),
    )
    reason = (
        f"fitted to {', '.join(cfg.DATASETS.TRAIN)}. From Detectron2's default anchors to these:\n"
        f"{format_fit(measure_fit(boxes, DETECTRON2_DEFAULT), measure_fit(boxes, anchors))}"
    )
    return ([[size] for size in anchors.sizes], [list(anchors.ratios)]), reason


def _read_anchors(config_yaml: Path) -> Lists | None:
    """Get the anchors from the config of an earlier run; None if there are no k-means ones."""
    try:
        node = read_yaml(config_yaml)["MODEL"]["ANCHOR_GENERATOR"]
        if node["NAME"] != K_MEANS or not node["SIZES"]:
            return None
        return (
            [[float(size) for size in level] for level in node["SIZES"]],
            [[float(ratio) for ratio in level] for level in node["ASPECT_RATIOS"]],
        )
    except (InputError, KeyError, TypeError, ValueError):
        return None
