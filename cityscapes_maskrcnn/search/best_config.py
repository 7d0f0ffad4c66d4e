"""The best trial of a search as a config fragment, ``best.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from cityscapes_maskrcnn.search.space import (
    KMEANS,
    KNOWN_NAMES,
    RPN_DEFAULTS,
    config_keys,
    flag,
)
from cityscapes_maskrcnn.search.study import CONFIG, SPACE, description, finished_trials

_NODE = "MODEL.ANCHOR_GENERATOR."
# Which anchors a config has, and what else it says of those that are to be fitted.
_ANCHORS = (f"{_NODE}NAME", f"{_NODE}SIZES", f"{_NODE}ASPECT_RATIOS")
_FITTING = (f"{_NODE}NUM_RATIOS",)


def best_config(study: optuna.Study, best: FrozenTrial) -> dict[str, Any]:
    """Turn the parameters of a trial into nested config keys.

    With them come, as far as the study tells, the anchors where ``kmeans_anchors`` was searched,
    and ``DATASETS.TUNED_ON``, by which datasets all was chosen.

    Raises:
        InputError: a value makes no sense, such as a threshold above 1.
    """
    config = description(study, CONFIG)
    negative, positive = config.get("MODEL.RPN.IOU_THRESHOLDS", RPN_DEFAULTS)
    settings = config_keys(best.params, _keys(study), (negative, positive))
    nested: dict[str, Any] = {}
    for key, value in {**_anchors(config, best), **settings}.items():
        *nodes, leaf = key.split(".")
        node = nested
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = value
    tested = config.get("DATASETS.TEST")
    if nested and tested and isinstance(tested, Sequence) and not isinstance(tested, str):
        nested["DATASETS"] = {"TUNED_ON": list(tested)}
    return nested


def anchors_remark(study: optuna.Study, best: FrozenTrial) -> str:
    """Say which anchors training with :func:`best_config` has; empty if they were not searched.

    Raises:
        InputError: see there.
    """
    if KMEANS not in best.params:
        return ""
    config = description(study, CONFIG)
    if flag(KMEANS, best.params):
        return (
            "Anchors: fitted at the start of training to its boxes, as in the trials "
            f"({', '.join(config.get('DATASETS.TRAIN', ())) or 'on what is not known'}); where "
            "MODEL.WEIGHTS come with fitted ones, these."
        )
    anchors = _anchors(config, best)
    if anchors and not anchors[f"{_NODE}SIZES"]:
        return (
            "Anchors: not known. The config of the trials left them open, so that they were fitted "
            "or came with the weights, and it does here."
        )
    if anchors:
        return "Anchors: those that the trials without k-means trained with."
    return (
        f"Anchors: not known. {KMEANS} is {best.params[KMEANS]}, and the study does not keep the "
        "config of its trials: those of your config stay; set them to the ones of the search."
    )


def fragment_text(
    study: optuna.Study,
    where: str,
    best: FrozenTrial,
    label: str,
    fragment: Mapping[str, Any],
    file: Path,
) -> str:
    """Write what :func:`best_config` found as yaml, below a comment that says where it is from.

    Args:
        study: the study.
        where: the database, as the comment shall name it.
        best: the trial.
        label: what its value is.
        fragment: of :func:`best_config`.
        file: what it will be called.
    """
    keys = _keys(study)
    unused = [name for name in best.params if name not in KNOWN_NAMES and not keys.get(name)]
    lines = [
        f"The best of {len(finished_trials(study.trials))} trials of study {study.study_name!r}",
        f"in {where}: trial {best.number}, {label} {best.values[0]:.6g}.",
        *(f"- {name}: {value}" for name, value in best.params.items()),
        *(f"No config key is known for: {', '.join(unused)}" for _ in unused[:1]),
        *filter(None, [anchors_remark(study, best)]),
        f"Use: tools/train_net.py --config-file ... INCLUDE \"('{file}',)\"",
    ]
    # Names and values of other programs may hold line breaks, which would end the comment.
    comment = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return comment + yaml.safe_dump({**fragment, "VERSION": 2}, sort_keys=True)


def _keys(study: optuna.Study) -> dict[str, str]:
    """The config key of every parameter of which the study says one."""
    return {
        name: str(fields.get("key", ""))
        for name, fields in description(study, SPACE).items()
        if isinstance(fields, Mapping)
    }


def _anchors(config: Mapping[str, Any], best: FrozenTrial) -> dict[str, Any]:
    """What the trial took of the anchors from the config that all trials had in common.

    Without k-means that is all: the config to train with may have other anchors. With it the sizes
    are fitted, as many as the config says.
    """
    if KMEANS not in best.params:
        return {}
    keys = _FITTING if flag(KMEANS, best.params) else _ANCHORS
    return {key: config[key] for key in keys} if all(key in config for key in keys) else {}
