"""One worker of a search, as tools/tune.py runs it, with the fake training program.

Usage: search_worker.py URL FOLDER BUDGET [CONFIRM]
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from cityscapes_maskrcnn.search.confirmation import confirm
from cityscapes_maskrcnn.search.space import Parameter, SearchSpace
from cityscapes_maskrcnn.search.storage import database_errors, open_storage, storage_url
from cityscapes_maskrcnn.search.study import join_study
from cityscapes_maskrcnn.search.trial import Outcome, TrialRunner
from cityscapes_maskrcnn.search.tuning import SeededByTrial
from cityscapes_maskrcnn.search.worker import Worker
from cityscapes_maskrcnn.utils.stop import Stopped, StopRequests
from cityscapes_maskrcnn.utils.tool import run_tool

FAKE = str(Path(__file__).with_name("fake_train_net.py"))
CONFIG = {"SEED": 1, "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7]}


def space() -> SearchSpace:
    fg = Parameter("float", 0.3, 0.7)
    flow = Parameter("categorical", choices=(True, False))
    first = {"fg_iou_thresh": 0.4154, "fpn_grad_flow": True}
    return SearchSpace({"fg_iou_thresh": fg, "fpn_grad_flow": flow}, first)


class Judge(TrialRunner):
    """Lets the fake training know which of its evaluations the search has seen and let pass."""

    def run(
        self, folder: Path, settings: Mapping[str, Any], prune: Callable[[int, float], bool]
    ) -> Outcome:
        def judge(iterations: int, score: float) -> bool:
            ends = prune(iterations, score)
            if not ends:
                (folder / "judged").write_text(str(iterations))
            return ends

        return super().run(folder, settings, judge)


def search(
    url: str,
    folder: Path,
    budget: int,
    stop: StopRequests | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    heartbeat: int = 60,
    confirm_best: int = 0,
) -> optuna.Study:
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    url = storage_url(url)
    with database_errors(url):
        storage = open_storage(url, heartbeat)
        study = join_study(
            storage,
            name="search",
            space=space(),
            config=CONFIG,
            sampler=SeededByTrial(1),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        runner = Judge(
            [sys.executable, FAKE], "SEED: 1\n", "segm/AP", stop or StopRequests(), interval=0.05
        )
        worker = Worker(
            study=study,
            space=space(),
            runner=runner,
            folder=folder,
            total_iterations=100,
            patience=0.1,
        )
        worker.run(budget)
        if confirm_best:
            confirm(storage, worker, count=confirm_best, folder=folder / "confirmation")
    return study


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    url, folder, budget = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    confirm_best = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    with StopRequests().listening() as stop:
        try:
            search(url, folder, budget, stop, confirm_best=confirm_best)
        except Stopped:
            return 128 + stop.signals[0]
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
