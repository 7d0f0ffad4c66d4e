from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.search.sampler import SeededByTrial
from cityscapes_maskrcnn.search.study import IMAGES_CONTENT, STUDY_CONFIG
from cityscapes_maskrcnn.search.tuning import tune
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest
from cityscapes_maskrcnn.utils.stop import StopRequests

PROJECT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_train_net.py")
# The fake needs this of every trial, and trains so long.
CONFIG = (
    "SOLVER.EPOCHS 0 SOLVER.MAX_ITER 100 TEST.EVAL_PERIOD 10 "
    "DATASETS.TRAIN ('cityscapes_instance_train',) MODEL.WEIGHTS"
)


@pytest.fixture
def tuned(small_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., optuna.Study]:
    """A search in this process, by default of one trial, with the fake training program."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))

    def run(output: Path, *opts: str, study: str = "search", **options: object) -> optuna.Study:
        file = PROJECT / "configs" / "stage_2_search.yaml"
        cfg = build_config(str(file), [*CONFIG.split(), "", *opts, "OUTPUT_DIR", str(output)])
        settings = {"budget": 1, "prune": False, **options}
        command = [sys.executable, str(FAKE)]
        tune(cfg, study_name=study, train_command=command, stop=StopRequests(), **settings)
        return optuna.load_study(study_name=study, storage=f"sqlite:///{output}/search.db")

    return run


def test_a_search_without_a_score_is_an_error(
    tuned: Callable[..., optuna.Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "crash")
    with pytest.raises(InputError, match="study search: all of its trials failed"):
        tuned(tmp_path)


@pytest.mark.parametrize(
    ("opts", "options", "message"),
    [
        ("", {"storage": "postgres://u:secret@127.0.0.1:1/d"}, "1/d: cannot use the database: c"),
        ("", {"budget": 0}, "--trials 0: at least 1"),
        ("", {"confirm_best": -1}, "--confirm -1: at least 0"),
        ("", {"study": ""}, "--study is empty: name the study"),
        ("MODEL.WEIGHTS s/model_final.pth", {}, "s/model_final.pth: no such file; train"),
        ("SEARCH.OBJECTIVE segm/mAP", {}, "SEARCH.OBJECTIVE segm/mAP: is not measured; did you"),
        ("SEARCH.OBJECTIVE segm_EMA/AP", {}, "segm_EMA/AP: is not measured; did you mean segm/AP?"),
        ("DATASETS.TEST ()", {}, "a search needs one dataset to score on"),
        (
            "DATASETS.VAL ('cityscapes_instance_val_part2of4',)",
            {},
            "DATASETS.VAL ('cityscapes_instance_val_part2of4',): a search scores its trials on",
        ),
        ("SEARCH.PRUNER.REDUCTION 1", {}, "SEARCH.PRUNER.REDUCTION 1: it must be 2 or more"),
        ("SEARCH.STALL_MINUTES -1.0", {}, "SEARCH.STALL_MINUTES -1.0: it must be 0 or more"),
        ("SEARCH.MAX_FAILURES 0", {}, "SEARCH.MAX_FAILURES 0: it must be 1 or more"),
        (
            "SEARCH.PARAMETERS.fg_iou_thresh.KEY SOLVER.RATE",
            {},
            "fg_iou_thresh.KEY SOLVER.RATE: there is no such config key",
        ),
        (
            "SEARCH.PARAMETERS.rpn_negative_iou_thresh.HIGH 0.8",
            {},
            "trials could have their thresholds in the wrong order",
        ),
    ],
)
def test_bad_input(
    tuned: Callable[..., optuna.Study],
    tmp_path: Path,
    opts: str,
    options: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(InputError) as caught:
        tuned(tmp_path / "out", *opts.split(), **options)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def sample(numbers: list[int], seed: int = 7, killed: bool = False) -> list[dict[str, float]]:
    """Run as many trials as the numbers say, each number with a sampler, a worker, of its own.

    ``killed``: each worker ends in the middle of a trial, which the next one finds queued again.
    """
    storage = optuna.storages.InMemoryStorage()
    for trials in numbers:
        study = optuna.create_study(
            study_name="s", storage=storage, sampler=SeededByTrial(seed, 4), load_if_exists=True
        )

        def objective(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", 0, 1)
            return (x - 0.3) ** 2 + trial.suggest_float("y", 0, 1)

        study.optimize(objective, n_trials=trials)
        if killed:
            # Before it has drawn anything, between two draws, or after them.
            trial = study.ask()
            if trials % 3 == 1:
                trial.suggest_float("x", 0, 1)
            elif trials % 3 == 2:
                objective(trial)
            study.tell(trial, state=TrialState.FAIL)
            RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
    return [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE]


def test_an_interrupted_search_draws_what_an_uninterrupted_one_draws() -> None:
    whole = sample([12])
    # Four at random, then TPE, in one worker or in five.
    assert sample([1, 2, 3, 2, 4]) == whole
    assert sample([1, 2, 3, 2, 4], killed=True) == whole
    assert len({each["x"] for each in whole}) == 12
    assert sample([12], seed=8) != whole
    assert sample([3], seed=-1) != sample([3], seed=-1)


def test_the_last_line_can_be_pasted(tuned: Callable[..., optuna.Study], tmp_path: Path) -> None:
    output = tmp_path / "my search"
    tuned(output, study="thresholds of mine")
    line = (output / "log.txt").read_text().splitlines()[-1]
    assert shlex.split(line.partition("best.yaml: ")[2]) == [
        *("tools/analyze_study.py", "--storage", f"sqlite:///{output}/search.db"),
        *("--study", "thresholds of mine", "--output", str(output)),
    ]


def test_other_weights_are_refused_by_their_content(
    tuned: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    mine, copy = tmp_path / "mine.pth", tmp_path / "copy.pth"
    mine.write_text("weights")
    study = tuned(tmp_path / "out", "MODEL.WEIGHTS", str(mine))
    shutil.copy(mine, copy)
    tuned(tmp_path / "out", "MODEL.WEIGHTS", str(copy))
    before, now = file_digest(mine), hashlib.sha256(b"others").hexdigest()
    mine.write_text("others")
    with pytest.raises(InputError) as caught:
        tuned(tmp_path / "out", "MODEL.WEIGHTS", str(mine))
    assert str(caught.value) == (
        "study 'search' trains with MODEL.WEIGHTS whose content differs (SHA-256 "
        f"{before}, not SHA-256 {now}): its scores cannot be compared; use another --study or "
        "the same weights"
    )
    with pytest.raises(InputError, match=rf"differs \(SHA-256 {before}, not no weights\): its"):
        tuned(tmp_path / "out")
    # A study that was made before says nothing about it.
    config = dict(study.user_attrs["config"])
    del config["content of MODEL.WEIGHTS"]
    study.set_user_attr("config", config)
    shutil.rmtree(tmp_path / "out" / "trials")
    tuned(tmp_path / "out", "MODEL.WEIGHTS", str(mine))


def test_other_images_of_the_same_names_are_refused(
    tuned: Callable[..., optuna.Study],
    tmp_path: Path,
    small_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned(tmp_path / "out", "DATASETS.TEST", "('cityscapes_instance_val',)")
    root = tmp_path / "data"
    shutil.copytree(small_root, root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    tuned(tmp_path / "out", "DATASETS.TEST", "('cityscapes_instance_val',)")
    next(root.rglob("leftImg8bit/val/*/*.png")).unlink()
    with pytest.raises(InputError, match=r"DATASETS whose content differs .* same images"):
        tuned(tmp_path / "out", "DATASETS.TEST", "('cityscapes_instance_val',)")


def test_a_study_that_does_not_say_which_images_it_has_is_refused(
    tuned: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    study = tuned(tmp_path)
    config = study.user_attrs[STUDY_CONFIG]
    assert IMAGES_CONTENT in config
    del config[IMAGES_CONTENT]
    study.set_user_attr(STUDY_CONFIG, config)
    with pytest.raises(InputError, match="'search' does not say on which images it trains: its"):
        tuned(tmp_path)


def test_values_set_from_python_are_checked(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    file = PROJECT / "configs" / "stage_2_search.yaml"
    cfg = build_config(str(file), [*CONFIG.split(), "", "OUTPUT_DIR", str(tmp_path)])
    cfg.SEARCH.MAX_FAILURES = 0
    with pytest.raises(InputError, match=r"^SEARCH\.MAX_FAILURES 0: it must be 1 or more"):
        tune(cfg, study_name="search", train_command=["true"], stop=StopRequests(), budget=1)


def test_workers_may_differ_in_speed_and_memory(
    tuned: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    tuned(tmp_path)
    tuned(tmp_path, "TEST.NUM_WORKERS", "4", "TEST.ANALYSIS_CONFIDENCE", "0.1")
    tuned(tmp_path, "INPUT.CACHE", "disk", "MODEL.COMPILE", "auto", "TEST.BATCH_SIZE", "4")
    tuned(tmp_path, "DATALOADER.NUM_WORKERS", "1", "TRACKING.RUN_NAME", "second")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("DATALOADER.REPEAT_THRESHOLD", "0.5"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),
    ],
)
def test_workers_must_not_differ_in_the_images_that_they_train_on(
    tuned: Callable[..., optuna.Study], tmp_path: Path, key: str, value: str
) -> None:
    tuned(tmp_path)
    with pytest.raises(InputError, match=f"study 'search' trains with {key} .*, not {value}: its"):
        tuned(tmp_path, key, value)


def test_trials_of_another_study_are_found_before_one_is_started(
    tuned: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    tuned(tmp_path)
    url = f"sqlite:///{tmp_path}/search.db"
    other = "0000: holds a trial of another study or config; choose another OUTPUT_DIR"
    with pytest.raises(InputError, match=other):
        tuned(tmp_path, study="other")
    assert optuna.get_all_study_names(url) == ["search"]
    # Another study of the same name, in a new database.
    (tmp_path / "search.db").unlink()
    with pytest.raises(InputError, match=other):
        tuned(tmp_path, "SEED", "7")
    assert optuna.get_all_study_names(url) == []
    tuned(tmp_path)
    assert optuna.get_all_study_names(url) == ["search"]


def test_a_search_whose_trials_are_too_short_to_be_pruned_says_so(
    tuned: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    line = (
        "No trial will be pruned: they have no more than SEARCH.PRUNER.MIN_EVALUATIONS 5 "
        "evaluations (TEST.EVAL_PERIOD 20 of 100 iterations)"
    )
    # Five evaluations of 20 iterations are all of a trial; 19 leave five iterations to save.
    for period, prune, logged in (("20", True, True), ("19", True, False), ("20", False, False)):
        output = tmp_path / f"{period} {prune}"
        tuned(output, "TEST.EVAL_PERIOD", period, prune=prune)
        assert (line in (output / "log.txt").read_text()) == logged
