"""Export a trained Mask R-CNN to a file for other programs, after comparing it with PyTorch."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

import cityscapes_maskrcnn
from cityscapes_maskrcnn.data.images import read_image
from cityscapes_maskrcnn.data.labels import CONTIGUOUS_TO_ID, THING_CLASSES, THING_COLORS
from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, TRAINED, TUNED, to_plain
from cityscapes_maskrcnn.data.registration import check_dataset_names, register_datasets_of
from cityscapes_maskrcnn.deploy.exportable import (
    ExportableMaskRCNN,
    check_exportable,
    plain_config,
)
from cityscapes_maskrcnn.deploy.runtime import (
    CARD_VERSION,
    Detections,
    OnnxPredictor,
    open_session,
    resize,
    resized_size,
)
from cityscapes_maskrcnn.deploy.scoring import exported_scores
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.checkpoint_origin import describe_checkpoint
from cityscapes_maskrcnn.engine.inference import model_categories
from cityscapes_maskrcnn.engine.seen_images import refuse_seen_images
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.evaluator import (
    CityscapesInstanceEvaluator,
    dataset_categories,
    image_and_ground_truth_files,
)
from cityscapes_maskrcnn.evaluation.instance_ap import PROTOCOL
from cityscapes_maskrcnn.evaluation.pasting import THRESHOLD
from cityscapes_maskrcnn.synthetic.scene import render_scene
from cityscapes_maskrcnn.utils.config_keys import changed
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, file_digest, write_json

#: RoIAlign with aligned corners came with 16; what the exporter of torch knows ends with 20.
OPSETS: Final = range(16, 21)
OUTPUTS: Final = ("boxes", "classes", "scores", "masks", "image_indices")
#: AP points by which the scores of the file and of PyTorch may differ.
MAX_AP_DIFFERENCE: Final = 0.1
# Largest differences to PyTorch: pixels of the network's input, and probabilities.
_TOLERANCES: Final = {"box": 0.05, "score": 1e-3, "mask": 1e-3}

# Takes uint8 of shape (N, 3, H, W) and returns what ExportableMaskRCNN does.
Exported = Callable[[npt.NDArray[np.uint8]], Sequence[npt.NDArray[Any]]]


def export_model(
    cfg: CfgNode,
    folder: Path,
    *,
    file_format: str = "onnx",
    opset: int = 17,
    images: Sequence[Path] = (),
) -> tuple[Path, dict[str, Any]]:
    """Export ``MODEL.WEIGHTS`` and describe it in ``model.json``.

    The file gets its name when it agrees with PyTorch on all images, those given or generated
    ones, of several sizes, alone and as a batch.

    Args:
        cfg: the model's config.
        folder: for the two files.
        file_format: of :data:`FORMATS`.
        opset: of ONNX, of :data:`OPSETS`.
        images: files to compare on; none: generated street scenes.

    Returns:
        The file of the model, and what :func:`compare_with_pytorch` found.

    Raises:
        InputError: there are no weights, or not all; the model cannot be exported, or not in this
            format; the two disagree, or find nothing in the images; the folder cannot be written.
    """
    if file_format not in FORMATS:
        raise InputError(f"--format {file_format}: it must be one of {', '.join(FORMATS)}")
    if file_format == "onnx" and opset not in OPSETS:
        raise InputError(f"--opset {opset}: it must be between {OPSETS[0]} and {OPSETS[-1]}")
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: only GeneralizedRCNN, with"
            " StandardROIHeads or BatchedROIHeads, can be exported"
        )
    chosen = FORMATS[file_format]
    path = folder / chosen.file
    card_file = path.with_suffix(".json")
    files = [each.file for each in FORMATS.values()]
    others = [each for each in files if each != path.name and (folder / each).exists()]
    if others:
        raise InputError(
            f"{folder}: holds {others[0]}, which {card_file.name} describes; name another --output"
        )
    cfg = plain_config(cfg)
    register_datasets_of(cfg)
    categories = model_categories(cfg)
    batches = _batches(cfg, images, chosen.smallest)
    model = Trainer.build_model(cfg).eval()
    check_exportable(model)
    checkpointer = load_for_inference(model, cfg)
    network = ExportableMaskRCNN(model).eval()
    weights = checkpointer.path_manager.get_local_path(checkpointer.path.partition("?")[0])
    options = {"opset": opset} if file_format == "onnx" else {}
    data = chosen.export(network, **options)
    check = compare_with_pytorch(model, chosen.open(data), batches, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data)
    card = {
        "version": CARD_VERSION,
        "program": f"cityscapes_maskrcnn {cityscapes_maskrcnn.__version__}",
        "file": {
            "name": path.name,
            "format": file_format,
            **options,
            "sha256": file_digest(path),
            "bytes": len(data),
        },
        **_interface(cfg, categories, chosen.smallest),
        "compared_with_pytorch": check,
        "checkpoint": {**describe_checkpoint(Path(weights)), "file": checkpointer.path},
        SEEN_IMAGES_KEY: to_plain(checkpointer.history),
    }
    write_json(card_file, card)
    return path, check


def _interface(cfg: CfgNode, categories: Sequence[int], smallest: int) -> dict[str, Any]:
    """Describe what goes into an exported model and what comes out, for the card.

    Args:
        cfg: the model's config.
        categories: contiguous ids, 0 to 7, of its classes.
        smallest: see :class:`Format`.
    """
    return {
        "input": {
            "name": "images",
            "shape": ["images", 3, "height", "width"],
            "dtype": "uint8",
            "channels": cfg.INPUT.FORMAT,
            "smallest": smallest,
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "resize": "Pillow's bilinear filter; the shorter side to min_size, the longer one to at"
            " most max_size",
            "normalisation": "in the file: (pixel - mean) / std, then zeros at the right and bottom"
            " up to a multiple of the network's stride",
            "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": list(cfg.MODEL.PIXEL_STD),
        },
        "outputs": {
            "boxes": "float32 (detections, 4): x0, y0, x1, y1 in pixels of the input",
            "classes": "int64 (detections,): index into classes",
            "scores": "float32 (detections,): falling within an image",
            "masks": "float32 (detections, size, size): probabilities over the box",
            "image_indices": "int64 (detections,): of which image of the batch; ascending",
        },
        "classes": [
            {
                "name": THING_CLASSES[category],
                "label_id": CONTIGUOUS_TO_ID[category],
                "color": list(THING_COLORS[category]),
            }
            for category in categories
        ],
        "thresholds": {
            "score": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "nms": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "proposal_nms": cfg.MODEL.RPN.NMS_THRESH,
            "proposals": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
            "mask": THRESHOLD,
        },
    }


def compare_scores(cfg: CfgNode, model: Path, dataset_name: str) -> dict[str, Any]:
    """Score an exported ONNX file and the checkpoint that it comes from, and note it in the card.

    The exported one is predicted and scored without torch, from the files of the images.

    Args:
        cfg: the model's config, with ``MODEL.WEIGHTS``.
        model: the exported file.
        dataset_name: a registered dataset.

    Returns:
        ``dataset``, ``images``, and ``pytorch`` and ``exported`` with ``AP`` and ``AP50``, official
        ones, in percent.

    Raises:
        InputError: no such dataset, or one without labels or of other classes; or as
            :func:`.seen_images.refuse_seen_images` and :func:`.scoring.exported_scores`.
    """
    cfg = changed(cfg, {"DATASETS.TEST": (dataset_name,)})
    register_datasets_of(cfg)
    check_dataset_names([dataset_name])
    evaluator = CityscapesInstanceEvaluator(dataset_name, None, cfg.TEST.NUM_WORKERS, coco=False)
    network = Trainer.build_model(cfg).eval()
    of_checkpoint = score_checkpoint(cfg, network, evaluator)
    predictor = OnnxPredictor(model)
    images = image_and_ground_truth_files(dataset_name)
    result = {
        "dataset": dataset_name,
        "images": len(images),
        "pytorch": {metric: of_checkpoint[metric] for metric in ("AP", "AP50")},
        "exported": exported_scores(predictor, images),
    }
    write_json(model.with_suffix(".json"), {**predictor.card, "scores": result})
    return result


def score_checkpoint(
    cfg: CfgNode, network: nn.Module, evaluator: CityscapesInstanceEvaluator
) -> dict[str, float]:
    """Load ``MODEL.WEIGHTS`` and score them on the one dataset of ``DATASETS.TEST``.

    Args:
        cfg: the model's config, its datasets registered; ``--score`` named the one to score on.
        network: the model in evaluation mode.
        evaluator: of that dataset.

    Returns:
        The official scores in percent.

    Raises:
        InputError: the dataset is of other classes, or the model has seen some of its images.
    """
    (dataset_name,) = cfg.DATASETS.TEST
    categories = dataset_categories(dataset_name)
    if categories != model_categories(cfg):
        of_dataset, of_model = (
            ", ".join(THING_CLASSES[each] for each in chosen)
            for chosen in (categories, model_categories(cfg))
        )
        raise InputError(
            f"--score {dataset_name}: its classes are {of_dataset}, the model's {of_model}; name"
            " a dataset with the model's classes"
        )
    history = load_for_inference(network, cfg).history
    refuse_seen_images(cfg, history, roles=(TRAINED, TUNED), flag="--score")
    scores: dict[str, float] = Trainer.test(cfg, network, [evaluator])["segm"]
    return scores


def check_scores(scores: dict[str, Any], path: Path) -> None:
    """Verify that both APs in what :func:`compare_scores` returns agree.

    Args:
        scores: what it returns.
        path: the exported file, for the message.

    Raises:
        InputError: they differ by more than :data:`MAX_AP_DIFFERENCE` points, or one is NaN.
    """
    expected = scores["pytorch"]["AP"]
    found = scores["exported"]["AP"]
    if math.isnan(expected) and math.isnan(found):
        raise InputError(f"--score {scores['dataset']}: has no object that counts")
    # A comparison with NaN is false.
    if not abs(found - expected) <= MAX_AP_DIFFERENCE:
        raise InputError(
            f"{path}: its AP on {scores['dataset']} is {found:.2f}, PyTorch's {expected:.2f}; more"
            f" than {MAX_AP_DIFFERENCE:g} points apart"
        )


def format_scores(scores: dict[str, Any]) -> str:
    """Lay out what :func:`compare_scores` returns."""
    rows = [
        f"{name:<12}{scores[name]['AP']:>8.2f}{scores[name]['AP50']:>8.2f}"
        for name in ("pytorch", "exported")
    ]
    title = f"{PROTOCOL}, {scores['dataset']}, {scores['images']} images, percent"
    return "\n".join([title, f"{'':<12}{'AP':>8}{'AP50':>8}", *rows])


def _example() -> Tensor:
    """Images to follow through the network: no size and number in it are kept."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 128, 192), dtype=torch.uint8, generator=generator)


def _to_onnx(network: nn.Module, opset: int) -> bytes:
    if find_spec("onnx") is None:
        raise InputError(
            "--format onnx: needs the package onnx: pip install -e '.[export]', or choose another"
            " --format"
        )
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Of the tracer: what looks like a constant to it is one.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (_example(),),
                buffer,
                dynamo=False,  # the other exporter needs onnxscript
                opset_version=opset,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_axes={
                    "images": {0: "images", 2: "height", 3: "width"},
                    **{name: {0: "detections"} for name in OUTPUTS},
                },
            )
        except torch.onnx.errors.OnnxExporterError as error:
            problem = " ".join(str(error).split())[:300]
            raise InputError(f"--format onnx: {problem}") from error
    data: bytes = buffer.getvalue()
    return data


def _to_torchscript(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, (_example(),), check_trace=False), buffer)
    return buffer.getvalue()


def _to_torch_export(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(network, (_example(),), dynamic_shapes=(size,), strict=False)
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _open_onnx(data: bytes) -> Exported:
    session = open_session(data, "--format onnx", "cpu", torch.get_num_threads())
    return lambda images: session.run(None, {"images": images})


def _open_torchscript(data: bytes) -> Exported:
    return _of_torch(torch.jit.load(io.BytesIO(data)))


def _open_torch_export(data: bytes) -> Exported:
    return _of_torch(torch.export.load(io.BytesIO(data)).module())


def _of_torch(module: Any) -> Exported:
    def run(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        with torch.no_grad():
            return [each.numpy() for each in module(torch.from_numpy(images))]

    return run


class Format(NamedTuple):
    """A format of exported files.

    Attributes:
        file: name of the file.
        export: gives its bytes for a network; ONNX also takes ``opset``.
        open: makes of them what can be called.
        smallest: pixels that both sides of an image must have, at network scale.
    """

    file: str
    export: Callable[..., bytes]
    open: Callable[[bytes], Exported]
    smallest: int = 1


FORMATS: Final = {
    "onnx": Format("model.onnx", _to_onnx, _open_onnx),
    "torchscript": Format("model.torchscript", _to_torchscript, _open_torchscript),
    # In smaller images the last level of the pyramid has one row or column, for which torch.export
    # would write another graph.
    "torch_export": Format("model.pt2", _to_torch_export, _open_torch_export, smallest=65),
}


def _batches(
    cfg: CfgNode, images: Sequence[Path], smallest: int
) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Get what to compare on: names and batches (N, 3, H, W), uint8, at network scale."""
    if images:
        named = []
        for file in images:
            image = read_image(file, cfg.INPUT.FORMAT)
            height, width = image.shape[:2]
            size = resized_size(height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
            named.append((str(file), resize(image, *size).transpose(2, 0, 1)[None]))
        return named
    height, width = resized_size(1024, 2048, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    rng = np.random.default_rng(0)

    def scene(part: float) -> npt.NDArray[np.uint8]:
        size = (max(int(height * part) | 1, smallest, 64), max(int(width * part) | 1, 128))
        image = render_scene(rng, *size).image
        image = image[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else image
        return np.ascontiguousarray(image.transpose(2, 0, 1)[None])

    half = scene(0.5)
    upright = np.ascontiguousarray(scene(0.6).transpose(0, 1, 3, 2))
    batches = [scene(1), scene(0.7), upright, np.concatenate([half, scene(0.5)])]
    return [
        (f"generated {'x'.join(map(str, reversed(batch.shape[2:])))} batch {len(batch)}", batch)
        for batch in batches
    ]


def compare_with_pytorch(
    model: Any,
    exported: Exported,
    batches: Sequence[tuple[str, npt.NDArray[np.uint8]]],
    cfg: CfgNode,
) -> dict[str, Any]:
    """Verify that an exported model finds what the model finds.

    Args:
        model: Detectron2's, in evaluation mode, on the CPU.
        exported: the other one.
        batches: names and batches.
        cfg: reads the score threshold and the number of detections.

    Returns:
        Numbers of images and of detections that both found, shapes of the batches, and the largest
        differences of boxes (pixels of the input), scores and masks.

    Raises:
        InputError: where they differ; or nothing is found that could be compared.
    """
    largest = dict.fromkeys(_TOLERANCES, 0.0)
    images = 0
    num_matched = 0
    num_found = 0
    for name, batch in batches:
        inputs = [{"image": torch.from_numpy(image)} for image in batch]
        with torch.no_grad():
            of_model = model.inference(inputs, do_postprocess=False)
        *outputs, image_indices = exported(batch)
        for index, instances in enumerate(of_model):
            expected = Detections(
                instances.pred_boxes.tensor.numpy(),
                instances.pred_classes.numpy(),
                instances.scores.numpy(),
                instances.pred_masks[:, 0].numpy(),
            )
            found = Detections(*(each[image_indices == index] for each in outputs))
            try:
                differences, matched = _compare(expected, found, cfg)
            except InputError as error:
                raise InputError(f"{name}, image {index}: {error}") from error
            largest = {kind: max(value, differences[kind]) for kind, value in largest.items()}
            images += 1
            num_matched += matched
            num_found += len(expected.boxes)
    if not num_found:
        raise InputError(
            f"the model finds nothing in {images} images, so that nothing could be compared; give"
            " photographs by --image"
        )
    if not num_matched:
        raise InputError(
            f"the exported model differs from PyTorch: it finds none of the {num_found} detections"
            f" in {images} images; give photographs by --image, in which the model is surer"
        )
    return {
        "images": images,
        "shapes": [list(batch.shape) for _, batch in batches],
        "detections": num_matched,
        **{f"largest_{kind}_difference": value for kind, value in largest.items()},
    }


def format_check(check: dict[str, Any]) -> str:
    """Summarise in a line what :func:`compare_with_pytorch` returns."""
    return (
        f"agrees with PyTorch on {check['images']} images, {check['detections']} detections: boxes"
        f" within {check['largest_box_difference']:.1g} pixels, scores"
        f" {check['largest_score_difference']:.1g}, masks {check['largest_mask_difference']:.1g}"
    )


def _compare(expected: Detections, found: Detections, cfg: CfgNode) -> tuple[dict[str, float], int]:
    """Compare the detections of an image, the masks not pasted.

    What only one of both has is accepted if its score is, up to rounding, that at which the list
    ends: the threshold, or the last one of a full list.

    Returns:
        The largest differences, and the number of detections that both have.

    Raises:
        InputError: where they differ.
    """
    largest = dict.fromkeys(_TOLERANCES, 0.0)
    for kind, values in (("boxes", found.boxes), ("scores", found.scores), ("masks", found.masks)):
        if not np.isfinite(values).all():
            raise InputError(
                f"the exported model differs from PyTorch: some of its {kind} are NaN or infinite"
            )
    left = list(range(len(found.boxes)))
    unmatched = []
    for index, category in enumerate(expected.classes):
        # Nearly equal scores may change places.
        same = [other for other in left if found.classes[other] == category]
        distances = [_difference(expected.boxes[index], found.boxes[other]) for other in same]
        nearest = min(distances, default=math.inf)
        # Also where PyTorch's are NaN: a comparison with NaN is false.
        if not nearest <= _TOLERANCES["box"]:
            place = f"{nearest:.3g} pixels away" if same else "missing"
            unmatched.append((expected.scores[index], f"the box of detection {index} is {place}"))
            continue
        other = same[distances.index(nearest)]
        left.remove(other)
        differences = {
            "box": nearest,
            "score": _difference(expected.scores[index], found.scores[other]),
            "mask": _difference(expected.masks[index], found.masks[other]),
        }
        for kind, tolerance in _TOLERANCES.items():
            if not differences[kind] <= tolerance:
                raise InputError(
                    f"the exported model differs from PyTorch: the {kind} of detection {index}"
                    f" differs by {differences[kind]:.3g}, more than {tolerance:g}"
                )
        largest = {kind: max(value, differences[kind]) for kind, value in largest.items()}
    num_matched = len(expected.boxes) - len(unmatched)
    unmatched += [(found.scores[other], f"detection {other} is a new one") for other in left]
    ends = [cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST]
    for each in (expected, found):
        if len(each.scores) == cfg.TEST.DETECTIONS_PER_IMAGE:
            ends += each.scores[-1:].tolist()
    for score, problem in unmatched:
        if not min(_difference(score, end) for end in ends) <= _TOLERANCES["score"]:
            raise InputError(
                f"the exported model differs from PyTorch: {problem} (score {score:.4f})"
            )
    return largest, num_matched


def _difference(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max(initial=0))
