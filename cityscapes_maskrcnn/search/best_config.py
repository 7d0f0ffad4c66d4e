"""The best trial of a search as a config fragment, ``best.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from cityscapes_maskrcnn.search.space import KMEANS, KNOWN_NAMES, RPN_DEFAULTS, config_keys
from cityscapes_maskrcnn.search.study import (
    STUDY_CONFIG,
    STUDY_SPACE,
    finished_trials,
    mapping_attribute,
)

_ANCHORS = "MODEL.ANCHOR_GENERATOR."


def best_config(study: optuna.Study, best: FrozenTrial) -> dict[str, Any]:
    """Turn the parameters of a trial into nested config keys.

    Added to them are, as far as the study has them, the anchors where ``kmeans_anchors`` was
    searched, and ``DATASETS.TUNED_ON``, the datasets that chose them and what the trials had.

    Raises:
        InputError: a value cannot be what its name says, such as a threshold above 1.
    """
    config = mapping_attribute(study, STUDY_CONFIG)
    negative, positive = config.get("MODEL.RPN.IOU_THRESHOLDS", RPN_DEFAULTS)
    settings = config_keys(best.params, _keys(study), (negative, positive))
    nested: dict[str, Any] = {}
    for key, value in {**_anchors(config, best), **settings}.items():
        *nodes, leaf = key.split(".")
        node = nested
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = value
    if nested and "DATASETS.TEST" in config:
        # Anchors that were included in the trials were fitted to a dataset too.
        tuned_on = [*config.get("DATASETS.TUNED_ON", ()), *config["DATASETS.TEST"]]
        nested["DATASETS"] = {"TUNED_ON": list(dict.fromkeys(tuned_on))}
    return nested


def anchors_remark(study: optuna.Study, best: FrozenTrial) -> str:
    """Describe the anchors of training with :func:`best_config`; empty if not searched."""
    if KMEANS not in best.params:
        return ""
    config = mapping_attribute(study, STUDY_CONFIG)
    if best.params[KMEANS]:
        trained_on = ", ".join(config.get("DATASETS.TRAIN", ["unknown data"]))
        return (
            "Anchors: fitted at the start of training to its boxes, as in the trials "
            f"({trained_on}); if MODEL.WEIGHTS have fitted anchors, those are used."
        )
    if _anchors(config, best):
        return "Anchors: those with which the trials without k-means were trained."
    return (
        f"Anchors: not known. {KMEANS} is {best.params[KMEANS]}, and the study does not contain "
        "the config of its trials, so those of your config are used; set them to the ones of the "
        "search."
    )


def fragment_text(
    study: optuna.Study,
    *,
    where: str,
    best: FrozenTrial,
    score: str,
    fragment: Mapping[str, Any],
    file: Path,
) -> str:
    """Write what :func:`best_config` found as yaml, below a comment that names its origin.

    Args:
        study: the study.
        where: the database, as the comment names it.
        best: the trial.
        score: of the trial, with its name.
        fragment: of :func:`best_config`.
        file: where the text will be.
    """
    keys = _keys(study)
    unused = [name for name in best.params if name not in KNOWN_NAMES and not keys.get(name)]
    lines = [
        f"The best of {len(finished_trials(study.trials))} trials of study {study.study_name!r}",
        f"in {where}: trial {best.number}, {score}.",
        *(f"- {name}: {value}" for name, value in best.params.items()),
    ]
    if unused:
        lines.append(f"No config key is known for: {', '.join(unused)}")
    if anchors := anchors_remark(study, best):
        lines.append(anchors)
    lines.append(f"Use: tools/train_net.py --config-file ... INCLUDE \"('{file}',)\"")
    # Names and values of other programs may hold line breaks, which would end the comment.
    comment = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return comment + yaml.safe_dump({**fragment, "VERSION": 2}, sort_keys=True)


def _keys(study: optuna.Study) -> dict[str, str]:
    """Config keys by parameter; empty for another program's study."""
    space = mapping_attribute(study, STUDY_SPACE)
    return {name: fields["key"] for name, fields in space.items() if "key" in fields}


def _anchors(config: Mapping[str, Any], best: FrozenTrial) -> dict[str, Any]:
    """Get the anchor keys of the config that all trials had in common.

    Without k-means all of them: the config to train with may have other anchors. With it the sizes
    are fitted, and only the number of ratios counts.
    """
    if KMEANS not in best.params:
        return {}
    names = ("NUM_RATIOS",) if best.params[KMEANS] else ("NAME", "SIZES", "ASPECT_RATIOS")
    keys = [_ANCHORS + name for name in names]
    return {key: config[key] for key in keys if key in config}
