"""Detectron2's own Cityscapes evaluator, which runs outside of Meta here, to compare with."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official  # noqa: N813
from cityscapesscripts.helpers import labels
from detectron2.evaluation import CityscapesInstanceEvaluator

Scores = dict[str, Any]


@contextmanager
def runnable_official_code(folder: Path) -> Iterator[list[Scores]]:
    """Let Detectron2's evaluator find the public package, and both run with today's NumPy.

    The official script's caches, JSON files that nobody reads here, are not written, which only
    makes it faster.

    Args:
        folder: working directory of the block.

    Yields:
        A list that grows by the official averages whenever the official function returns.
    """
    results: list[Scores] = []
    evaluate = official.evaluateImgLists

    def evaluate_and_keep(*arguments: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = evaluate(*arguments)
        results.append(result["averages"])
        return result

    root = "deeplearning.projects.cityscapesApi.cityscapesscripts"
    aliases: dict[str, Any] = {
        "deeplearning": types.ModuleType("deeplearning"),
        "deeplearning.projects": types.ModuleType("deeplearning.projects"),
        "deeplearning.projects.cityscapesApi": types.ModuleType("cityscapesApi"),
        root: types.ModuleType(root),
        f"{root}.helpers": types.ModuleType("helpers"),
        f"{root}.helpers.labels": labels,
        f"{root}.evaluation": types.ModuleType("evaluation"),
        f"{root}.evaluation.evalInstanceLevelSemanticLabeling": official,
    }
    for name, module in aliases.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(aliases[parent], child, module)
    before, write = Path.cwd(), official.writeDict2JSON
    lacks_in1d = not hasattr(np, "in1d")  # gone from NumPy 2.4
    try:
        sys.modules.update(aliases)
        official.evaluateImgLists, official.writeDict2JSON = evaluate_and_keep, lambda *_: None
        if lacks_in1d:
            np.in1d = np.isin  # type: ignore[attr-defined,unused-ignore]  # noqa: NPY201
        os.chdir(folder)
        yield results
    finally:
        os.chdir(before)
        official.evaluateImgLists, official.writeDict2JSON = evaluate, write
        if lacks_in1d:
            del np.in1d  # type: ignore[attr-defined,unused-ignore]  # noqa: NPY201
        for name in aliases:
            sys.modules.pop(name, None)


def result_folder(evaluator: CityscapesInstanceEvaluator) -> Path:
    """Where Detectron2's evaluator has written its result files."""
    return Path(evaluator._temp_dir)


def score_result_files(results: Path, gt_files: Sequence[Path]) -> Callable[[], None]:
    """Prepare a call of the official function; inside of :func:`runnable_official_code`."""

    def score() -> None:
        official.args.predictionPath = str(results)
        official.args.predictionWalk = None
        official.args.JSONOutput = False
        official.args.gtInstancesFile = str(results / "no_such_file.json")
        files = [str(file) for file in gt_files]
        predictions = [official.getPrediction(file, official.args) for file in files]
        official.evaluateImgLists(predictions, files, official.args)

    return score
