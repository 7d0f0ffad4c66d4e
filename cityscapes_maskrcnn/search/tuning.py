"""Run the search that the config describes: its study, sampler, pruner and worker."""

from __future__ import annotations

import hashlib
import logging
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import optuna
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from cityscapes_maskrcnn.config_check import check_ranges
from cityscapes_maskrcnn.data.loaders import training_dicts
from cityscapes_maskrcnn.data.registration import is_generated_dataset
from cityscapes_maskrcnn.engine.inference import check_metric
from cityscapes_maskrcnn.engine.solver import resolve_epochs
from cityscapes_maskrcnn.search.confirmation import confirm
from cityscapes_maskrcnn.search.sampler import SeededByTrial
from cityscapes_maskrcnn.search.space import SearchSpace
from cityscapes_maskrcnn.search.storage import (
    database_errors,
    open_storage,
    read_study,
    storage_url,
    without_password,
)
from cityscapes_maskrcnn.search.study import (
    GENERATED_SCENES,
    IMAGES_CONTENT,
    SCORED_IMAGES,
    WEIGHTS_CONTENT,
    join_study,
    progress,
)
from cityscapes_maskrcnn.search.trial import (
    CONFIRMATION_FOLDER,
    TRIALS_FOLDER,
    TrialRunner,
    check_folders,
)
from cityscapes_maskrcnn.search.worker import Worker
from cityscapes_maskrcnn.utils.config_keys import FREE_KEYS, flat_config, value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest
from cityscapes_maskrcnn.utils.stop import StopRequests

logger = logging.getLogger(__name__)

# Keys that may differ between the workers of a study. Weights count by their content.
_FREE: Final = FREE_KEYS | {"MODEL.WEIGHTS"}
_FREE_PREFIXES = ("SEARCH.PARAMETERS.", "SEARCH.PRUNER.", "SOLVER.CHECKPOINT_")


def tune(
    cfg: CfgNode,
    *,
    study_name: str,
    storage: str = "",
    budget: int,
    prune: bool = True,
    confirm_best: int = 0,
    train_command: Sequence[str],
    stop: StopRequests,
) -> None:
    """Search: create or join the study, then run trials until its budget is used up.

    Args:
        cfg: from :func:`.cli.build_config`; ``OUTPUT_DIR`` gets the folders of the trials.
        study_name: of the study.
        storage: database in any spelling; empty: ``OUTPUT_DIR/search.db``.
        budget: finished trials that the study shall have in all.
        prune: end bad trials early.
        confirm_best: how many of the best trials to train again with other seeds.
        train_command: program and flags that train; the config file is added.
        stop: requests to stop.

    Raises:
        InputError: the config, the data, the database or the study cannot be used, or trials fail
            one after the other.
        Stopped: this process was asked to stop.
    """
    space = SearchSpace.from_config(cfg.SEARCH.PARAMETERS)
    _check_keys(cfg, space)
    if not study_name:
        raise InputError("--study is empty: name the study")
    if budget < 1:
        raise InputError(f"--trials {budget}: at least 1")
    if confirm_best < 0:
        raise InputError(f"--confirm {confirm_best}: at least 0, which means none")
    iterations, period = _trial_length(cfg)
    output = Path(cfg.OUTPUT_DIR)
    url = storage_url(storage or str(output / "search.db"))
    min_resource = cfg.SEARCH.PRUNER.MIN_EVALUATIONS * period
    prunes = prune and 0 < min_resource < iterations
    text = cfg.dump()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {output}: cannot be made: {error.strerror}") from error
    trials = output / TRIALS_FOLDER
    config = {
        **_shared(yaml.safe_load(text)),
        WEIGHTS_CONTENT: _content(cfg.MODEL.WEIGHTS),
        IMAGES_CONTENT: images_content([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]),
        GENERATED_SCENES: any(map(is_generated_dataset, cfg.DATASETS.TEST)),
        SCORED_IMAGES: sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST),
    }
    with database_errors(url), warnings.catch_warnings():
        # Heartbeats have been experimental since Optuna 2.8.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        database = open_storage(url, cfg.SEARCH.HEARTBEAT_SECONDS)
        if study_name not in optuna.get_all_study_names(database):
            # Before it is created: a refused search leaves no study behind.
            check_folders(trials, {"study": study_name, "config": config})
        else:
            read_study(database, study_name, url)
        study = join_study(
            database,
            name=study_name,
            space=space,
            config=config,
            sampler=SeededByTrial(cfg.SEED, cfg.SEARCH.RANDOM_TRIALS),
            pruner=SuccessiveHalvingPruner(
                min_resource=min_resource, reduction_factor=cfg.SEARCH.PRUNER.REDUCTION
            )
            if prunes
            else NopPruner(),
        )
        setup_logger(cfg.OUTPUT_DIR, name="cityscapes_maskrcnn", abbrev_name="cm")
        logger.info("Study %r in %s", study_name, without_password(url))
        for name, parameter in space.parameters.items():
            logger.info("  %s: %s", name, parameter)
        if prune and not prunes:
            logger.info(
                "No trial will be pruned: they have no more than SEARCH.PRUNER.MIN_EVALUATIONS %d "
                "evaluations (TEST.EVAL_PERIOD %d of %d iterations)",
                cfg.SEARCH.PRUNER.MIN_EVALUATIONS,
                period,
                iterations,
            )
        worker = Worker(
            study=study,
            space=space,
            runner=TrialRunner(
                command=train_command,
                # Trials train with the config as it is now, also if its files change.
                config=text,
                objective=cfg.SEARCH.OBJECTIVE,
                stop=stop,
                stall_seconds=60 * cfg.SEARCH.STALL_MINUTES,
            ),
            folder=trials,
            total_iterations=iterations,
            max_failures=cfg.SEARCH.MAX_FAILURES,
        )
        logger.info("%s", progress(study.get_trials(deepcopy=False), budget))
        worker.run(budget)
        if all(trial.state == TrialState.FAIL for trial in study.get_trials(deepcopy=False)):
            raise InputError(
                f"study {study_name}: all of its trials failed; the reasons are in"
                f" {output / 'log.txt'}, the logs of the trials in {trials}"
            )
        if confirm_best:
            confirm(database, worker, count=confirm_best, folder=output / CONFIRMATION_FOLDER)
        command = ["tools/analyze_study.py", "--storage", without_password(url)]
        command += ["--study", study_name, "--output", cfg.OUTPUT_DIR]
        logger.info("Done. Report and best.yaml: %s", shlex.join(command))


def _check_keys(cfg: CfgNode, space: SearchSpace) -> None:
    """Raise for a parameter that sets a key which the config does not have."""
    for name, parameter in space.parameters.items():
        value = value_at(cfg, parameter.key)
        if parameter.key and (value is None or isinstance(value, CfgNode)):
            raise InputError(
                f"SEARCH.PARAMETERS.{name}.KEY {parameter.key}: there is no such config key"
            )


def _trial_length(cfg: CfgNode) -> tuple[int, int]:
    """Iterations of a trial and between two scores; raise for what would fail every trial."""
    check_ranges(cfg)
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(
            f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: a search needs one dataset to score on"
        )
    if cfg.DATASETS.VAL:
        raise InputError(
            f"DATASETS.VAL {tuple(cfg.DATASETS.VAL)}: a search scores its trials on DATASETS.TEST; "
            "leave it empty"
        )
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise InputError(f"MODEL.WEIGHTS {weights}: no such file; train the stage before first")
    trial = cfg.clone()
    training_dicts(trial)
    resolve_epochs(trial)
    DatasetCatalog.get(cfg.DATASETS.TEST[0])
    check_metric(cfg, "SEARCH.OBJECTIVE")
    return trial.SOLVER.MAX_ITER, trial.TEST.EVAL_PERIOD


def images_content(datasets: Sequence[str]) -> str:
    """Digest of the names of the images of some datasets, wherever they lie."""
    names = [
        [Path(image["file_name"]).name for image in DatasetCatalog.get(dataset)]
        for dataset in datasets
    ]
    return f"SHA-256 {hashlib.sha256(repr(names).encode()).hexdigest()}"


def _content(weights: str) -> str:
    """What weights are, wherever they lie: the digest of a file, or an address."""
    if not weights or "://" in weights:
        return weights or "no weights"
    return f"SHA-256 {file_digest(Path(weights))}"


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Get what all workers of a study must agree on, such as ``MODEL.RPN.IOU_THRESHOLDS``."""
    return {
        key: value
        for key, value in flat_config(config).items()
        if key not in _FREE and not key.startswith(_FREE_PREFIXES)
    }
