"""The result of a search: a report, charts and a config fragment for any Optuna study."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from tabulate import tabulate

from cityscapes_maskrcnn.search.best_config import anchors_remark, best_config, fragment_text
from cityscapes_maskrcnn.search.confirmation import confirmed_scores, describe_scores
from cityscapes_maskrcnn.search.study import (
    GENERATED_SCENES,
    SCORED_IMAGES,
    STUDY_CONFIG,
    TRIAL_ITERATIONS,
    TRIAL_REASON,
    finished_trials,
    mapping_attribute,
    ranked_trials,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import csv_text, write_text
from cityscapes_maskrcnn.visualization.study_charts import ScoredTrial, plot_study
from cityscapes_maskrcnn.visualization.style import About

_TOP = 10
# Importances of fewer complete trials are chance.
_MIN_TRIALS: Final = 10
# Of the objectives in pictures.
_LABELS: Final = {
    "segm/AP (%)": "official mask AP, %",
    "coco_segm/AP (%)": "COCO-style mask AP, %",
}


@dataclass(frozen=True, kw_only=True)
class _Results:
    """A study, as the report describes it.

    Attributes:
        study: of this project or another program.
        where: the database, as the report names it.
        label: name of the objective.
        generated: whether the trials are scored on generated scenes, as far as is known.
        trials: the finished ones.
        ranked: of these the complete ones with a finite value, the best first.
        confirmed: scores by trial, the best mean first, and by seed.
        best: the winner: by its mean among the confirmed trials, else by its only score.
        best_score: of the winner, as text.
        importances: share of the variance of the score by parameter, the largest first; empty if
            they cannot be measured.
        remark: what limits the meaning of the importances, or why they cannot be measured.
    """

    study: optuna.Study
    where: str
    label: str
    generated: bool
    trials: list[FrozenTrial]
    ranked: list[FrozenTrial]
    confirmed: dict[int, dict[int, float]]
    best: FrozenTrial
    best_score: str
    importances: dict[str, float]
    remark: str


def write_study_report(study: optuna.Study, where: str, output: Path) -> tuple[list[Path], str]:
    """Write ``report.md``, four pictures, ``trials.csv`` and ``best.yaml``.

    Where the best trial cannot become config keys, no ``best.yaml`` is written.

    Args:
        study: of this project or another program; needs one complete trial.
        where: the database, as the report names it.
        output: the folder; created when missing.

    Returns:
        The files, and why there is no ``best.yaml``; empty if there is.

    Raises:
        InputError: the study has no complete trial or several objectives, or a file cannot be
            written.
    """
    results = _read_results(study, where)
    best_file = output / "best.yaml"
    fragment, anchors, missing = _fragment(study, results.best, best_file)
    pictures = _draw_pictures(results, output)
    use = missing or (
        "`best.yaml` contains the best trial as config keys: "
        f"`tools/train_net.py --config-file ... INCLUDE \"('{best_file}',)\"`."
    )
    texts = {
        "trials.csv": _csv(results),
        "report.md": _markdown(results, pictures, [use, anchors, _unconfirmed(results)]),
    }
    if not missing:
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
    trials = finished_trials(study.trials)
    finite = [trial for trial in trials if _is_finite(trial)]
    ranked = ranked_trials(finite, study.direction == StudyDirection.MAXIMIZE)
    if not ranked:
        reasons = [t.user_attrs[TRIAL_REASON] for t in trials if TRIAL_REASON in t.user_attrs]
        last = f"; the last failure: {reasons[-1]}" if reasons else ""
        raise InputError(
            f"study {study.study_name!r} has no complete trial ({_states(study.trials)}): there "
            f"is nothing to analyze{last}"
        )
    config = mapping_attribute(study, STUDY_CONFIG)
    objective = config.get("SEARCH.OBJECTIVE")
    label = str(objective or (study.metric_names or ["objective"])[0])
    confirmed = confirmed_scores(study)
    best = next((t for number in confirmed for t in ranked if t.number == number), ranked[0])
    scores = confirmed.get(best.number)
    importances, remark = parameter_importances(study)
    return _Results(
        study=study,
        where=where,
        label=f"{label} (%)" if objective and "AP" in label else label,
        generated=config.get(GENERATED_SCENES) is True,
        trials=trials,
        ranked=ranked,
        confirmed=confirmed,
        best=best,
        best_score=describe_scores(list(scores.values())) if scores else f"{best.value:.6g}",
        importances=importances,
        remark=remark,
    )


def _unconfirmed(results: _Results) -> str:
    """Remark on a best score that came after the confirmation; empty if there is none."""
    first = results.ranked[0]
    if not results.confirmed or first.number in results.confirmed:
        return ""
    return (
        f"Trial {first.number} scored {first.value:.6g}, more than any other, but only once: it "
        "ran after the best trials had been confirmed. `tools/tune.py ... --confirm K` confirms "
        "it too."
    )


def _is_finite(trial: FrozenTrial) -> bool:
    # In a damaged database a complete trial may have no value.
    complete = trial.state == TrialState.COMPLETE and trial.values
    return bool(complete and np.isfinite(trial.values[0]))


def _parameter_names(trials: Sequence[FrozenTrial]) -> list[str]:
    """List every parameter of some trials, in the order of their first use."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def parameter_importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Measure which share of the variance of the score each parameter explains, by fANOVA.

    Returns:
        Fractions that add up to 1, by the name of a parameter that all trials have, the largest
        first, and what limits their meaning. Empty where they cannot be measured; the remark then
        has the reason.
    """
    complete = [trial for trial in study.trials if _is_finite(trial)]
    values = {trial.value for trial in complete}
    if len(complete) < _MIN_TRIALS or len(values) < 2:
        return {}, (
            f"Importances are not measured: {len(complete)} complete trials (at least "
            f"{_MIN_TRIALS} are needed), {len(values)} different scores."
        )
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    remark = f"Measured on {len(complete)} complete trials"
    if len(complete) < 10 * len(found):
        remark += f", few for {len(found)} parameters: an indication, not a result"
    return found, f"{remark}."


def _draw_pictures(results: _Results, output: Path) -> list[str]:
    """Draw a study; returns the names of the files."""
    study, config = results.study, mapping_attribute(results.study, STUDY_CONFIG)
    given = config.get("DATASETS.TEST")
    datasets = list(map(str, given)) if isinstance(given, (list, tuple)) else []
    images = config.get(SCORED_IMAGES)
    label = _LABELS.get(results.label, results.label)
    return plot_study(
        [
            ScoredTrial(number=trial.number, score=trial.values[0], params=trial.params)
            for trial in results.ranked
        ],
        output,
        label=label,
        maximize=study.direction == StudyDirection.MAXIMIZE,
        importances=results.importances,
        remark=results.remark,
        about=About(
            dataset=", ".join(datasets),
            num_images=images if isinstance(images, int) else None,
            generated=results.generated,
            model=f"study {study.study_name} in {results.where.removeprefix('sqlite:///')}",
            protocol=f"{label.removesuffix(', %')} of each trial",
        ),
    )


def _markdown(results: _Results, pictures: Sequence[str], use: Sequence[str]) -> str:
    trials, ranked, best = results.trials, results.ranked, results.best
    names = _parameter_names(ranked)
    seconds = [trial.duration.total_seconds() for trial in trials if trial.duration]
    largest = results.study.direction == StudyDirection.MAXIMIZE
    facts = [
        f"Database: {results.where}",
        f"Trials: {_states(results.study.trials)}",
        f"Best: **{results.best_score}**, trial {best.number} "
        f"({'largest' if largest else 'smallest'} is best)",
        f"Time: {timedelta(seconds=round(sum(seconds)))} in trials, "
        f"{timedelta(seconds=round(statistics.median(seconds or [0])))} in the median trial",
    ]
    iterations = sum(trial.user_attrs.get(TRIAL_ITERATIONS, 0) for trial in trials)
    if iterations:
        facts.append(f"Training iterations: {iterations:,}")
    if results.generated:
        facts.append("Data: **generated scenes, not Cityscapes**")
    rows = [
        [trial.number, trial.value, *(trial.params.get(name, "") for name in names)]
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
            f"{results.label} of the best trials, trained again in full with other seeds; they "
            "are ranked by the mean of all seeds.",
        ]
    parts.append("![history](history.png)")
    if names:
        parts += [
            "## Parameters",
            _parameter_table(results, names),
            results.remark,
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
    parts += ["## Use", *filter(None, use)]
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
    """Get the content of ``best.yaml``, a remark on its anchors, and why there is none."""
    fragment: dict[str, Any] = {}
    anchors = ""
    why = "None of the parameters has a known config key"
    try:
        fragment, anchors = best_config(study, best), anchors_remark(study, best)
    except (InputError, TypeError) as error:
        # Another program may call something else by the name of one of our parameters.
        why = f"The best trial cannot be written as config keys ({error})"
    if fragment:
        return fragment, anchors, ""
    missing = f"{why}, so there is no best.yaml."
    if file.exists():
        missing += f" The one in {file.parent} is from an earlier report and was not changed."
    return fragment, anchors, missing


def _parameter_table(results: _Results, names: Sequence[str]) -> str:
    """Draw importance, best value, range of the best quarter of the trials, and of all."""
    quarter = results.ranked[: max(1, len(results.ranked) // 4)]
    rows = [
        [
            name,
            f"{100 * results.importances[name]:.0f} %" if name in results.importances else "",
            _span([results.best], name),
            _span(quarter, name),
            _span(results.trials, name),
        ]
        for name in names
    ]
    return _table(rows, ["parameter", "importance", "best", "in the best quarter", "tried"])


def _span(trials: Sequence[FrozenTrial], name: str) -> str:
    values = [trial.params[name] for trial in trials if name in trial.params]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        ends = (f"{end:.4g}" for end in (min(values), max(values))) if values else ()
        return " to ".join(dict.fromkeys(ends))
    if len(values) == 1:
        return str(values[0])
    counts = Counter(map(str, values))
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common())


def _csv(results: _Results) -> str:
    """Write every finished trial in a line, the best first, those without a value last."""
    names = _parameter_names(results.trials)
    rest = [trial for trial in results.trials if not _is_finite(trial)]
    rows = [
        [
            trial.number,
            trial.state.name.lower(),
            trial.value if _is_finite(trial) else None,
            *(trial.params.get(name) for name in names),
            round(trial.duration.total_seconds(), 1) if trial.duration else None,
            trial.user_attrs.get(TRIAL_ITERATIONS),
            trial.user_attrs.get(TRIAL_REASON),
        ]
        for trial in [*results.ranked, *rest]
    ]
    return csv_text(["trial", "state", "value", *names, "seconds", "iterations", "reason"], rows)


def _states(trials: Sequence[FrozenTrial]) -> str:
    counts = Counter({"FAIL": "failed"}.get(t.state.name, t.state.name.lower()) for t in trials)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no trials"


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return str(tabulate(rows, headers, tablefmt="pipe", floatfmt=".4g"))
