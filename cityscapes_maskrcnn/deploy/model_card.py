"""A trained model as a folder to share: weights, config and a model card for Hugging Face's hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

import cityscapes_maskrcnn
from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, UsedData, read_history, to_plain
from cityscapes_maskrcnn.data.registration import is_of_cityscapes
from cityscapes_maskrcnn.engine.checkpoint_origin import (
    ORIGIN_KEY,
    PROGRAM,
    classes_in,
    config_in,
    parents_in,
)
from cityscapes_maskrcnn.evaluation.instance_ap import PROTOCOL
from cityscapes_maskrcnn.modeling.model_kind import model_kind
from cityscapes_maskrcnn.modeling.weight_files import read_checkpoint, write_safetensors
from cityscapes_maskrcnn.utils.config_keys import value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest, read_json, write_text
from cityscapes_maskrcnn.utils.text import printable

WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "config.yaml"
CARD_FILE: Final = "README.md"

_CITYSCAPES_TERMS: Final = "https://www.cityscapes-dataset.com/license/"
_PROTOCOLS: Final = {
    "segm": f"{PROTOCOL}, masks",
    "coco_segm": "COCO, masks",
    "coco_bbox": "COCO, boxes",
    "sem_seg": "Cityscapes pixel protocol (official)",
}
_VARIANTS: Final = {"": "", "_TTA": ", test-time augmentation", "_EMA": ", averaged weights"}
# Columns of the table of scores; those that nothing has are left out.
_METRICS: Final = ("AP", "AP50", "AP75", "APs", "APm", "APl", "IoU", "iIoU")
_SCORES_FORM: Final = {
    "weights": str,
    "sha256?": (str, None),
    "datasets": {
        "*": {"images": int, "generated": bool, "results": {"*": {"*": (float, None)}}},
    },
    "seen": [str],
}
# Rows of the card's table of settings.
_SETTINGS: Final = {
    "iterations": "SOLVER.MAX_ITER",
    "images a batch": "SOLVER.IMS_PER_BATCH",
    "optimizer": "SOLVER.OPTIMIZER",
    "learning rate": "SOLVER.BASE_LR",
    "schedule": "SOLVER.LR_SCHEDULER_NAME",
    "weight decay": "SOLVER.WEIGHT_DECAY",
    "shorter side in training, px": "INPUT.MIN_SIZE_TRAIN",
    "shorter side in inference, px": "INPUT.MIN_SIZE_TEST",
    "frozen backbone stages": "MODEL.BACKBONE.FREEZE_AT",
    "anchor sizes, px": "MODEL.ANCHOR_GENERATOR.SIZES",
    "anchor ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
}


@dataclass(frozen=True)
class SharedModel:
    """What a checkpoint has that may be shared.

    Attributes:
        source_sha256: of the checkpoint.
        tensors: by name.
        config: of the run that wrote it, without the places of that machine.
        origin: see :func:`.checkpoint_origin.origin_of_run`, without those places either.
        history: the images that it has seen.
        chosen_by: the metric that chose it, its value and iteration; empty: the last of its run.
    """

    source_sha256: str
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]
    origin: Mapping[str, Any]
    history: tuple[UsedData, ...]
    chosen_by: str


def read_model(path: Path) -> SharedModel:
    """Read a checkpoint of this project, and leave out what is nobody else's business.

    Folders of this machine, the command line and the training state are not shared.

    Raises:
        InputError: it cannot be read, is damaged, or does not record its config.
    """
    content = read_checkpoint(path, skip_objects=True)
    config = config_in(content)
    try:
        model_kind(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: does not record the config that it was trained with; share a checkpoint that "
            "this project's training wrote"
        ) from error
    config = _without_places(config)
    said = content[ORIGIN_KEY]
    origin = {key: said[key] for key in ("code", "seed", "device") if key in said}
    environment = said.get("environment")
    origin["environment"] = {
        str(name): re.sub(r" in /.*", "", str(value))
        for name, value in (environment if isinstance(environment, dict) else {}).items()
        if name != "DETECTRON2_DATASETS"
    }
    origin["parents"] = [
        {**parent, "file": _short_place(parent["file"])} for parent in parents_in(content)
    ]
    origin["classes"] = classes_in(content)
    origin["config"] = yaml.safe_dump(config)
    metric, value, iteration = (content.get(key) for key in ("metric", "value", "iteration"))
    chosen_by = ""
    if isinstance(metric, str) and isinstance(value, float) and isinstance(iteration, int):
        chosen_by = f"{metric} {value:.4g}, after iteration {iteration}"
    return SharedModel(
        source_sha256=str(file_digest(path)),
        tensors={name: each for name, each in content["model"].items() if torch.is_tensor(each)},
        config=config,
        origin=origin,
        history=read_history(content, str(path)),
        chosen_by=chosen_by,
    )


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take the folders and devices of a machine, and accounts, out of a config."""
    cleaned: dict[str, Any] = _cleaned(
        {key: value for key, value in config.items() if key != "TRACKING"}
    )
    cleaned["OUTPUT_DIR"] = "./output"
    model = {**cleaned["MODEL"], "WEIGHTS": WEIGHTS_FILE, "DEVICE": "cuda"}
    if teacher := value_at(model, "DISTILLATION.TEACHER"):
        model["DISTILLATION"] = {**model["DISTILLATION"], "TEACHER": _short_place(teacher)}
    return {**cleaned, "MODEL": model}


def _cleaned(value: Any) -> Any:
    """Shorten all places in a part of a config, under any key; relative paths are none."""
    if isinstance(value, Mapping):
        return {key: _cleaned(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(each) for each in value]
    if isinstance(value, str) and ("://" in value or value.startswith(("/", "~", ".."))):
        return _short_place(value)
    return value


def _short_place(file: object) -> str:
    """Cut a path to its last two parts, or one near a home folder; addresses lose accounts."""
    text = str(file).removeprefix("file://")
    if "://" in text:
        # Signatures and tokens stand after the question mark.
        return re.sub(r"://[^/]*@", "://", text.partition("?")[0])
    parts = PurePosixPath(text).parts
    # /home/alice/model.pth, ~alice/model.pth and ../alice/model.pth name an account.
    count = 1 if text.startswith(("/", "~", "..")) and len(parts) < 5 else 2
    return str(PurePosixPath(*parts[-count:]))


def read_scores(path: Path, checkpoint: Path, sha256: str) -> dict[str, Any]:
    """Read a ``scores.json`` of ``train_net.py --eval-only``, of this checkpoint.

    Args:
        path: the file.
        checkpoint: what was scored.
        sha256: of the checkpoint.

    Raises:
        InputError: it is missing or damaged, or of other weights.
    """
    advice = "write it again with train_net.py --eval-only"
    scores = read_json(path, form=_SCORES_FORM, advice=advice)
    recorded = scores.get("sha256")
    # Earlier versions recorded the name alone.
    same = Path(scores["weights"]).name == checkpoint.name
    if recorded is not None:
        same = recorded == sha256
    if not same:
        raise InputError(
            f"{path}: has the scores of other weights, {printable(scores['weights'])}, than "
            f"{checkpoint}; score these with train_net.py --eval-only"
        )
    return scores


def write_model(folder: Path, model: SharedModel, scores: Mapping[str, Any] | None) -> None:
    """Write weights, config and card; the card last.

    Args:
        folder: made when missing.
        model: what to share.
        scores: see :func:`read_scores`; None: the card says that there are none.

    Raises:
        InputError: the folder holds other files, which these would be mixed with; or one cannot be
            written.
    """
    ours = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: a file where a folder is needed")
    others = sorted({path.name for path in folder.glob("[!.]*")} - ours)
    if others:
        raise InputError(
            f"--output {folder}: holds other files, such as {printable(others[0], 100)}; name a "
            "new folder"
        )
    content: dict[str, Any] = {"model": model.tensors, ORIGIN_KEY: dict(model.origin)}
    if model.history:
        content[SEEN_IMAGES_KEY] = to_plain(model.history)
    write_safetensors(folder / WEIGHTS_FILE, content)
    write_text(folder / CONFIG_FILE, str(model.origin["config"]))
    digest = str(file_digest(folder / WEIGHTS_FILE))
    write_text(folder / CARD_FILE, model_card(model, scores, digest))


def model_card(model: SharedModel, scores: Mapping[str, Any] | None, sha256: str) -> str:
    """Write the card, in Markdown with YAML before it, from ``model_card.md.j2``.

    Args:
        model: what is shared.
        scores: see :func:`read_scores`.
        sha256: of the file of weights.
    """
    environment = Environment(
        loader=PackageLoader("cityscapes_maskrcnn.deploy", "."),
        # Not HTML: what comes from outside stands in code, see _code.
        autoescape=False,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "digest": lambda text: re.sub(r"\W", "", str(text))[:64]}
    datasets = (scores or {}).get("datasets", {})
    generated = _generated(model.history)
    # Of what is not known to be generated.
    names = list(dict.fromkeys(used.dataset for used in model.history if not used.generated))
    of_cityscapes = bool(names) and all(map(is_of_cityscapes, names))
    licence = _licence(model, generated, of_cityscapes)
    scenes = "Cityscapes" if of_cityscapes else ", ".join(names) or "street scenes"
    if generated == "all":
        scenes = "generated street scenes"
    title = f"{model_kind(model.config)} for {scenes}"
    semantic = value_at(model.config, "MODEL.META_ARCHITECTURE") == "SemanticSegmentor"
    origin = model.origin
    versions = origin["environment"]
    values = [(name, value_at(model.config, key)) for name, key in _SETTINGS.items()]
    settings = [(name, value) for name, value in values if value is not None]
    if model.chosen_by:
        settings.append(("chosen by", model.chosen_by))
    provenance = [
        (f"SHA-256 of {WEIGHTS_FILE}", sha256),
        ("SHA-256 of the checkpoint", model.source_sha256),
        ("code", origin.get("code", "not recorded")),
        ("seed", origin.get("seed", "not recorded")),
        ("device", origin.get("device", "not recorded")),
    ]
    provenance += [(name, versions[name]) for name in ("torch", "detectron2") if name in versions]
    provenance.append(("types of its tensors", ", ".join(_types(model.tensors.values()))))
    return environment.get_template("model_card.md.j2").render(
        front_matter=_front_matter(title, datasets, licence, semantic),
        title=_plain(title),
        task="semantic" if semantic else "instances",
        classes=origin["classes"],
        version=cityscapes_maskrcnn.__version__,
        generated=generated,
        of_cityscapes=of_cityscapes,
        weights_file=WEIGHTS_FILE,
        scores=[_score_table(name, entry) for name, entry in datasets.items()],
        seen=(scores or {}).get("seen", []),
        settings=settings,
        data=to_plain(model.history),
        parents=origin["parents"],
        license=licence,
        provenance=provenance,
    )


def _generated(history: Sequence[UsedData]) -> str:
    """Tell whether "all", "some" or "none" of what a model has seen is known to be generated."""
    # Never by what it is scored on: that says nothing of the data whose terms hold.
    seen = [used.generated for used in history]
    if seen and all(seen):
        return "all"
    return "some" if any(seen) else "none"


def _dataset_type(name: str, generated: bool) -> str:
    if generated:
        return "generated-street-scenes"
    return "cityscapes" if is_of_cityscapes(name) else _plain(name)


def _licence(model: SharedModel, generated: str, of_cityscapes: bool) -> str:
    """Find out whose terms hold: "generated", "cityscapes" or "other"."""
    parents = model.origin["parents"]
    foreign = any(parent.get("program") != PROGRAM for parent in parents)
    teacher = value_at(model.config, "MODEL.DISTILLATION.TEACHER")
    # Of a teacher that it does not come from nothing more is recorded.
    if teacher and _short_place(teacher) not in (parent["file"] for parent in parents):
        foreign = True
    if generated == "all" and not foreign:
        return "generated"
    return "cityscapes" if of_cityscapes else "other"


def _front_matter(title: str, datasets: Mapping[str, Any], licence: str, semantic: bool) -> str:
    task = "semantic-segmentation" if semantic else "instance-segmentation"
    metadata: dict[str, Any] = {
        "license": "apache-2.0" if licence == "generated" else "other",
        "library_name": "detectron2",
        "pipeline_tag": "image-segmentation",
        "tags": [task, "detectron2", "street-scenes"],
    }
    if licence == "cityscapes":
        metadata |= {
            "license_name": "cityscapes-terms-non-commercial",
            "license_link": _CITYSCAPES_TERMS,
            "datasets": ["cityscapes"],
        }
    elif licence == "other":
        metadata["license_name"] = "terms-of-the-data-and-weights-it-was-trained-from"
    results = [
        {
            "task": {"type": "image-segmentation", "name": task.replace("-", " ")},
            "dataset": {
                "type": _dataset_type(name, entry["generated"]),
                "name": f"{name}, {entry['images']} images",
            },
            "metrics": [
                {"type": kind, "name": f"{kind}, {_PROTOCOLS[protocol]}", "value": round(value, 2)}
                for protocol in ("segm", "sem_seg")
                for kind, value in entry["results"].get(protocol, {}).items()
                if kind in ("AP", "AP50", "IoU") and value is not None
            ],
        }
        for name, entry in datasets.items()
    ]
    results = [result for result in results if result["metrics"]]
    if results:
        metadata["model-index"] = [{"name": title, "results": results}]
    return str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True))


def _score_table(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    results = entry["results"]
    columns = [
        metric for metric in _METRICS if any(metric in scores for scores in results.values())
    ]
    rows = [
        {
            "protocol": protocol + note,
            "cells": [_number(results[task + variant].get(metric)) for metric in columns],
        }
        for task, protocol in _PROTOCOLS.items()
        for variant, note in _VARIANTS.items()
        if task + variant in results
    ]
    by_class = [
        (key.removeprefix("AP-"), _number(value))
        for key, value in results.get("segm", {}).items()
        if key.startswith("AP-")
    ]
    return {**entry, "name": name, "columns": columns, "rows": rows, "by_class": by_class}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _types(tensors: Iterable[torch.Tensor]) -> list[str]:
    return sorted({str(each.dtype).removeprefix("torch.") for each in tensors})


def _code(value: object) -> str:
    """Show text from outside as code in Markdown, also in a table: none of it is a command."""
    text = printable(value, 300).replace("`", "'").replace("|", "¦")
    return f"`{text}`" if text else "-"


def _plain(text: str) -> str:
    """Keep text that is no code from being anything but text in Markdown."""
    return re.sub(r"[^\w .,()-]", "", text)
