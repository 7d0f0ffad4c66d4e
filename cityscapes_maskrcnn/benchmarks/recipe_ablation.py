"""The effect of each part of the recipe: trainings with equal compute on generated scenes.

An *arm* is a way to train: Detectron2's config, this project's stages, or these with one more key.
All arms start from the same weights, have the same network, images and batch size, and do the same
number of floating point operations, within half an iteration: those of a step, forward and
backward, are counted, and a cheaper step (a frozen backbone) gives an arm more of them. A *variant*
scores what an arm has trained in another way, which costs no training.

The scenes are cut in three: all arms train on the same ones, val parts 1 and 2 choose which pieces
are combined in the end, and the reported scores are of val parts 3 and 4, which choose nothing.
Learning rates are those of the configs; the demo's were chosen on its own scenes, of another seed.

Several processes may work in one folder: each trains what nobody else does. What its results hold
for stands in ``settings.json`` there, and a command with other settings is refused.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from detectron2.config import CfgNode

from cityscapes_maskrcnn.benchmarks.ablation_arms import (
    AVERAGE,
    BASE,
    MAIN,
    SCALE,
    STAGED,
    TRAINING,
    UNWATCHED,
    Arm,
    Stage,
    choose_pieces,
    combined,
)
from cityscapes_maskrcnn.benchmarks.ablation_settings import claim_folder, digest_of, machine
from cityscapes_maskrcnn.benchmarks.ablation_table import format_tables, summarise
from cityscapes_maskrcnn.benchmarks.ablation_training import (
    count_operations,
    equal_iterations,
    score,
    total_operations,
    train,
)
from cityscapes_maskrcnn.benchmarks.ablation_workers import helpers
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import register_all
from cityscapes_maskrcnn.engine.checkpoint_average import average_checkpoints
from cityscapes_maskrcnn.modeling.weight_files import write_tensors
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset
from cityscapes_maskrcnn.utils.config_keys import value_at
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_json, write_json
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, file_lock

# Seed of the generated scenes; the demo has 7.
SCENES: Final = 20

# By arm (or variant) and seed what its file of scores holds.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        train: scenes to train on.
        val: scenes to score on; a quarter of them in each part.
        start: iterations of stage 0, which all arms start from.
        iterations: of the staged recipe; all others get as many operations.
        seeds: of the trainings.
        counted: batches whose operations are counted.
    """

    train: int
    val: int
    start: int
    iterations: int
    seeds: tuple[int, ...]
    counted: int

    def as_json(self) -> dict[str, Any]:
        """The size, and the seed of its scenes, as JSON files hold them."""
        return {**asdict(self), "seeds": list(self.seeds), "scenes": SCENES}


FULL: Final = Size(train=240, val=144, start=200, iterations=220, seeds=(1, 2, 3), counted=8)
SMALL: Final = Size(train=8, val=8, start=4, iterations=12, seeds=(1, 2), counted=1)
# 4, 6 and 2 epochs: 2, 3 and 1 iterations.
_FEWEST: Final = 6


def benchmark_recipe(
    *,
    config_dir: str,
    folder: Path,
    small: bool,
    pieces: Sequence[str] | None,
    json_file: str | None,
    report: Callable[[str], object],
    workers: int = 1,
    iterations: int | None = None,
) -> str:
    """Train and score all arms with all seeds, or what is missing of them in the folder.

    Args:
        config_dir: folder of the demo's configs.
        folder: for scenes, trainings and scores; an interrupted benchmark goes on from them.
        small: few scenes and iterations: everything runs, and the scores mean nothing.
        pieces: see :func:`.choose_pieces`.
        json_file: where the table's numbers go too; None: nowhere.
        report: called with a line for every result.
        workers: processes that share the work.
        iterations: of the staged recipe; None: those of the size.

    Returns:
        The tables, as Markdown, and the sum of the times.

    Raises:
        InputError: a piece is unknown, ``workers`` or ``iterations`` are too few, or the folder
            holds something else, such as results of other settings.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: it must be at least 1")
    size = SMALL if small else FULL
    if iterations is not None:
        if iterations < _FEWEST:
            raise InputError(
                f"--iterations {iterations}: it must be at least {_FEWEST}, so that each of the"
                " three stages has some"
            )
        size = replace(size, iterations=iterations)
    chosen = choose_pieces(pieces)
    ablation = Ablation(
        config_dir=Path(config_dir),
        folder=folder.resolve() / ("small" if small else "full"),
        size=size,
        pieces=chosen,
        report=report,
    )
    ablation.claim()
    with _quiet():
        # Before the helpers share the cores.
        ablation.prepare()
        with helpers(workers, _help, {"ablation": replace(ablation, report=_say_nothing)}):
            arms = ablation.run()
    results = ablation.results(arms)
    contents = [content for by_seed in results.values() for content in by_seed.values()]
    rows = summarise(_scores(results, "report"), base=STAGED)
    if json_file is not None:
        machines = [content["machine"] for content in contents]
        write_json(
            json_file,
            {
                "settings": {
                    **size.as_json(),
                    "machines": [
                        each for index, each in enumerate(machines) if each not in machines[:index]
                    ],
                },
                "seconds": {
                    name: {str(seed): content["seconds"] for seed, content in by_seed.items()}
                    for name, by_seed in results.items()
                },
                "compute": {
                    name: by_seed[size.seeds[0]]["compute"]
                    for name, by_seed in results.items()
                    if "compute" in by_seed[size.seeds[0]]  # which variants lack
                },
                "rows": [row.as_json() for row in rows],
                "choice": [
                    row.as_json() for row in summarise(_scores(results, "choice"), base=STAGED)
                ],
            },
        )
    tables = format_tables(rows, base=STAGED, num_train=size.train, num_reported=size.val // 2)
    minutes = sum(content["seconds"] for content in contents) / 60
    return (
        f"{tables}\n\nTime of {len(contents)} trainings and scorings, summed over the processes:"
        f" {minutes:.1f} min"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence training and scoring, which say nothing about the benchmark, in a ``with`` block."""
    loggers = [logging.getLogger(name) for name in ("cityscapes_maskrcnn", "detectron2")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _help(ablation: Ablation) -> None:
    with _quiet():
        ablation.run()


def _say_nothing(_: str) -> None:
    """The first process reports what all of them have done."""


@dataclass
class Ablation:
    """The trainings and scores of a folder.

    Attributes:
        config_dir: see :func:`benchmark_recipe`.
        folder: see there.
        size: how much is trained.
        pieces: what is measured on top of the staged recipe.
        report: see :func:`benchmark_recipe`.
    """

    config_dir: Path
    folder: Path
    size: Size
    pieces: Sequence[Arm]
    report: Callable[[str], object]
    _flop: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)

    def claim(self) -> None:
        """Write the settings into the folder, or verify that its results are of the same.

        Raises:
            InputError: see :func:`.claim_folder`.
        """
        start = self._config("stage_0_backbone.yaml", UNWATCHED)
        claim_folder(
            self.folder,
            {**self.size.as_json(), "start config": digest_of([start])},
            {arm.name: self._digest(arm) for arm in (*MAIN, *self.pieces)},
        )

    def _digest(self, arm: Arm) -> str:
        configs = [self._stage_config(arm, stage, {}) for stage in arm.stages]
        return digest_of(configs, sorted(arm.inference.items()), arm.weights, arm.of)

    def prepare(self) -> None:
        """Generate the scenes and train what all arms start from, where that is missing."""
        with file_lock(self.folder / "start.lock"):
            generate_dataset(
                self.folder / "datasets",
                {"train": self.size.train, "val": self.size.val},
                height=128,
                width=256,
                seed=SCENES,
            )
            self._train_start()

    def run(self) -> list[Arm]:
        """Do what is missing, together with other processes that work in the folder.

        Returns:
            All arms; the last one combines :meth:`best_pieces`, if there are several.
        """
        arms = [*MAIN, *self.pieces]
        self._run_all(arms)
        best = self.best_pieces()
        combination = [combined(best)] if len(best) > 1 else []
        self._run_all(combination)
        return [*arms, *combination]

    def _run_all(self, arms: Sequence[Arm]) -> None:
        """Train and score arms with all seeds; what other processes work on, they do.

        All that was missing at the beginning is reported, whoever did it.
        """
        todo = [
            (arm, seed)
            for seed in self.size.seeds
            for arm in arms
            if not self._scores_file(arm.name, seed).exists()
        ]
        begun, done = time.monotonic(), 0
        while todo:
            for arm, seed in list(todo):
                file = self._scores_file(arm.name, seed)
                if arm.of and not self._scores_file(arm.of, seed).exists():
                    continue
                try:
                    with file_lock(file.with_name("lock"), timeout=0):
                        if not file.exists():
                            self._run_arm(arm, seed)
                        done += 1
                        left = (time.monotonic() - begun) / done * (len(todo) - 1)
                        self._report(arm, seed, left)
                except LockTimeoutError:
                    continue
                todo.remove((arm, seed))
            if todo:
                time.sleep(1)

    def _report(self, arm: Arm, seed: int, left: float) -> None:
        content = _read(self._scores_file(arm.name, seed))
        scores = content["report"]
        self.report(
            f"{arm.name}, seed {seed}: AP {scores['AP']:.2f}, AP50 {scores['AP50']:.2f}, in"
            f" {content['seconds'] / 60:.1f} min; about {left / 60:.0f} min left"
        )

    def _scores_file(self, arm: str, seed: int) -> Path:
        name = "".join(letter if letter.isalnum() else "_" for letter in arm)
        return self.folder / name / f"seed_{seed}" / "scores.json"

    def _train_start(self) -> None:
        """Pre-train the backbone on coarse labels: the demo's stage 0, once for all arms."""
        cfg = self._config(
            "stage_0_backbone.yaml", {**UNWATCHED, "SOLVER.MAX_ITER": self.size.start}
        )
        train(cfg, self.folder / "start")

    def _config(self, file: str, opts: Mapping[str, object]) -> CfgNode:
        path = file if "://" in file else str(self.config_dir / file)
        cfg = build_config(path, [str(word) for pair in opts.items() for word in pair])
        register_all(str(self.folder / "datasets"))
        return cfg

    def _stage_config(self, arm: Arm, stage: Stage, opts: Mapping[str, object]) -> CfgNode:
        scale: dict[str, object] = {}
        if "://" in stage.config:
            demo = self._config("stage_1_heads.yaml", {})
            scale = {key: value_at(demo, key) for key in (*SCALE, *arm.of_demo)}
        return self._config(
            stage.config, {**scale, **TRAINING, **UNWATCHED, **stage.opts, **arm.opts, **opts}
        )

    def results(self, arms: Sequence[Arm]) -> Results:
        """Read what the folder holds of arms; see :data:`Results`."""
        files = {
            arm.name: {seed: self._scores_file(arm.name, seed) for seed in self.size.seeds}
            for arm in arms
        }
        return {
            name: {seed: _read(file) for seed, file in by_seed.items() if file.exists()}
            for name, by_seed in files.items()
        }

    def _operations(self, arm: Arm) -> list[int]:
        """Count the operations of a step of each stage of an arm, once in a process."""
        if arm.name not in self._flop:
            start = {"MODEL.WEIGHTS": self.folder / "start" / "model_final.pth", "SEED": 0}
            self._flop[arm.name] = [
                count_operations(self._stage_config(arm, stage, start), self.size.counted)
                for stage in arm.stages
            ]
        return self._flop[arm.name]

    def _run_arm(self, arm: Arm, seed: int) -> None:
        """Train an arm, unless it is a variant, score it, and write its scores."""
        begun = time.monotonic()
        file = self._scores_file(arm.name, seed)
        content: dict[str, Any] = {} if arm.of else {"compute": self._train_arm(arm, seed)}
        trained = self._scores_file(arm.of or arm.name, seed).parent
        last = trained / f"stage_{len(arm.stages)}"
        # Written by the training, with its anchors.
        cfg = self._config(str(last / "config.yaml"), {})
        content |= score(cfg, arm.inference, last / arm.weights)
        # Of an interrupted training, the time since it went on.
        content |= {"seconds": time.monotonic() - begun, "machine": machine()}
        write_json(file, content)
        if not arm.of:
            # Variants need the weights at the end, and nobody what led to them.
            for path in trained.glob("stage_*/*.pth"):
                if path.parent != last or path.name.startswith("model_0"):
                    path.unlink()

    def _train_arm(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Train all stages of an arm; returns what its file of scores says of that."""
        folder = self._scores_file(arm.name, seed).parent
        epochs = [stage.epochs for stage in BASE.stages]
        of_base = [round(self.size.iterations * each / sum(epochs)) for each in epochs]
        budget = total_operations(self._operations(BASE), of_base)
        steps = self._operations(arm)
        iterations = equal_iterations(budget, steps, [stage.epochs for stage in arm.stages])
        weights = self.folder / "start" / "model_final.pth"
        for index, (stage, length) in enumerate(zip(arm.stages, iterations, strict=True)):
            last = index == len(arm.stages) - 1
            opts = {
                "MODEL.WEIGHTS": weights,
                "SEED": seed,
                "SOLVER.MAX_ITER": length,
                "SOLVER.STEPS": (length * 3 // 4,),  # 18,000 of 24,000; without effect on a cosine
                # Six checkpoints of the last stage, of which the last three are averaged.
                "SOLVER.CHECKPOINT_PERIOD": max(1, length // 6) if last else length,
                "SOLVER.EMA_DECAY": 0.99 if last else 0.0,
            }
            cfg = self._stage_config(arm, stage, opts)
            weights = train(cfg, folder / f"stage_{index + 1}")
        newest = sorted(weights.parent.glob("model_0*.pth"))[-3:]
        if len(newest) > 1:
            write_tensors(weights.with_name(AVERAGE), average_checkpoints(newest))
        return {
            "operations of a step": steps,
            "iterations": iterations,
            "operations": total_operations(steps, iterations),
            "budget": budget,
        }

    def best_pieces(self) -> list[Arm]:
        """Choose among the pieces that pay on val parts 1 and 2.

        Returns:
            Of those that train, and of each group of ways to score, the best one; by falling gain.
        """
        results = self.results([*MAIN, *self.pieces])
        gains = {
            row.name: row.gain
            for row in summarise(_scores(results, "choice"), base=STAGED)
            if row.pays and row.gain is not None
        }
        paying = [piece for piece in self.pieces if piece.name in gains and not piece.is_whole]
        paying.sort(key=lambda piece: gains[piece.name], reverse=True)
        best: dict[str, Arm] = {}
        for piece in paying:
            scored_only = bool(piece.of)
            # One key for all that train, of which only one model can be scored.
            best.setdefault((piece.group or piece.name) if scored_only else "", piece)
        return list(best.values())


def _scores(results: Results, part: str) -> dict[str, dict[int, dict[str, float]]]:
    """Get the scores by arm and seed.

    Args:
        results: see :data:`Results`.
        part: ``"choice"``, val parts 1 and 2, or ``"report"``, parts 3 and 4.
    """
    return {
        name: {
            seed: {
                key: math.nan if value is None else value for key, value in content[part].items()
            }
            for seed, content in by_seed.items()
        }
        for name, by_seed in results.items()
    }


def _read(file: Path) -> Any:
    return read_json(file, advice="remove its folder, and the same command trains this again")
