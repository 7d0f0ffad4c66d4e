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
from cityscapes_maskrcnn.search.sampler import SeededByTrial
from cityscapes_maskrcnn.search.space import Parameter, SearchSpace
from cityscapes_maskrcnn.search.storage import database_errors, open_storage, storage_url
from cityscapes_maskrcnn.search.study import join_study
from cityscapes_maskrcnn.search.trial import Outcome, TrialRunner
from cityscapes_maskrcnn.search.worker import Worker
from cityscapes_maskrcnn.utils.stop import Stopped, StopRequests
from cityscapes_maskrcnn.utils.tool import run_tool

FAKE = str(Path(__file__).with_name("fake_train_net.py"))
SPACE = SearchSpace(
    {
        "fg_iou_thresh": Parameter("float", 0.3, 0.7),
        "fpn_grad_flow": Parameter("categorical", choices=(True, False)),
    },
    first={"fg_iou_thresh": 0.4154, "fpn_grad_flow": True},
)


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


def join(url: str, space: SearchSpace = SPACE, heartbeat: int = 60, **changes: Any) -> optuna.Study:
    """Join the study; ``changes``: ``pruner``, or keys of the config."""
    pruner = changes.pop("pruner", optuna.pruners.NopPruner())
    return join_study(
        open_storage(url, heartbeat),
        name="search",
        space=space,
        config={"SEED": 1, "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7], **changes},
        sampler=SeededByTrial(1),
        pruner=pruner,
    )


def new_worker(study: optuna.Study, folder: Path, stop: StopRequests | None = None) -> Worker:
    runner = Judge(
        command=[sys.executable, FAKE],
        config="SEED: 1\n",
        objective="segm/AP",
        stop=stop or StopRequests(),
        interval=0.05,
    )
    return Worker(
        study=study, space=SPACE, runner=runner, folder=folder, total_iterations=100, patience=0.1
    )


def search(
    url: str,
    folder: Path,
    budget: int,
    stop: StopRequests | None = None,
    confirm_best: int = 0,
    **options: Any,
) -> optuna.Study:
    with database_errors(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = join(url, **options)
        worker = new_worker(study, folder, stop)
        worker.run(budget)
        if confirm_best:
            storage = open_storage(url, 60)
            confirm(storage, worker, count=confirm_best, folder=folder / "confirmation")
    return study


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    url, folder, budget, *rest = sys.argv[1:]
    with StopRequests().listening() as stop:
        try:
            search(storage_url(url), Path(folder), int(budget), stop, *map(int, rest))
        except Stopped as stopped:
            return stopped.status
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
