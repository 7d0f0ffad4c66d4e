"""The parameters of a search: their ranges, and the config keys that their values set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from optuna import Trial

from cityscapes_maskrcnn.utils.errors import InputError

_FG = "fg_iou_thresh"
_RPN_POSITIVE = "rpn_positive_iou_thresh"
_RPN_NEGATIVE = "rpn_negative_iou_thresh"
_FPN_FLOW = "fpn_grad_flow"
KMEANS: Final = "kmeans_anchors"
_THRESHOLDS = (_FG, _RPN_POSITIVE, _RPN_NEGATIVE)

# Parameters that are not simply the value of one config key.
KNOWN_NAMES = (*_THRESHOLDS, _FPN_FLOW, KMEANS)

# Detectron2's defaults: background below, foreground from.
RPN_DEFAULTS = (0.3, 0.7)

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One searched parameter; ``SEARCH.PARAMETERS`` in ``config.py`` explains the fields.

    Attributes:
        type: ``float``, ``int`` or ``categorical``.
        low: smallest value, included.
        high: largest value, included.
        log: draw evenly on a logarithmic scale.
        choices: the values of a categorical parameter.
        key: the config key that takes the value; empty for the names of ``KNOWN_NAMES``.
    """

    type: str = "float"
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()
    key: str = ""

    def contains(self, value: Any) -> bool:
        """Whether ``value`` is one that a trial could have."""
        if self.type == "categorical":
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        inside = number and self.low <= value <= self.high
        return inside and (self.type == "float" or value == int(value))

    def __str__(self) -> str:
        if self.type == "categorical":
            return "one of " + ", ".join(map(str, self.choices))
        return f"{self.type} {self.low:g} to {self.high:g}{', logarithmic' * self.log}"


class SearchSpace:
    """What is searched.

    Args:
        parameters: by name.
        first: values of the first trial, of some or all parameters. One outside of a range, which
            may have been narrowed, is left out.

    Raises:
        InputError: there is no parameter, or a range is not valid.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], first: Mapping[str, Value] | None = None
    ) -> None:
        self.parameters = dict(parameters)
        if not self.parameters:
            raise InputError("SEARCH.PARAMETERS: none is ENABLED, there is nothing to search")
        for name, parameter in self.parameters.items():
            _check(name, parameter)
        low, high = self.parameters.get(_RPN_NEGATIVE), self.parameters.get(_RPN_POSITIVE)
        if low and high and low.high >= high.low:
            raise InputError(
                f"SEARCH.PARAMETERS.{_RPN_NEGATIVE}.HIGH {low.high} must be below "
                f"{_RPN_POSITIVE}.LOW {high.low}: trials could have their thresholds in the wrong "
                "order"
            )
        self.first = {
            name: value
            for name, value in (first or {}).items()
            if self.parameters[name].contains(value)
        }

    @classmethod
    def from_config(cls, nodes: Mapping[str, Mapping[str, Any]]) -> SearchSpace:
        """Build the space from ``SEARCH.PARAMETERS``, or from what :meth:`to_json` returned.

        Args:
            nodes: a mapping for each parameter, with the keys that ``config.py`` explains, all of
                which may be missing.

        Raises:
            InputError: a node holds anything else, or see the class.
        """
        parameters, first = {}, {}
        for name, node in nodes.items():
            where = f"SEARCH.PARAMETERS.{name}"
            if not isinstance(node, Mapping):
                raise InputError(f"{where} must hold keys such as LOW and HIGH, not {node!r}")
            fields = {key.lower(): value for key, value in node.items()}
            enabled, first_value = fields.pop("enabled", True), fields.pop("first", None)
            if not enabled:
                continue
            unknown = [key.upper() for key in fields if key not in Parameter.__annotations__]
            if unknown:
                raise InputError(f"{where}.{unknown[0]}: there is no such key")
            choices = fields.get("choices", ())
            if not isinstance(choices, (list, tuple)):
                raise InputError(f"{where}.CHOICES must be a list, not {choices!r}")
            fields["choices"] = tuple(choices)
            for bound in ("low", "high"):
                # Plain yaml reads 1e-5 as text; only 1.0e-5 is a number to it.
                with suppress(ValueError, TypeError):
                    fields[bound] = float(fields.get(bound, 0.0))
            parameters[name] = Parameter(**fields)
            if first_value is not None:
                first[name] = first_value
        return cls(parameters, first)

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """Draw a value of every parameter."""
        values: dict[str, Value] = {}
        for name, parameter in self.parameters.items():
            if parameter.type == "categorical":
                choice = trial.suggest_categorical(name, parameter.choices)
                values[name] = cast(Value, choice)
            elif parameter.type == "int":
                low, high = int(parameter.low), int(parameter.high)
                values[name] = trial.suggest_int(name, low, high, log=parameter.log)
            else:
                values[name] = trial.suggest_float(
                    name, parameter.low, parameter.high, log=parameter.log
                )
        return values

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Describe the space in what JSON can hold; :meth:`from_config` reads it."""
        return {name: asdict(parameter) for name, parameter in self.parameters.items()}

    def difference(self, other: SearchSpace) -> str:
        """Describe where two spaces differ first; empty if they are the same."""
        for name in [*self.parameters, *other.parameters]:
            mine, theirs = self.parameters.get(name), other.parameters.get(name)
            if mine != theirs:
                return f"{name}: {mine or 'not searched'} here, {theirs or 'not searched'} there"
        return ""


def config_keys(
    values: Mapping[str, Any],
    keys: Mapping[str, str],
    rpn_thresholds: tuple[float, float] = RPN_DEFAULTS,
) -> dict[str, Any]:
    """Turn parameter values into config keys.

    Args:
        values: by parameter name. Those that have no config key are left out.
        keys: the config key of every parameter that sets just one.
        rpn_thresholds: background below, foreground from; used for the one of the RPN's two
            thresholds that is not among the values.

    Returns:
        Values by full config key, such as ``MODEL.RPN.IOU_THRESHOLDS``.

    Raises:
        InputError: a threshold does not lie between 0 and 1, the RPN's two are in the wrong order,
            or a switch is neither True nor False; another program's study may have such values.
    """
    for name in _THRESHOLDS:
        if not 0 < values.get(name, 0.5) < 1:
            raise InputError(f"{name} {values[name]!r}: an IoU threshold lies between 0 and 1")
    for name in (_FPN_FLOW, KMEANS):
        if values.get(name, True) not in (True, False):
            raise InputError(f"{name} {values[name]!r}: it must be True or False")
    settings: dict[str, Any] = {}
    if _FG in values:
        settings["MODEL.ROI_HEADS.IOU_THRESHOLDS"] = [values[_FG] / 2, values[_FG]]
        settings["MODEL.ROI_HEADS.IOU_LABELS"] = [0, -1, 1]
    if _RPN_POSITIVE in values or _RPN_NEGATIVE in values:
        negative = values.get(_RPN_NEGATIVE, rpn_thresholds[0])
        positive = values.get(_RPN_POSITIVE, rpn_thresholds[1])
        if negative >= positive:
            raise InputError(
                f"thresholds in the wrong order: {_RPN_NEGATIVE} {negative:g} must be below "
                f"{_RPN_POSITIVE} {positive:g}"
            )
        settings["MODEL.RPN.IOU_THRESHOLDS"] = [negative, positive]
        settings["MODEL.RPN.IOU_LABELS"] = [0, -1, 1]
    if _FPN_FLOW in values:
        settings["MODEL.FPN.FREEZE"] = not values[_FPN_FLOW]
    if values.get(KMEANS):
        # Without sizes they are fitted to the training boxes. False leaves the config's anchors.
        settings["MODEL.ANCHOR_GENERATOR.NAME"] = "KMeansAnchorGenerator"
        settings["MODEL.ANCHOR_GENERATOR.SIZES"] = []
    return settings | {key: values[name] for name, key in keys.items() if key and name in values}


def _check(name: str, parameter: Parameter) -> None:
    where = f"SEARCH.PARAMETERS.{name}"
    if not parameter.key and name not in KNOWN_NAMES:
        raise InputError(f"{where}.KEY is empty: name the config key that it sets")
    if parameter.type == "categorical":
        if not parameter.choices:
            raise InputError(f"{where}.CHOICES is empty")
        if not all(isinstance(choice, Value) for choice in parameter.choices):
            raise InputError(f"{where}.CHOICES: only numbers, strings, True and False")
        return
    if parameter.type not in ("float", "int"):
        raise InputError(f"{where}.TYPE {parameter.type!r}: it must be float, int or categorical")
    numbers = (parameter.low, parameter.high)
    if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers):
        raise InputError(f"{where}: LOW and HIGH must be numbers, not {numbers}")
    if parameter.low > parameter.high:
        raise InputError(f"{where}: LOW {parameter.low} is above HIGH {parameter.high}")
    if parameter.log and parameter.low <= 0:
        raise InputError(f"{where}: LOG needs a LOW above 0, not {parameter.low}")
    if name in _THRESHOLDS and not 0 < parameter.low <= parameter.high < 1:
        raise InputError(f"{where}: an IoU threshold lies between 0 and 1, not {numbers}")
