"""The steps of the recipe: the commands, inputs and folder of each.

    stage_0 -> stage_1 -> anchors -> search -> stage_2 -> stage_3

Each is one or two commands that anybody could type; nothing is trained in this process.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from cityscapes_maskrcnn.cli import key_value_pairs
from cityscapes_maskrcnn.data.loaders import training_dicts
from cityscapes_maskrcnn.engine.outcome import SCORES_FILE
from cityscapes_maskrcnn.engine.solver import resolve_epochs
from cityscapes_maskrcnn.modeling.weight_files import TIMM_SCHEME
from cityscapes_maskrcnn.recipe.stage_table import GALLERY_FOLDER, STEPS
from cityscapes_maskrcnn.recipe.step import COMPLETE_FILE, Step
from cityscapes_maskrcnn.search.confirmation import OTHER_SEEDS
from cityscapes_maskrcnn.search.study import IMAGES_CONTENT
from cityscapes_maskrcnn.search.tuning import images_content
from cityscapes_maskrcnn.utils.config_keys import FREE_KEYS, flat_config
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_text

# What stage 0 starts from -> the same backbone of ImageNet, for a stage 1 without a stage 0. timm's
# names stand for themselves.
IMAGENET_WEIGHTS: Final = {
    "torchvision://deeplabv3_resnet50": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "torchvision://deeplabv3_resnet101": "torchvision://resnet101",
    "torchvision://convnext_tiny": "torchvision://convnext_tiny",
    "torchvision://convnext_small": "torchvision://convnext_small",
    "torchvision://convnext_base": "torchvision://convnext_base",
}
STUDY: Final = "thresholds"
WEIGHTS: Final = "model_final.pth"
# The whole config of a training, with which it is scored.
CONFIG_FILE: Final = "config.yaml"

# What may change between two calls without making another model. Included files count by their
# content, see Step.needs.
_NOT_SETTINGS: Final = FREE_KEYS | {"TEST.ALLOW_SEEN_IMAGES"}
# What anchors depend on.
_FIT_SETTINGS: Final = (
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "DATASETS.TRAIN",
    "DATASETS.CLASSES",
    "SEED",
    "MODEL.RPN.IN_FEATURES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
)
# Keys that define what is searched, not how.
_SEARCHED: Final = ("SEARCH.PARAMETERS.", "SEARCH.OBJECTIVE")
# The parts of a search's result that belong to the model and not to the schedule of stage 2.
_MATCHING: Final = ("RPN", "ROI_HEADS", "ANCHOR_GENERATOR")

BuildConfig = Callable[[str, list[str]], CfgNode]


@dataclass(kw_only=True)
class Recipe:
    """The steps for one set of configs and one output folder.

    Attributes:
        config_dir: holds the files of ``STEPS``.
        output: each step gets a folder in it.
        tools: folder of ``train_net.py`` and the others.
        build_config: makes a config from a file and KEY VALUE pairs.
        opts: KEY VALUE pairs for every step. ``MODEL.WEIGHTS`` is for the first stage whose parent
            is not part of the chain.
        selected: the steps to do; those that are complete in ``output`` are used too.
        trials: of the search.
        confirm: how many of its best trials are trained again with other seeds.
        num_gpus: processes of each training.

    Raises:
        InputError: ``opts`` sets what the chain sets itself, or a step is unknown, or none is
            selected.
    """

    config_dir: Path
    output: Path
    tools: Path
    build_config: BuildConfig
    opts: Sequence[str] = ()
    selected: Sequence[str] = tuple(STEPS)
    trials: int = 42
    confirm: int = 3
    num_gpus: int = 1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.selected) - STEPS.keys())
        if unknown:
            raise InputError(
                f"--stages {unknown[0]}: there is no such step, only {', '.join(STEPS)}"
            )
        if not self.selected:
            # Such as ``--stages MODEL.WEIGHTS my.pth``.
            raise InputError(f"--stages names no step: name at least one of {', '.join(STEPS)}")
        if self.trials < 1:
            raise InputError(f"--trials {self.trials}: at least 1")
        if self.confirm < 0:
            raise InputError(f"--confirm {self.confirm}: at least 0, which means none")
        pairs = dict(key_value_pairs(list(self.opts)))
        for key in pairs.keys() & {"OUTPUT_DIR", "INCLUDE"}:
            raise InputError(f"{key}: the chain sets it for every step; leave it out")
        self.selected = [name for name in STEPS if name in self.selected]
        self._weights = pairs.pop("MODEL.WEIGHTS", None)
        self._opts = _words(pairs)
        self._defaults = _flat_texts(self.build_config("", []))
        # Each is read once, which takes a fifth of a second.
        self._configs: dict[str, CfgNode] = {}
        # Why a dataset cannot be loaded, by name; loading takes up to a second.
        self._problems: dict[str, str] = {}
        # Which images a dataset that can be loaded has, by name.
        self._images: dict[str, str] = {}

    def steps(self) -> list[Step]:
        """Build the selected steps, in order, and the scoring of every stage with masks.

        Raises:
            InputError: a config is wrong, or no weights are named for a stage to start from.
                Missing data or weights do not raise; they are listed in :attr:`.Step.missing`.
        """
        build = {"anchors": self._anchors, "search": self._search}
        steps = [build[name]() if name in build else self._training(name) for name in self.selected]
        scored = [name for name, row in STEPS.items() if row.masks and self._has(name)]
        return steps + [self._scoring(name, is_last=name == scored[-1]) for name in scored]

    def _training(self, name: str) -> Step:
        includes = self._includes("anchors", "search") if name in ("stage_2", "stage_3") else {}
        if name == "stage_3" and "search/best.yaml" in includes:
            # A learning rate or a frozen FPN that were found for stage 2 are not for stage 3.
            del includes["search/best.yaml"]
            includes["search/matching.yaml"] = self.output / "search" / "matching.yaml"
        flags = {
            "--config-file": self.config_dir / STEPS[name].config,
            "--num-gpus": self.num_gpus,
        }
        command = self._tool("train_net.py", flags, "--resume", *self._options(name, includes))
        outputs = (WEIGHTS, "summary.json", CONFIG_FILE)
        return replace(self._training_step(name, includes), commands=(command,), outputs=outputs)

    def _anchors(self) -> Step:
        cfg, folder = self._config("anchors"), self.output / "anchors"
        if len(cfg.DATASETS.TRAIN) != 1:
            raise InputError(
                f"anchors: they are fitted to one dataset; DATASETS.TRAIN is {cfg.DATASETS.TRAIN}"
            )
        flags = {
            "--dataset": cfg.DATASETS.TRAIN[0],
            "--config-file": self.config_dir / STEPS["anchors"].config,
            # As many as the stage has in its config: another number would not fit its RPN.
            "--num-sizes": len(cfg.MODEL.RPN.IN_FEATURES),
            "--num-ratios": len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]),
            "--output": folder / "anchors.yaml",
        }
        missing = self._missing_data(cfg.DATASETS.TRAIN)
        return Step(
            name="anchors",
            folder=folder,
            commands=(self._tool("cluster_anchors.py", flags, *self._opts),),
            activities=("fitting",),
            settings={
                **{key: value for key, value in _flat_texts(cfg).items() if key in _FIT_SETTINGS},
                **self._images_setting(cfg.DATASETS.TRAIN),
            },
            defaults=self._defaults,
            needs={},
            outputs=("anchors.yaml",),
            data=cfg.DATASETS.TRAIN[0],
            images=0 if missing else len(training_dicts(cfg)),
            missing=missing,
        )

    def _search(self) -> Step:
        includes, folder = self._includes("anchors"), self.output / "search"
        database = {"--study": STUDY, "--storage": f"sqlite:///{folder / 'search.db'}"}
        flags = {
            "--config-file": self.config_dir / STEPS["search"].config,
            **database,
            "--trials": self.trials,
            "--confirm": self.confirm,
            "--num-gpus": self.num_gpus,
        }
        tune = self._tool("tune.py", flags, *self._options("search", includes))
        analyze = self._tool("analyze_study.py", {**database, "--output": folder})
        best, matching = folder / "best.yaml", folder / "matching.yaml"
        step = self._training_step("search", includes)
        runs = self.trials + OTHER_SEEDS * min(self.confirm, self.trials)
        return replace(
            step,
            commands=(tune, analyze),
            activities=("", "analysing"),
            outputs=(best.name, matching.name),
            iterations=runs * step.iterations,
            processes=runs,
            evaluations=runs * step.evaluations,
            evaluated_images=runs * step.evaluated_images,
            amounts={"trials": self.trials, "confirm": self.confirm},
            after=lambda: write_matching(best, matching),
        )

    def _scoring(self, stage: str, is_last: bool) -> Step:
        """Score a stage on what the last stage reports on: images that no stage has seen.

        Of the last one a gallery of predictions is drawn, too.
        """
        cfg = self._config("stage_3")
        names = tuple(cfg.DATASETS.TEST)
        missing = self._missing_data(names)
        weights = self.output / stage / WEIGHTS
        folder = self.output / "scores" / stage
        flags: dict[str, object] = {"--config-file": self.output / stage / CONFIG_FILE}
        settings: dict[str, object] = {
            "MODEL.WEIGHTS": weights,
            "DATASETS.TEST": names,
            "MODEL.DEVICE": cfg.MODEL.DEVICE,
            "OUTPUT_DIR": folder,
            "TEST.ALLOW_SEEN_IMAGES": cfg.TEST.ALLOW_SEEN_IMAGES,
        }
        score = {**flags, "--num-gpus": self.num_gpus}
        commands = [self._tool("train_net.py", score, "--eval-only", *_words(settings))]
        if is_last:
            draw = {**flags, "--output": self.output / GALLERY_FOLDER}
            commands.append(self._tool("make_gallery.py", draw, *_words(settings)))
        return Step(
            name=f"scores/{stage}",
            folder=folder,
            commands=tuple(commands),
            activities=("", "drawing the gallery")[: len(commands)],
            settings={"DATASETS.TEST": str(names), **self._images_setting(names)},
            defaults=self._defaults,
            needs={f"{stage}/{WEIGHTS}": weights},
            outputs=(SCORES_FILE,),
            data=" ".join(names),
            images=0 if missing else _num_images(names),
            # The gallery takes as long as the scores: the model predicts once more.
            processes=len(commands),
            evaluations=len(commands),
            evaluated_images=0 if missing else len(commands) * _num_images(names),
            missing=missing,
        )

    def _training_step(self, name: str, includes: Mapping[str, Path]) -> Step:
        """A step that trains, without its commands and outputs."""
        cfg = self._config(name)
        settings = {
            key: value
            for key, value in _flat_texts(cfg).items()
            if key not in _NOT_SETTINGS
            and (not key.startswith("SEARCH.") or (name == "search" and key.startswith(_SEARCHED)))
        }
        needs = dict(includes)
        datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST)
        settings |= self._images_setting(datasets)
        missing = self._missing_data(datasets)
        if missing and name == "stage_0":
            missing["data"] += self._without_stage_0()
        weights, parent = self._start(name)
        if parent:
            # They count by their content.
            del settings["MODEL.WEIGHTS"]
            needs[parent] = Path(weights)
        else:
            settings["MODEL.WEIGHTS"] = weights
            without = self._missing_weights(name, weights)
            # A training that has a checkpoint goes on from that alone.
            if not (without and (self.output / name / "last_checkpoint").is_file()):
                missing |= without
                if weights and "://" not in weights:
                    needs["MODEL.WEIGHTS"] = Path(weights)
        countable = not self._missing_data(cfg.DATASETS.TRAIN)
        if countable:
            resolve_epochs(cfg)
        evaluations, evaluated = (0, 0) if missing else _count_evaluations(cfg)
        return Step(
            name=name,
            folder=self.output / name,
            commands=(),
            settings=settings,
            defaults=self._defaults,
            needs=needs,
            outputs=(),
            data=f"{' '.join(cfg.DATASETS.TRAIN)} -> {' '.join(cfg.DATASETS.TEST)}",
            # How many images there are decides how many iterations the epochs of a config are.
            images=len(training_dicts(cfg)) if countable else 0,
            iterations=cfg.SOLVER.MAX_ITER if countable else 0,
            evaluations=evaluations,
            evaluated_images=evaluated,
            missing=missing,
        )

    def _missing_weights(self, name: str, weights: str) -> dict[str, str]:
        """For :attr:`.Step.missing`: why the weights to start from cannot be loaded.

        Outputs of a step before this one will be there in time; addresses are not checked.
        """
        before = self.selected[: self.selected.index(name)]
        outputs = [(self.output / step / WEIGHTS).resolve() for step in before]
        path = Path(weights)
        if not weights or "://" in weights or path.is_file() or path.resolve() in outputs:
            return {}
        what = "is a folder" if path.is_dir() else "no such file"
        return {"weights": f"MODEL.WEIGHTS {weights}: {what}; name the weights to start from"}

    def _missing_data(self, datasets: Sequence[str]) -> dict[str, str]:
        """For :attr:`.Step.missing`: why some datasets cannot be loaded."""
        for name in datasets:
            if name not in self._problems:
                try:
                    self._images[name] = images_content([name])
                    self._problems[name] = ""
                except InputError as error:
                    self._problems[name] = str(error)
        problem = next((self._problems[name] for name in datasets if self._problems[name]), "")
        return {"data": problem} if problem else {}

    def _without_stage_0(self) -> str:
        """What to do without coarse data: the command that leaves stage 0 out.

        Empty if there is nothing else to do, or if no weights of ImageNet are known to fit.
        """
        others = [name for name in self.selected if name != "stage_0"]
        start, _ = self._start("stage_0")
        weights = start if start.startswith(TIMM_SCHEME) else IMAGENET_WEIGHTS.get(start)
        if "stage_1" not in others or weights is None:
            return ""
        flags = {
            "--config-dir": self.config_dir,
            "--output": self.output,
            "--trials": self.trials,
            "--confirm": self.confirm,
            "--num-gpus": self.num_gpus,
        }
        words = [*_words(flags), "--stages", *others, *self._opts]
        words += ["MODEL.WEIGHTS", weights]
        command = shlex.join(["python", str(self.tools / "train_stages.py"), *words])
        return f"; to start from ImageNet weights instead, without coarse data: {command}"

    def _images_setting(self, datasets: Sequence[str]) -> dict[str, str]:
        """For :attr:`.Step.settings`: which images the datasets have; empty if data are missing."""
        if self._missing_data(datasets):
            return {}
        return {IMAGES_CONTENT: " ".join(self._images[name] for name in datasets)}

    def _config(self, name: str) -> CfgNode:
        if name not in self._configs:
            file = str(self.config_dir / STEPS[name].config)
            self._configs[name] = self.build_config(file, list(self._opts))
        return self._configs[name].clone()

    def _has(self, name: str) -> bool:
        """Whether a step is done in this chain, or was done before."""
        return name in self.selected or (self.output / name / COMPLETE_FILE).is_file()

    def _start(self, name: str) -> tuple[str, str]:
        """Weights to start from, and their name if an earlier step writes them.

        Raises:
            InputError: there are none.
        """
        parent = STEPS[name].parent
        if parent and self._has(parent):
            return str(self.output / parent / WEIGHTS), f"{parent}/{WEIGHTS}"
        if parent and self._weights is None:
            raise InputError(
                f"{name} starts from the weights of {parent}, which is not complete in "
                f"{self.output / parent}: add {parent} to --stages, or name weights with "
                "MODEL.WEIGHTS"
            )
        return (self._config(name).MODEL.WEIGHTS if self._weights is None else self._weights), ""

    def _includes(self, *names: str) -> dict[str, Path]:
        files = {"anchors": "anchors.yaml", "search": "best.yaml"}
        return {
            f"{name}/{files[name]}": self.output / name / files[name]
            for name in names
            if self._has(name)
        }

    def _options(self, name: str, includes: Mapping[str, Path]) -> list[str]:
        """KEY VALUE pairs: the user's, then what the chain hands on."""
        settings: dict[str, object] = {
            "MODEL.WEIGHTS": self._start(name)[0],
            "OUTPUT_DIR": self.output / name,
        }
        if includes:
            settings["INCLUDE"] = tuple(map(str, includes.values()))
        return [*self._opts, *_words(settings)]

    def _tool(self, name: str, flags: Mapping[str, object], *words: str) -> tuple[str, ...]:
        return (sys.executable, str(self.tools / name), *_words(flags), *words)


def _num_images(datasets: Sequence[str]) -> int:
    return sum(len(DatasetCatalog.get(name)) for name in datasets)


def _count_evaluations(cfg: CfgNode) -> tuple[int, int]:
    """Count the evaluations of a training, and the images of all of them together.

    Args:
        cfg: its lengths and periods in iterations.
    """
    measured = cfg.DATASETS.VAL or cfg.DATASETS.TEST
    if not measured:
        return 0, 0
    period, length = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER
    evaluations = 1 + ((length - 1) // period if period > 0 else 0)
    images = evaluations * _num_images(measured)
    if cfg.DATASETS.VAL and cfg.DATASETS.TEST:
        # The best checkpoint, at the end.
        return evaluations + 1, images + _num_images(cfg.DATASETS.TEST)
    return evaluations, images


def _words(pairs: Mapping[str, object]) -> list[str]:
    return [str(word) for pair in pairs.items() for word in pair]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``stage_1 anchors SOLVER.BASE_LR 0.1`` into names of steps and KEY VALUE pairs.

    Config keys are upper case, names of steps are not.
    """
    end = next((i for i, word in enumerate(words) if word != word.lower()), len(words))
    return list(words[:end]), list(words[end:])


def _flat_texts(cfg: CfgNode) -> dict[str, str]:
    """Turn a config into ``{"SOLVER.BASE_LR": "0.0001", ...}``."""
    return {key: str(value) for key, value in flat_config(cfg).items()}


def write_matching(best: Path, output: Path) -> None:
    """Write the part of a search's result that describes the model: thresholds and anchors.

    With it goes ``DATASETS``: on which data they were tuned.

    Args:
        best: the config fragment of a search; it may hold learning rates and what is frozen.
        output: the fragment for the stages after the one that was searched for.
    """
    content = yaml.safe_load(best.read_text(encoding="utf-8")) or {}
    model = {key: value for key, value in content.get("MODEL", {}).items() if key in _MATCHING}
    fragment = {"MODEL": model} if model else {}
    if model and "DATASETS" in content:
        fragment["DATASETS"] = content["DATASETS"]
    write_text(output, yaml.safe_dump(fragment))
