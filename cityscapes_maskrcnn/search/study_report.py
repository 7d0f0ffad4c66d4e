"""What a search found: a report, pictures and a config fragment of any Optuna study."""

from __future__ import annotations

import csv
import io
import re
import statistics
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as optuna_plots
from tabulate import tabulate

from cityscapes_maskrcnn.search.best_config import anchors_remark, best_config, fragment_text
from cityscapes_maskrcnn.search.confirmation import confirmed_scores, describe_scores
from cityscapes_maskrcnn.search.study import (
    STUDY_CONFIG,
    TRIAL_ITERATIONS,
    TRIAL_REASON,
    finished_trials,
    mapping_attribute,
    ranked_trials,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, write_text

_TOP = 10
# Of fewer complete trials importances are chance.
_LEAST_TRIALS: Final = 10
_PARAMETER_HEADERS = ["parameter", "importance", "best", "in the best quarter", "tried"]


@dataclass(frozen=True)
class _Results:
    """A study, as the report looks at it.

    Attributes:
        study: of this project or any other program.
        where: the database, as the report shall name it.
        label: what a value is.
        trials: the finished ones.
        ranked: of these the complete ones with a finite value, the best first.
        confirmed: scores by trial, the best mean first, and by seed.
        best: the winner: by its mean among the confirmed trials, else by its only score.
    """

    study: optuna.Study
    where: str
    label: str
    trials: list[FrozenTrial]
    ranked: list[FrozenTrial]
    confirmed: dict[int, dict[int, float]]
    best: FrozenTrial

    @property
    def maximize(self) -> bool:
        return bool(self.study.direction == StudyDirection.MAXIMIZE)

    @property
    def best_score(self) -> str:
        scores = self.confirmed.get(self.best.number)
        return describe_scores(list(scores.values())) if scores else f"{self.best.values[0]:.6g}"


def write_study_report(study: optuna.Study, where: str, output: Path) -> tuple[list[Path], str]:
    """Write ``report.md``, four pictures, ``trials.csv`` and ``best.yaml``.

    Where the best trial cannot become config keys there is no ``best.yaml``. An earlier one in
    the folder, which names its trial, is left as it is.

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
    results = _read_results(study, where)
    importances, remark = parameter_importances(study)
    best_file = output / "best.yaml"
    fragment, use, missing = _fragment(study, results.best, best_file)
    pictures = _draw_pictures(results, list(importances), remark, output)
    texts = {
        "trials.csv": _csv(results),
        "report.md": _markdown(results, importances, remark, pictures, use),
    }
    if fragment:
        texts["best.yaml"] = fragment_text(
            study,
            where=where,
            best=results.best,
            score=f"{results.label} {results.best_score}",
            fragment=fragment,
            file=best_file,
        )
    for name, text in texts.items():
        write_text(output / name, text)
    return [output / name for name in [*texts, *pictures]], missing


def _read_results(study: optuna.Study, where: str) -> _Results:
    if len(study.directions) != 1:
        raise InputError(
            f"study {study.study_name!r} has {len(study.directions)} objectives: only studies of "
            "one can be analyzed"
        )
    trials = finished_trials(study.get_trials(deepcopy=False))
    finite = [trial for trial in trials if _is_finite(trial)]
    ranked = ranked_trials(finite, study.direction == StudyDirection.MAXIMIZE)
    if not ranked:
        reasons = [t.user_attrs[TRIAL_REASON] for t in trials if TRIAL_REASON in t.user_attrs]
        last = f"; the last failure: {reasons[-1]}" if reasons else ""
        raise InputError(
            f"study {study.study_name!r} has no complete trial ({_states(study.trials)}): there "
            f"is nothing to analyze{last}"
        )
    objective = mapping_attribute(study, STUDY_CONFIG).get("SEARCH.OBJECTIVE", "")
    label = str(objective or (study.metric_names or ["objective"])[0])
    confirmed = confirmed_scores(study)
    return _Results(
        study=study,
        where=where,
        label=f"{label} (%)" if objective and "AP" in label else label,
        trials=trials,
        ranked=ranked,
        confirmed=confirmed,
        best=next((t for number in confirmed for t in ranked if t.number == number), ranked[0]),
    )


def _is_finite(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and bool(np.isfinite(trial.values[0]))


def parameter_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """Every parameter of some trials, in the order of their first use."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def parameter_importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Measure how much of the variance of the score each parameter explains, by fANOVA.

    Returns:
        Fractions that add up to 1, by name, largest first, and what limits their meaning. Empty
        where they cannot be measured; the remark then has the reason.
    """
    complete = [trial for trial in study.get_trials(deepcopy=False) if _is_finite(trial)]
    values = {trial.values[0] for trial in complete}
    varied = [
        name
        for name in parameter_names(complete)
        if all(name in trial.params for trial in complete)
        and len({trial.params[name] for trial in complete}) > 1
    ]
    if len(complete) < _LEAST_TRIALS or len(values) < 2 or not varied:
        return {}, (
            f"Importances are not measured: {len(complete)} complete trials (at least "
            f"{_LEAST_TRIALS} are needed), {len(values)} different scores, {len(varied)} "
            "parameters that vary."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(
            _finite_copy(study), evaluator=FanovaImportanceEvaluator(seed=0), params=varied
        )
    remark = f"Measured on {len(complete)} complete trials"
    if len(complete) < 10 * len(varied):
        remark += f", few for {len(varied)} parameters: an indication, not a result"
    return found, f"{remark}."


def _finite_copy(study: optuna.Study) -> optuna.Study:
    """Copy a study into memory with its finite trials under their numbers.

    An infinite score would spoil importances and pictures.
    """
    copy = optuna.create_study(direction=study.direction)
    copy.add_trials(
        trial if _is_finite(trial) else create_trial(state=TrialState.FAIL)
        for trial in study.get_trials(deepcopy=False)
    )
    return copy


def _draw_pictures(results: _Results, important: list[str], remark: str, output: Path) -> list[str]:
    """Let Optuna draw the study, with titles, sizes and labels of our own.

    Args:
        results: of the study.
        important: parameters whose importances can be measured.
        remark: on what they were measured.
        output: the folder.

    Returns:
        Names of the files.
    """
    study, names = _finite_copy(results.study), parameter_names(results.ranked)
    with _own_pyplot():
        figures: dict[str, Figure] = {}
        if names:
            # First, because the other plots switch to a style with a grey background.
            figures["parallel_coordinates.png"] = _draw_parallel(study, names, results.label)
        figures["history.png"] = _draw_history(study, results.label)
        if important:
            figures["importances.png"] = _draw_importances(study, important, remark)
        if names:
            figures["slices.png"] = _draw_slices(study, names, results.label)
        for name, figure in figures.items():
            with atomic_write(output / name) as file:
                figure.savefig(file, format="png", dpi=120, bbox_inches="tight", facecolor="white")
    return list(figures)


@contextmanager
def _own_pyplot() -> Iterator[None]:
    """Undo what Optuna leaves behind: open figures and another style.

    Names of parameters may hold dollar signs, which would begin a formula.
    """
    before = set(plt.get_fignums())
    with plt.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        # Optuna warns that its plots are experimental.
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def _draw_history(study: optuna.Study, label: str) -> Figure:
    axis: Any = optuna_plots.plot_optimization_history(study, target_name=label)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return _finished(axis, f"{label} of every trial", 9.0, 4.2)


def _draw_importances(study: optuna.Study, names: list[str], remark: str) -> Figure:
    axis: Any = optuna_plots.plot_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0), params=names
    )
    axis.set(xlabel=f"share of the variance of the score (fANOVA)\n{remark}", ylabel="")
    axis.get_legend().remove()
    axis.set_yticks(axis.get_yticks(), _wrapped_labels(axis.get_yticklabels(), 26))
    return _finished(axis, "Importance of the parameters", 8.0, 1.4 + 0.5 * len(names))


def _draw_slices(study: optuna.Study, names: list[str], label: str) -> Figure:
    axes: Any = optuna_plots.plot_slice(study, params=names, target_name=label)
    for axis in np.ravel(axes):
        axis.set_xlabel(wrapped(axis.get_xlabel(), 18), fontsize=10)
        axis.tick_params(axis="x", rotation=90, labelsize=8)
        if axis.get_xscale() == "log":
            axis.xaxis.set_major_formatter("{x:g}")
    return _finished(axis, f"{label} over each parameter", 2.2 * len(names) + 2.0, 4.6)


def _draw_parallel(study: optuna.Study, names: list[str], label: str) -> Figure:
    width = 2.2 * len(names) + 2.0
    axis: Any = optuna_plots.plot_parallel_coordinate(study, params=names, target_name=label)
    # Optuna shortens names; it has them in this order.
    labels = [wrapped(name, 20) for name in (label, *sorted(names))]
    axis.set_xticks(axis.get_xticks(), labels, rotation=0, fontsize=9)
    _, bar, *scales = axis.figure.axes
    for scale in scales:
        scale.tick_params(axis="y", labelsize=8)
        if scale.get_yscale() == "log":
            scale.yaxis.set_major_formatter("{x:g}")
        else:
            limits, texts = scale.get_ylim(), scale.get_yticklabels()
            scale.set_yticks(scale.get_yticks(), _wrapped_labels(texts, 18))
            # Ticks beyond the ends would stretch the scale.
            scale.set_ylim(limits)
    # Beside the longest labels of the last parameter.
    place = bar.get_position()
    bar.set_position((place.x0 + 0.9 / width, place.y0, place.width, place.height))
    return _finished(axis, "Complete trials", width, 4.8)


def _finished(axis: Any, title: str, width: float, height: float) -> Figure:
    """Replace Optuna's title and set the size in inches."""
    figure: Figure = axis.figure
    for place in ("left", "center"):
        axis.set_title("", loc=place)
    figure.set_size_inches(width, height)
    figure.suptitle(title, x=0.125, y=1.0, ha="left", fontsize=12, fontweight="bold")
    return figure


def _wrapped_labels(labels: Sequence[Any], width: int) -> list[str]:
    return [wrapped(label.get_text(), width) for label in labels]


def wrapped(name: str, width: int) -> str:
    """Break a name into lines of at most ``width`` letters: at spaces, underscores and dots."""
    lines = [""]
    for word in re.findall(r"[^\s_.]*(?:[\s_.]+|$)", name):
        for part in textwrap.wrap(word, width, drop_whitespace=False):
            if len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def _markdown(
    results: _Results,
    importances: Mapping[str, float],
    remark: str,
    pictures: Sequence[str],
    use: str,
) -> str:
    trials, ranked, best = results.trials, results.ranked, results.best
    names = parameter_names(ranked)
    seconds = [trial.duration.total_seconds() for trial in trials if trial.duration]
    iterations = [
        trial.user_attrs[TRIAL_ITERATIONS]
        for trial in trials
        # Other programs may keep anything by this name.
        if isinstance(trial.user_attrs.get(TRIAL_ITERATIONS), int)
    ]
    facts = [
        f"Database: {results.where}",
        f"Trials: {_states(results.study.get_trials(deepcopy=False))}",
        f"Best: **{results.best_score}**, trial {best.number} "
        f"({'largest' if results.maximize else 'smallest'} is best)",
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
        f"# Study {results.study.study_name}",
        "\n".join(f"- {fact}" for fact in facts),
        f"## Best {min(_TOP, len(ranked))} of {len(ranked)} complete trials",
        _table(rows, ["trial", results.label, *names]),
    ]
    if results.confirmed:
        parts += [
            "## Confirmed with other seeds",
            _confirmed_table(results.confirmed),
            f"{results.label} of the best trials, trained again with other seeds and to their "
            "end; the mean of all seeds decides.",
        ]
    parts.append("![history](history.png)")
    if names:
        parts += [
            "## Parameters",
            _table(_parameter_rows(results, names, importances), _PARAMETER_HEADERS),
            remark,
            *(f"![{Path(name).stem}]({name})" for name in pictures if name != "history.png"),
        ]
    failed = Counter(
        str(trial.user_attrs.get(TRIAL_REASON, "no reason was recorded"))
        for trial in trials
        if trial.state == TrialState.FAIL
    )
    if failed:
        rows = [[count, reason.replace("|", "\\|")] for reason, count in failed.most_common()]
        parts += ["## Failed trials", _table(rows, ["trials", "reason"])]
    parts += ["## Use", use]
    return "\n\n".join(parts) + "\n"


def _confirmed_table(confirmed: Mapping[int, Mapping[int, float]]) -> str:
    seeds = list(dict.fromkeys(seed for by_seed in confirmed.values() for seed in by_seed))
    rows = [
        [
            number,
            *(by_seed.get(seed, "-") for seed in seeds),
            statistics.mean(by_seed.values()),
            f"{min(by_seed.values()):.4g} to {max(by_seed.values()):.4g}",
        ]
        for number, by_seed in confirmed.items()
    ]
    return _table(rows, ["trial", *(f"seed {seed}" for seed in seeds), "mean", "min to max"])


def _fragment(
    study: optuna.Study, best: FrozenTrial, file: Path
) -> tuple[dict[str, Any], str, str]:
    """The content of ``best.yaml``, the report's section on it, and why there is none."""
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


def _parameter_rows(
    results: _Results, names: Sequence[str], importances: Mapping[str, float]
) -> list[list[Any]]:
    """Importance, best value, where the best quarter of the trials lies, and all that was tried."""
    quarter = results.ranked[: max(1, len(results.ranked) // 4)]
    return [
        [
            name,
            f"{100 * importances[name]:.0f} %" if name in importances else "",
            _span([results.best], name),
            _span(quarter, name),
            _span(results.trials, name),
        ]
        for name in names
    ]


def _span(trials: Sequence[FrozenTrial], name: str) -> str:
    values = [trial.params[name] for trial in trials if name in trial.params]
    if not values:
        return ""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        ends = dict.fromkeys(f"{end:.4g}" for end in (min(values), max(values)))
        return " to ".join(ends)
    if len(values) == 1:
        return str(values[0])
    counts = Counter(str(value) for value in values)
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common())


def _csv(results: _Results) -> str:
    """Every finished trial in a line, the best first, those without a value last."""
    names = parameter_names(results.trials)
    rest = [trial for trial in results.trials if not _is_finite(trial)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *names, "seconds", "iterations", "reason"])
    for trial in [*results.ranked, *rest]:
        writer.writerow(
            [
                trial.number,
                trial.state.name.lower(),
                trial.values[0] if _is_finite(trial) else "",
                *(trial.params.get(name, "") for name in names),
                round(trial.duration.total_seconds(), 1) if trial.duration else "",
                trial.user_attrs.get(TRIAL_ITERATIONS, ""),
                trial.user_attrs.get(TRIAL_REASON, ""),
            ]
        )
    return text.getvalue()


def _states(trials: Sequence[FrozenTrial]) -> str:
    counts = Counter({"FAIL": "failed"}.get(t.state.name, t.state.name.lower()) for t in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no trials"


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return str(tabulate(rows, headers, tablefmt="pipe", floatfmt=".4g"))
