"""Quantisation within a budget of AP: groups of layers that cost too much stay in float."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.data.provenance import (
    SEEN_IMAGES_KEY,
    TUNED,
    find_seen,
    merge,
    read_history,
    to_plain,
    used_data,
)
from cityscapes_maskrcnn.deploy.quantization import FORMS, QuantizableModel
from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
from cityscapes_maskrcnn.deploy.scoring import (
    exported_categories,
    exported_scores,
    refuse_seen_by_exported,
)
from cityscapes_maskrcnn.evaluation.instance_ap import PROTOCOL
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest, write_json
from cityscapes_maskrcnn.utils.spread import spread

# On these every group's cost is measured; files are scored on all images.
_NUM_FEW: Final = 16


@dataclass(frozen=True)
class Trial:
    """A file that was scored.

    Attributes:
        float_groups: what stayed in float in it.
        few_images: it was scored on a few images, to find out what its groups cost.
        ap: official AP in percent.
        loss: AP points that it is below the float file on the same images.
    """

    float_groups: tuple[str, ...]
    few_images: bool
    ap: float
    loss: float


@dataclass(frozen=True)
class CalibrationData:
    """Images to calibrate on.

    Attributes:
        dataset: their name.
        images: the files.
    """

    dataset: str
    images: Sequence[Path]


@dataclass(frozen=True)
class ScoringData:
    """Images to score on.

    Attributes:
        dataset: their name.
        images: of each the file and that of its instance ids.
        categories: contiguous ids, 0 to 7, of the classes that are annotated.
    """

    dataset: str
    images: Sequence[tuple[Path, Path]]
    categories: Sequence[int]


def quantize(
    path: Path,
    folder: Path,
    *,
    form: str,
    calibration: CalibrationData,
    scoring: ScoringData,
    budget: float,
) -> dict[str, Any]:
    """Quantise an exported file and write it, with its ``model.json``, into a new folder.

    The folder appears when the file is complete, was loaded again, and is within the budget.

    Args:
        path: the ``model.onnx`` in float32.
        folder: there must be no such file or folder.
        form: of :data:`.quantization.FORMS`.
        calibration: used for int8 only.
        scoring: shares no image with what the model was trained, tuned or calibrated on.
        budget: the most AP points that may be lost, 0 to 100.

    Returns:
        What ``model.json`` says of it under ``quantized``.

    Raises:
        InputError: the file cannot be quantised, an image cannot be read or was seen, a class of
            the model is not annotated, the budget is out of range or kept by no quantised file, or
            the folder exists.
    """
    if form not in FORMS:
        raise InputError(f"--form {form}: it must be one of {', '.join(FORMS)}")
    if not 0 <= budget <= 100:
        raise InputError(f"--budget {budget:g}: it must be between 0 and 100 points of AP")
    if folder.exists():
        raise InputError(f"{folder}: exists already; name another --output")
    if form == "int8" and not calibration.images:
        raise InputError(f"--calibration {calibration.dataset}: has no images to calibrate on")
    if not scoring.images:
        raise InputError(f"--score {scoring.dataset}: has no images to score on")
    predictor = OnnxPredictor(path)
    absent = sorted(set(exported_categories(predictor)) - set(scoring.categories))
    if absent:
        names = ", ".join(THING_CLASSES[each] for each in absent)
        raise InputError(
            f"--score {scoring.dataset}: has no labels of the model's {names}; name a dataset that"
            " has"
        )
    model = QuantizableModel(predictor, path)
    scored = [{"file_name": str(image)} for image, _ in scoring.images]
    refuse_seen_by_exported(
        predictor,
        str(path),
        dataset=scoring.dataset,
        images=[image for image, _ in scoring.images],
        flag="--score",
    )
    used = []
    if form == "int8":
        images = [{"file_name": str(image)} for image in calibration.images]
        used = [used_data(calibration.dataset, TUNED, images)]
        if overlap := find_seen(used, scoring.dataset, scored):
            raise InputError(
                f"--score {scoring.dataset}: {len(overlap[0].images)} of its images are calibrated"
                f" on ({overlap[0].images[0]}); name datasets that share none"
            )

    few = spread(scoring.images, min(_NUM_FEW, len(scoring.images)))
    floats = {False: exported_scores(predictor, scoring.images)["AP"]}
    if not math.isfinite(floats[False]):
        raise InputError(f"--score {scoring.dataset}: has no object that counts")

    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        result = work / "result"
        result.mkdir(mode=0o755)
        target = work / path.name

        def score(float_groups: Sequence[str], few_images: bool) -> Trial:
            if few_images not in floats:
                floats[few_images] = exported_scores(predictor, few)["AP"]
            model.write(
                target, form=form, float_groups=float_groups, images=list(calibration.images)
            )
            card = {**predictor.card, "file": _describe_file(predictor, target)}
            write_json(target.with_suffix(".json"), card)
            images = few if few_images else scoring.images
            ap = exported_scores(OnnxPredictor(target), images)["AP"]
            return Trial(tuple(float_groups), few_images, ap, floats[few_images] - ap)

        # With the backbone in float nearly nothing would be gained.
        others = [group for group in model.groups if group != "backbone"]
        trials = choose_float_groups(others, score, budget)
        # What stays in float was chosen by the scores on these images.
        if len(trials) > 1:
            used.append(used_data(scoring.dataset, TUNED, scored))
        card = _describe(
            predictor,
            target,
            {
                "form": form,
                "dataset": scoring.dataset,
                "images": len(scoring.images),
                "budget": budget,
                "float_ap": floats[False],
                "float_groups": list(trials[-1].float_groups),
                "trials": [asdict(trial) for trial in trials],
                "calibration": (
                    {"dataset": calibration.dataset, "images": len(calibration.images)}
                    if form == "int8"
                    else None
                ),
            },
        )
        history = read_history(predictor.card, str(path))
        card[SEEN_IMAGES_KEY] = to_plain(merge(history, used))
        target.replace(result / "model.onnx")
        write_json(result / "model.json", card)
        OnnxPredictor(result / "model.onnx")
        # Had somebody written into the folder meanwhile, this would be an error.
        result.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    quantized: dict[str, Any] = card["quantized"]
    return quantized


def choose_float_groups(
    groups: Sequence[str],
    score: Callable[[Sequence[str], bool], Trial],
    budget: float,
) -> list[Trial]:
    """Leave groups of layers in float, those that cost most first, until the budget is kept.

    Args:
        groups: those that may stay in float.
        score: quantises all but some groups and scores the file, on a few images or on all.
        budget: the most AP points that may be lost.

    Returns:
        What was scored; the last one keeps the budget.

    Raises:
        InputError: with all of them in float too much is still lost.
    """
    trials = [score([], False)]
    if trials[0].loss <= budget:
        return trials
    alone = [score([group], True) for group in groups]
    trials += alone
    order = sorted(alone, key=lambda trial: -trial.ap)
    chosen: list[str] = []
    for trial in order:
        chosen += trial.float_groups
        trials.append(score(chosen, False))
        if trials[-1].loss <= budget:
            return trials
    best = min((trial for trial in trials if not trial.few_images), key=lambda trial: trial.loss)
    in_float = ", ".join(best.float_groups) or "nothing"
    raise InputError(
        f"no quantised file is within --budget {budget:g}: the best one loses {best.loss:.2f}"
        f" points of AP, with {in_float} in float; raise the budget, or use the float file"
    )


def format_quantized(quantized: dict[str, Any]) -> str:
    """Lay out what :func:`quantize` returns: what was scored, and what stays in float and why."""
    title = f"{PROTOCOL}, {quantized['dataset']}, {quantized['images']} images, percent"
    lines = [title, f"{'AP':>8}{'loss':>8}  in float"]
    lines.append(f"{quantized['float_ap']:>8.2f}{'':>8}  everything")
    few = False
    for trial in quantized["trials"]:
        if trial["few_images"] and not few:
            lines.append("on a few images, to measure the cost of each group:")
        if few and not trial["few_images"]:
            lines.append("the groups that recover most, added one by one:")
        few = trial["few_images"]
        names = ", ".join(trial["float_groups"]) or "nothing"
        lines.append(f"{trial['ap']:>8.2f}{trial['loss']:>8.2f}  {names}")
    source = quantized["from"]
    lines.append(
        f"{quantized['form']}, {', '.join(quantized['float_groups']) or 'nothing'} in float:"
        f" {quantized['bytes'] / 1e6:.1f} MB, {source['bytes'] / quantized['bytes']:.2f} times"
        " smaller than the float file"
    )
    return "\n".join(lines)


def _describe_file(predictor: OnnxPredictor, target: Path) -> dict[str, Any]:
    return {
        **predictor.card["file"],
        "name": "model.onnx",
        "sha256": file_digest(target),
        "bytes": target.stat().st_size,
    }


def _describe(predictor: OnnxPredictor, target: Path, quantized: dict[str, Any]) -> dict[str, Any]:
    """Describe the file of the last trial; scores and comparisons of the float one are moved."""
    import onnx
    import onnxruntime

    card = dict(predictor.card)
    source = dict(card.pop("file"))
    for name in ("scores", "compared_with_pytorch"):
        if name in card:
            source[name] = card.pop(name)
    file = _describe_file(predictor, target)
    return {
        **card,
        "file": file,
        "quantized": {
            **quantized,
            "bytes": file["bytes"],
            "from": source,
            "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        },
    }
