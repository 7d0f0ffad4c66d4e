"""Detectron2's evaluators: every image is scored as soon as it is predicted, nothing is written."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from cityscapes_maskrcnn.data.labels import ID_TO_CONTIGUOUS, THING_CLASSES
from cityscapes_maskrcnn.data.registration import image_names, image_suffix_of
from cityscapes_maskrcnn.data.tree import image_name
from cityscapes_maskrcnn.evaluation.coco_ap import coco_scores, format_coco_scores
from cityscapes_maskrcnn.evaluation.error_analysis import summarise_errors, write_error_tables
from cityscapes_maskrcnn.evaluation.ground_truth_cache import read_ground_truth
from cityscapes_maskrcnn.evaluation.image_scoring import ImageResult, score_image, use_one_thread
from cityscapes_maskrcnn.evaluation.instance_ap import (
    FloatArray,
    GroundTruth,
    average_precision,
    averages,
    format_averages,
)
from cityscapes_maskrcnn.evaluation.instances import compact_instances
from cityscapes_maskrcnn.evaluation.result_files import ground_truth_file
from cityscapes_maskrcnn.utils.error_summary import ErrorSummary
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.parallel import TaskQueue

RESULTS_FILE: Final = "cityscapes_results.json"
ANALYSIS_FOLDER: Final = "analysis"
#: Draws the errors of a model in a folder; gets its APs too, see :func:`.average_precision`.
DrawFunction = Callable[[Path, ErrorSummary, FloatArray], object]

Result = TypeVar("Result")
# Detectron2's setup_logger() shows what is below "detectron2" only.
logger = logging.getLogger(f"detectron2.{__name__}")


class ImageEvaluator(DatasetEvaluator, Generic[Result]):
    """Base of the evaluators: of every image a small result is kept.

    Images are scored in worker processes, if there are any, while the model goes on. Works on any
    number of processes and machines. A subclass has ``process``, which calls :meth:`_score_image`,
    and :meth:`_summarise`.

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
        self._new_tasks = partial(TaskQueue, num_workers, use_one_thread)
        self._tasks = self._new_tasks()

    def _image_names(self) -> Iterable[str]:
        """Names by which the subclass knows the dataset's images."""
        raise NotImplementedError

    def _summarise(self, images: list[Result]) -> OrderedDict[str, dict[str, float]]:
        """Score the whole dataset; called in the main process, with the images sorted by name."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all images."""
        self._tasks.close()
        self._tasks = self._new_tasks()

    def _score_image(self, name: str, function: Callable[[], Result]) -> None:
        """Have ``function``, which can be pickled, called here or in a worker for one image."""
        self._tasks.put(name, function)

    def _check_name(self, name: str) -> None:
        """Raise an InputError for an image that is not of the dataset."""
        if name not in self._image_names():
            raise InputError(f"cannot score {self._dataset_name}: {name} does not belong to it")

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather all processes' images and score them. Every process has to call this.

        Returns:
            In the main process the scores by task, in percent; elsewhere nothing.

        Raises:
            InputError: images of the dataset were not predicted, or a prediction is invalid.
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
        logger.info("%s, %d images\n%s", self._dataset_name, num_images, table)

    def _write_json(self, file_name: str, value: Any) -> None:
        """Write a file into the output folder, if there is one."""
        if self._output_dir is not None:
            write_json(self._output_dir / file_name, value)


def ground_truth_files(dataset_name: str) -> dict[str, Path]:
    """Find the ground truth of a dataset's images by their names, see :func:`.tree.image_name`.

    Raises:
        InputError: two images have one name, an image's name does not end in the dataset's image
            suffix, the ground truth of one is missing, or the dataset has none at all.
    """
    gt_dir = _gt_dir(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    suffix, kind = image_suffix_of(dataset_name), metadata.get("gt_kind", "gtFine")
    files = {}
    for name, image in zip(
        image_names(dataset_name), DatasetCatalog.get(dataset_name), strict=True
    ):
        file = ground_truth_file(gt_dir, image["file_name"], suffix, kind)
        if not file.is_file():
            raise InputError(
                f"{file}: no such file, the ground truth of {image['file_name']}; the dataset's "
                f"image names must end in {suffix}, for others see datasets/README.md"
            )
        files[name] = file
    return files


def image_and_ground_truth_files(dataset_name: str) -> list[tuple[Path, Path]]:
    """Find the image files of a dataset, in its order, and the ground truth of each.

    Raises:
        InputError: see :func:`ground_truth_files`.
    """
    gt_files = ground_truth_files(dataset_name).values()
    images = [Path(image["file_name"]) for image in DatasetCatalog.get(dataset_name)]
    return list(zip(images, gt_files, strict=True))


def _gt_dir(dataset_name: str) -> str:
    gt_dir: str | None = MetadataCatalog.get(dataset_name).get("gt_dir")
    if gt_dir is None:
        raise InputError(
            f"dataset {dataset_name} has no labels to score against (no gt_dir in its"
            " metadata); the test split is scored by the benchmark's server only"
        )
    return gt_dir


def dataset_categories(dataset_name: str) -> tuple[int, ...]:
    """Find a dataset's classes among the 8 of the official protocol.

    Args:
        dataset_name: a registered dataset; its metadata's ``thing_classes`` (default: the 8) give
            the classes by name, ``thing_dataset_id_to_contiguous_id`` must agree where it has
            official label ids.

    Returns:
        By class of the dataset its contiguous id, 0 to 7, among the 8.

    Raises:
        InputError: a class is none of the 8 or occurs twice, or the two disagree.
    """
    metadata = MetadataCatalog.get(dataset_name)
    names = tuple(metadata.get("thing_classes", THING_CLASSES))
    others = sorted({name for name in names if name not in THING_CLASSES or names.count(name) > 1})
    if others or not names:
        raise InputError(
            f"dataset {dataset_name}: thing_classes must be some of the 8 Cityscapes instance"
            f" classes ({', '.join(THING_CLASSES)}), each once, for the official protocol; not"
            f" {', '.join(others) or 'empty'}"
        )
    categories = tuple(map(THING_CLASSES.index, names))
    for label_id, index in metadata.get("thing_dataset_id_to_contiguous_id", {}).items():
        if label_id in ID_TO_CONTIGUOUS and (
            index not in range(len(names)) or ID_TO_CONTIGUOUS[label_id] != categories[index]
        ):
            raise InputError(
                f"dataset {dataset_name}: thing_dataset_id_to_contiguous_id has class {index} for"
                f" label {label_id}, {THING_CLASSES[ID_TO_CONTIGUOUS[label_id]]}, but its"
                f" thing_classes are {', '.join(names)}"
            )
    return categories


class CityscapesInstanceEvaluator(ImageEvaluator[ImageResult]):
    """Score instance segmentation by the official protocol and by COCO's.

    Every image is matched with its ground truth as soon as it is predicted; masks are not kept
    afterwards. The ground truth is cached, see :mod:`.ground_truth_cache`. The evaluator works on
    any device, with any number of processes and machines, and on any part of a split.

    Args:
        dataset_name: a registered dataset with labels. Its metadata have ``gt_dir``, such as
            ``cityscapes/gtFine/val``, which contains the instance ids of each image.
        output_dir: folder in which the main process writes ``cityscapes_results.json``, the
            official averages as fractions (null for NaN); Detectron2 uses
            ``OUTPUT_DIR/inference``. None: no file.
        num_workers: number of processes that match while the model predicts; 0: match in this
            process.
        coco: compute COCO's scores too.
        masks: False, for detectors without masks: score boxes, by COCO's protocol only.
        analysis_confidence: lowest confidence of the predictions in the error analysis, see
            :mod:`.error_analysis`; its tables are written to ``output_dir/analysis``. None: no
            analysis.
        draw: called in the main process when the tables are in that folder: with it, the errors,
            and the result of :func:`.instance_ap.average_precision`.

    Raises:
        InputError: the dataset has no labels, or has classes other than the 8 official ones; a
            subset of them is allowed, see :func:`dataset_categories`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
        coco: bool = True,
        masks: bool = True,
        analysis_confidence: float | None = 0.5,
        draw: DrawFunction | None = None,
    ) -> None:
        super().__init__(dataset_name, output_dir, num_workers)
        # By class of the model.
        self._categories = dataset_categories(dataset_name)
        self._scored = sorted(self._categories)
        self._masks = masks
        self._gt_dir = _gt_dir(dataset_name)
        self._image_suffix = image_suffix_of(dataset_name)
        self._coco = coco
        self._analysis_confidence = None if output_dir is None else analysis_confidence
        #: May be replaced before :meth:`evaluate`.
        self.draw = draw
        self._ground_truth: dict[str, GroundTruth] | None = None
        #: Of the last evaluation, in the main process; None without an analysis.
        self.error_summary: ErrorSummary | None = None

    def reset(self) -> None:
        """Forget all images, and compare the ground truth with its files again."""
        super().reset()
        self._ground_truth = None

    def _image_names(self) -> Iterable[str]:
        return self.load_ground_truth()

    def load_ground_truth(self) -> dict[str, GroundTruth]:
        """Read the ground truth of the dataset, by image, before the first prediction needs it."""
        if self._ground_truth is None:
            files = ground_truth_files(self._dataset_name)
            loaded = read_ground_truth(self._gt_dir, list(files.values()))
            self._ground_truth = dict(zip(files, loaded, strict=True))
        return self._ground_truth

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Match the predictions of some images.

        Args:
            inputs: Detectron2's dataset dicts; ``file_name`` is used.
            outputs: Detectron2's predictions: ``{"instances": Instances}`` at the image's original
                size with ``pred_classes`` (N,), ``scores`` (N,), ``pred_boxes`` and ``pred_masks``:
                (N, height, width), or unpasted, see :mod:`.instances`.

        Raises:
            InputError: an image is not of the dataset, its ground truth is missing or unreadable,
                or predictions (of an earlier image, with worker processes) are invalid.
        """
        ground_truth = self.load_ground_truth()
        for image, output in zip(inputs, outputs, strict=True):
            name = image_name(image["file_name"], self._image_suffix)
            self._check_name(name)
            if "instances" not in output:
                raise InputError(
                    f"the model predicts {' and '.join(output) or 'nothing'}, but no instances to"
                    f" score on {self._dataset_name}; name a dataset of its task in DATASETS.TEST"
                )
            try:
                compact = compact_instances(output["instances"], self._categories, self._masks)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            score = partial(
                score_image,
                name=name,
                gt=ground_truth[name],
                compact=compact,
                coco=self._coco,
                analysis_confidence=self._analysis_confidence,
            )
            self._score_image(name, score)

    def _summarise(self, images: list[ImageResult]) -> OrderedDict[str, dict[str, float]]:
        """Score the dataset.

        Returns:
            ``"segm"``, the official protocol: ``AP``, ``AP50``, ``AP-<class>``, ``AP50-<class>``;
            ``"coco_segm"`` and ``"coco_bbox"``, see :func:`.coco_ap.coco_scores`. Without masks
            ``"coco_bbox"`` alone. NaN for what has no ground truth.
        """
        results = self._score_masks(images) if self._masks else {}
        if self._coco or not self._masks:
            coco_images = [image.coco for image in images if image.coco is not None]
            by_type = {}
            if self._masks:
                by_type["masks"] = coco_scores(coco_images, "segm", self._scored)
                results["coco_segm"] = by_type["masks"]
            by_type["boxes"] = coco_scores(coco_images, "bbox", self._scored)
            results["coco_bbox"] = by_type["boxes"]
            self._log_table(format_coco_scores(by_type), len(images))
        return OrderedDict(
            (task, {key: 100 * score for key, score in scores.items()})
            for task, scores in results.items()
        )

    def _score_masks(self, images: list[ImageResult]) -> dict[str, dict[str, float]]:
        """Score by the official protocol, as fractions, and analyse the errors."""
        matches = [image.matches for image in images if image.matches is not None]
        ap = average_precision(matches)
        official = averages(ap, self._scored)
        self._log_table(format_averages(official), len(images))
        self._write_json(RESULTS_FILE, {"averages": official})
        if self._output_dir is not None and self._analysis_confidence is not None:
            folder = self._output_dir / ANALYSIS_FOLDER
            summary = self.error_summary = summarise_errors(
                matches,
                [image.errors for image in images if image.errors is not None],
                score_thresh=self._analysis_confidence,
            )
            try:
                write_error_tables(folder, summary, ap, self._scored)
                if self.draw is not None:
                    self.draw(folder, summary, ap)
            except (OSError, InputError) as error:
                # The scores, and a training that is under way, are worth more than the pictures.
                logger.warning("%s: the error analysis is incomplete: %s", folder, error)
        segm = {"AP": official["allAp"], "AP50": official["allAp50%"]}
        segm |= {f"AP-{name}": score["ap"] for name, score in official["classes"].items()}
        segm |= {f"AP50-{name}": score["ap50%"] for name, score in official["classes"].items()}
        return {"segm": segm}
