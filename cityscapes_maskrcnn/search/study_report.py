"""What a search found: a report, pictures and a config fragment of any Optuna study."""

from __future__ import annotations

import csv
import io
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from tabulate import tabulate

from cityscapes_maskrcnn.search.best_config import anchors_remark, best_config, fragment_text
from cityscapes_maskrcnn.search.study import (
    CONFIG,
    ITERATIONS,
    REASON,
    best_trial,
    description,
    finished_trials,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write
from cityscapes_maskrcnn.visualization.study_plots import (
    parameter_names,
    plot_history,
    plot_importances,
    plot_parallel_coordinates,
    plot_slices,
)

_TOP = 10


def write_report(study: optuna.Study, where: str, output: Path) -> tuple[list[Path], str]:
    """Write ``report.md``, four pictures, ``trials.csv`` and ``best.yaml``.

    Where the best trial cannot become config keys there is no ``best.yaml``. An earlier one in
    the folder, which says of which trial it is, is left as it is.

    Args:
        study: of this project or any other program; needs one complete trial.
        where: the database, as the report shall name it.
        output: the folder; made when missing.

    Returns:
        The files, and why there is no ``best.yaml``; empty if there is.

    Raises:
        InputError: the study has no complete trial or several objectives, or a file cannot be
            written.
    """
    if len(study.directions) != 1:
        raise InputError(
            f"study {study.study_name!r} has {len(study.directions)} objectives: only studies of "
            "one can be analyzed"
        )
    maximize = study.direction == StudyDirection.MAXIMIZE
    trials = finished_trials(study.get_trials(deepcopy=False))
    finite = [trial for trial in trials if _value(trial) is not None]
    best = best_trial(finite, maximize)
    if best is None:
        raise InputError(
            f"study {study.study_name!r} has no complete trial ({_states(study.trials)}): there "
            f"is nothing to analyze{_last_reason(trials)}"
        )
    label = _label(study)
    importances, remark = parameter_importances(study)
    best_file = output / "best.yaml"
    fragment, use, missing = _fragment(study, best, best_file)
    files = {
        "history.png": lambda path: plot_history(trials, label, maximize, path),
        "importances.png": lambda path: plot_importances(importances, remark, path),
        "slices.png": lambda path: plot_slices(finite, label, maximize, path),
        "parallel_coordinates.png": lambda path: plot_parallel_coordinates(
            finite, label, maximize, path
        ),
    }
    if not importances:
        del files["importances.png"]
    if not best.params:
        del files["slices.png"], files["parallel_coordinates.png"]
    texts = {
        "trials.csv": _csv(trials, maximize),
        "report.md": _markdown(*(study, where, best, label, importances, remark, list(files), use)),
    }
    if fragment:
        texts["best.yaml"] = fragment_text(study, where, best, label, fragment, best_file)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, draw in files.items():
            draw(output / name)
        for name, text in texts.items():
            with atomic_write(output / name, "w") as file:
                file.write(text)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    return [output / name for name in [*texts, *files]], missing


def parameter_importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Measure how much of the variance of the score each parameter explains, by fANOVA.

    Returns:
        Fractions that add up to 1, by name, largest first, and what limits their meaning. Empty
        where they cannot be measured; the remark then says why.
    """
    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if _value(trial) is not None
    ]
    values = {trial.values[0] for trial in complete}
    varied = [
        name
        for name in parameter_names(complete)
        if all(name in trial.params for trial in complete)
        and len({trial.params[name] for trial in complete}) > 1
    ]
    if len(complete) < 2 or len(values) < 2 or not varied:
        return {}, (
            f"Importances cannot be measured: {len(complete)} complete, {len(values)} different "
            f"scores, {len(varied)} parameters that vary."
        )
    # A copy in memory with these trials only: an infinite score would spoil all importances.
    copy = optuna.create_study(direction=study.direction)
    copy.add_trials(complete)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            copy, evaluator=FanovaImportanceEvaluator(seed=0), params=varied
        )
    remark = f"Measured on {len(complete)} complete trials"
    if len(complete) < 10 * len(varied):
        remark += f", few for {len(varied)} parameters: an indication, not a result"
    return found, f"{remark}."


def _markdown(
    study: optuna.Study,
    where: str,
    best: FrozenTrial,
    label: str,
    importances: Mapping[str, float],
    remark: str,
    pictures: Sequence[str],
    use: str,
) -> str:
    trials = finished_trials(study.get_trials(deepcopy=False))
    maximize = study.direction == StudyDirection.MAXIMIZE
    ranked = _ranked(trials, maximize)
    names = parameter_names(ranked)
    seconds = [trial.duration.total_seconds() for trial in trials if trial.duration]
    iterations = [
        trial.user_attrs[ITERATIONS]
        for trial in trials
        # Other programs may keep anything by this name.
        if isinstance(trial.user_attrs.get(ITERATIONS), int)
    ]
    facts = [
        f"Database: {where}",
        f"Trials: {_states(study.get_trials(deepcopy=False))}",
        f"Best: **{best.values[0]:.6g}**, trial {best.number} "
        f"({'largest' if maximize else 'smallest'} is best)",
        f"Time: {timedelta(seconds=round(sum(seconds)))} in trials, "
        f"{timedelta(seconds=round(statistics.median(seconds or [0])))} in the median one",
    ]
    if iterations:
        facts.append(f"Training iterations: {sum(iterations):,}")
    rows = [
        [trial.number, trial.values[0], *(trial.params.get(name, "") for name in names)]
        for trial in ranked[:_TOP]
    ]
    parts = [
        f"# Study {study.study_name}",
        "\n".join(f"- {fact}" for fact in facts),
        f"## Best {min(_TOP, len(ranked))} of {len(ranked)} complete trials",
        _table(rows, ["trial", label, *names]),
        "![history](history.png)",
    ]
    if names:
        parts += [
            "## Parameters",
            _table(_parameter_rows(ranked, trials, names, importances), _PARAMETER_HEADERS),
            remark,
            *(f"![{Path(name).stem}]({name})" for name in pictures if name != "history.png"),
        ]
    failed = Counter(
        str(trial.user_attrs.get(REASON, "no reason was recorded"))
        for trial in trials
        if trial.state == TrialState.FAIL
    )
    if failed:
        rows = [[count, reason.replace("|", "\\|")] for reason, count in failed.most_common()]
        parts += ["## Failed trials", _table(rows, ["trials", "reason"])]
    parts += ["## Use", use]
    return "\n\n".join(parts) + "\n"


def _fragment(
    study: optuna.Study, best: FrozenTrial, file: Path
) -> tuple[dict[str, Any], str, str]:
    """The content of ``best.yaml``, what the report says of it, and why there is none."""
    fragment: dict[str, Any] = {}
    anchors = ""
    why = "None of the parameters has a known config key"
    try:
        fragment, anchors = best_config(study, best), anchors_remark(study, best)
    except (InputError, TypeError, ValueError, AttributeError) as error:
        # Another program may call something else by the name of one of our parameters or keep
        # anything in our attributes.
        why = f"The best trial cannot become config keys ({error})"
    if fragment:
        missing = ""
        use = (
            "`best.yaml` holds the best trial as config keys: "
            f"`tools/train_net.py --config-file ... INCLUDE \"('{file}',)\"`."
        )
    else:
        use = missing = f"{why}, so there is no `best.yaml`." + (
            f" The one in {file.parent} is of an earlier report and was left as it is."
            if file.exists()
            else ""
        )
    return fragment, "\n\n".join(filter(None, [use, anchors])), missing.replace("`", "")


_PARAMETER_HEADERS = ["parameter", "importance", "best", "in the best quarter", "tried"]


def _parameter_rows(
    ranked: Sequence[FrozenTrial],
    trials: Sequence[FrozenTrial],
    names: Sequence[str],
    importances: Mapping[str, float],
) -> list[list[Any]]:
    """Importance, best value, where the best quarter of the trials lies, and all that was tried."""
    quarter = ranked[: max(1, len(ranked) // 4)]
    return [
        [
            name,
            f"{100 * importances[name]:.0f} %" if name in importances else "",
            _span([ranked[0].params[name]]) if name in ranked[0].params else "",
            _span([trial.params[name] for trial in quarter if name in trial.params]),
            _span([trial.params[name] for trial in trials if name in trial.params]),
        ]
        for name in names
    ]


def _span(values: Sequence[Any]) -> str:
    if not values:
        return ""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        ends = dict.fromkeys(f"{end:.4g}" for end in (min(values), max(values)))
        return " to ".join(ends)
    counts = Counter(str(value) for value in values)
    if len(values) == 1:
        return str(values[0])
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common())


def _csv(trials: Sequence[FrozenTrial], maximize: bool) -> str:
    """Every finished trial in a line, the best first, those without a value last."""
    names = parameter_names(trials)
    ranked = _ranked(trials, maximize)
    rest = [trial for trial in trials if trial not in ranked]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *names, "seconds", "iterations", "reason"])
    for trial in [*ranked, *rest]:
        writer.writerow(
            [
                trial.number,
                trial.state.name.lower(),
                "" if _value(trial) is None else trial.values[0],
                *(trial.params.get(name, "") for name in names),
                round(trial.duration.total_seconds(), 1) if trial.duration else "",
                trial.user_attrs.get(ITERATIONS, ""),
                trial.user_attrs.get(REASON, ""),
            ]
        )
    return text.getvalue()


def _ranked(trials: Sequence[FrozenTrial], maximize: bool) -> list[FrozenTrial]:
    sign = -1 if maximize else 1
    having = [trial for trial in trials if _value(trial) is not None]
    return sorted(having, key=lambda trial: (sign * trial.values[0], trial.number))


def _value(trial: FrozenTrial) -> float | None:
    """The value of a complete trial; None for others, and where it is infinite."""
    if trial.state != TrialState.COMPLETE or not np.isfinite(trial.values[0]):
        return None
    return float(trial.values[0])


def _states(trials: Sequence[FrozenTrial]) -> str:
    counts = Counter({"FAIL": "failed"}.get(t.state.name, t.state.name.lower()) for t in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no trials"


def _last_reason(trials: Sequence[FrozenTrial]) -> str:
    reasons = [trial.user_attrs[REASON] for trial in trials if REASON in trial.user_attrs]
    return f"; the last failure: {reasons[-1]}" if reasons else ""


def _label(study: optuna.Study) -> str:
    objective = description(study, CONFIG).get("SEARCH.OBJECTIVE", "")
    if objective:
        return f"{objective} (%)" if "AP" in objective else str(objective)
    return (study.metric_names or ["objective"])[0]


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return str(tabulate(rows, headers, tablefmt="pipe", floatfmt=".4g"))
