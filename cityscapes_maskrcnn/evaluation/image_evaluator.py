"""What the evaluators share: images are scored one by one, gathered, and each counted once."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from cityscapes_maskrcnn.evaluation.result_files import image_name
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, to_json
from cityscapes_maskrcnn.utils.parallel import TaskQueue

Result = TypeVar("Result")


class ImageEvaluator(DatasetEvaluator, Generic[Result]):
    """Detectron2's evaluator, for scores that need only a little of every image.

    Every image is scored as soon as it is predicted, in worker processes if there are any, while
    the model goes on; what is kept of it is a small result. Works on any number of processes and
    machines. A subclass has ``process``, which calls :meth:`_score_image`, and :meth:`_summarise`.

    Args:
        dataset_name: a registered dataset.
        output_dir: where the main process writes its files; None: nowhere.
        num_workers: processes that score while the model predicts; 0: this process does it.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        self._dataset_name = dataset_name
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._logger = logging.getLogger(type(self).__module__)
        # The model has the other cores.
        self._new_tasks = partial(TaskQueue, num_workers, partial(torch.set_num_threads, 1))
        self._tasks = self._new_tasks()

    def _image_names(self) -> Iterable[str]:
        """Names of the dataset's images, see :func:`.result_files.image_name`."""
        raise NotImplementedError

    def _summarise(self, images: list[Result]) -> OrderedDict[str, dict[str, float]]:
        """Score the whole dataset; called in the main process, with the images sorted by name."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all images."""
        self._tasks.close()
        self._tasks = self._new_tasks()

    def _score_image(
        self, file_name: str, function: Callable[..., Result], *arguments: Any
    ) -> None:
        """Have ``function(*arguments)`` called, here or in a worker process, for one image."""
        self._tasks.put(image_name(file_name), function, *arguments)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather all processes' images and score them. Every process has to call this.

        Returns:
            In the main process the scores by task, in percent; elsewhere nothing.

        Raises:
            InputError: images of the dataset were not predicted, or the prediction of one is of no
                use.
        """
        gathered = comm.gather(self._tasks.results())
        if not comm.is_main_process():
            return OrderedDict()
        # A sampler may give an image to two processes, so that all have equally many.
        by_name = {name: image for part in gathered for name, image in part.items()}
        missing = sorted(set(self._image_names()) - by_name.keys())
        if missing:
            raise InputError(
                f"cannot score {self._dataset_name}: {len(missing)} images were not predicted:"
                f" {', '.join(missing)}"
            )
        # Sums, and COCO's order between equal scores, go by the images' order: keep it independent
        # of the processes.
        return self._summarise([by_name[name] for name in sorted(by_name)])

    def _log_table(self, table: str, num_images: int) -> None:
        self._logger.info("%s, %d images\n%s", self._dataset_name, num_images, table)

    def _write_json(self, file_name: str, value: Any, indent: int | None = None) -> None:
        """Write a file into the output folder, if there is one."""
        if self._output_dir is not None:
            with atomic_write(self._output_dir / file_name, "w") as file:
                file.write(to_json(value, indent))
