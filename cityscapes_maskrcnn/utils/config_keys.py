"""Values of a config, or of what a config file holds, by their whole key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

#: Keys that may differ without making another model: where things lie, on which device and how fast
#: it is trained, and what is shown of it.
FREE_KEYS: Final = frozenset(
    {
        "OUTPUT_DIR",
        "INCLUDE",
        "MODEL.DEVICE",
        "CUDNN_BENCHMARK",
        "MODEL.ACTIVATION_CHECKPOINTING",
        "MODEL.COMPILE",
        "MODEL.FOLD_FROZEN_NORM",
        "INPUT.CACHE",
        # Not all of DATALOADER: its sampler decides which images are trained on, and how often.
        "DATALOADER.NUM_WORKERS",
        "VIS_PERIOD",
        "TEST.ANALYSIS_CONFIDENCE",
        "TEST.ANALYSIS_PICTURES",
        "TEST.BATCH_SIZE",
        "TEST.NUM_WORKERS",
        "TRACKING.BACKENDS",
        "TRACKING.PROJECT",
        "TRACKING.RUN_NAME",
        "TRACKING.NUM_PICTURES",
    }
)


def value_at(config: object, key: str) -> Any:
    """Look up a value such as that of ``SOLVER.BASE_LR``.

    Args:
        config: sections in each other; what a damaged file holds is no error.
        key: the whole name.

    Returns:
        None if there is no such key.
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def names_at(config: object, key: str) -> list[str]:
    """Look up names such as those of ``DATASETS.TRAIN``; see :func:`value_at`.

    Returns:
        Empty if there is no such key, or no list.
    """
    names = value_at(config, key)
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def config_items(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through a config: the whole name of every key and its value, sections among them.

    Args:
        config: a config or a section of it.
        prefix: the name of the section and a period.
    """
    for key, value in config.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from config_items(value, f"{prefix}{key}.")


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Name every value of a config by its whole key, such as ``SOLVER.BASE_LR``."""
    return {key: value for key, value in config_items(config) if not isinstance(value, Mapping)}


def changed(cfg: Any, values: Mapping[str, Any]) -> Any:
    """Copy a Detectron2 config with other values.

    Args:
        cfg: stays as it is; the copy is frozen if it is.
        values: by their whole key, such as ``MODEL.WEIGHTS``; the keys exist already. A text is
            taken as it is, and not for a Python literal.
    """
    copy = cfg.clone()
    copy.defrost()
    for key, value in values.items():
        *sections, name = key.split(".")
        section = copy
        for each in sections:
            section = section[each]
        if name not in section:
            raise KeyError(key)
        section[name] = value
    if cfg.is_frozen():
        copy.freeze()
    return copy
