"""Checkpoints that are written whole, found again to resume, and loaded without running code."""

from __future__ import annotations

import http.client
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY, UsedData, read_history, to_plain
from cityscapes_maskrcnn.engine.checkpoint_origin import (
    ORIGIN_KEY,
    classes_in,
    parent_of,
    parents_in,
)
from cityscapes_maskrcnn.engine.class_check import class_names
from cityscapes_maskrcnn.engine.resume_check import RESUME_ALIKE, check_resumable
from cityscapes_maskrcnn.engine.weight_conventions import check_conventions, conventions_of
from cityscapes_maskrcnn.engine.weight_fit import fit_weights, match_heads
from cityscapes_maskrcnn.modeling.detector_names import from_torchvision
from cityscapes_maskrcnn.modeling.weight_files import (
    PUBLISHED_SCHEMES,
    check_tensors,
    fetch_published,
    read_checkpoint,
    read_pickle,
    write_tensors,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import file_digest, write_text

# The file that names the checkpoint to resume from.
_NOTE = "last_checkpoint"


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe to interrupt and safe to point at any file.

    * A checkpoint appears under its name only when it is complete, and ``last_checkpoint`` is
      moved only after that.
    * ``.pth`` files are read with ``weights_only=True``, or if their pickle is of protocol 4 or
      later, which torch's safe reader does not know, with an unpickler that knows tensors and plain
      values; ``.safetensors`` files hold no pickle; the ``.pkl`` files of Detectron2's model zoo
      are read with an unpickler that knows arrays and nothing else, and other ``.pkl`` files not at
      all.
    * A ResNet comes from torchvision (``torchvision://deeplabv3_resnet50`` and the like, or a
      file), a ConvNeXt from torchvision or timm (``timm://``, or a file), and both from this
      project's own checkpoints; the log lists what was loaded
      (:mod:`cityscapes_maskrcnn.modeling.deeplab_weights`). So does a whole Mask R-CNN of
      torchvision or MMDetection (:mod:`cityscapes_maskrcnn.modeling.detector_names`).
    * Rows of the heads are matched by the names of their classes, where the file's are known
      (:mod:`cityscapes_maskrcnn.modeling.class_rows`).
    * A tensor of another shape is an error, except for the parameters named in
      ``MODEL.WEIGHTS_MAY_DIFFER``; so is a file without any of the model's parameters
      (:mod:`cityscapes_maskrcnn.engine.weight_fit`).
    * A run goes on only from the state of a run like it
      (:mod:`cityscapes_maskrcnn.engine.resume_check`).
    * A checkpoint carries the list of images that the model and its ancestors have seen
      (:mod:`cityscapes_maskrcnn.data.provenance`).

    Args:
        model: the model, plain or wrapped by DistributedDataParallel.
        save_dir: folder of the checkpoints; empty: nothing is saved.
        may_differ: prefixes of parameter names that may have another shape in a loaded file.
        allow_pickle: names of ``.pkl`` files that may be loaded, with wildcards.
        require_all: refuse a file without all of the model's parameters; see
            :func:`load_for_inference`.
        classes: names of the model's instance classes; a file that says others is refused, but for
            training anew. Empty: not known.
        weights_classes: ``MODEL.WEIGHTS_CLASSES``, for files that do not name their classes.
        conventions: of the config; a file that is known to have others is refused
            (:mod:`cityscapes_maskrcnn.engine.weight_conventions`).
        checkpointables: see :class:`fvcore.common.checkpoint.Checkpointer`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        may_differ: Iterable[str] = (),
        allow_pickle: Iterable[str] = ("detectron2://*", "https://dl.fbaipublicfiles.com/*"),
        require_all: bool = False,
        classes: Sequence[str] = (),
        weights_classes: Sequence[str] = (),
        conventions: Mapping[str, Any] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._may_differ = tuple(may_differ)
        self._allow_pickle = tuple(allow_pickle)
        self._require_all = require_all
        self._classes = list(classes)
        self._weights_classes = list(map(str, weights_classes))
        self._conventions = conventions or {}
        self._matched_by_name = False
        #: The file that was loaded last, as it was named.
        self.path = ""
        self._resuming = False
        #: Of the newest checkpoint that a training run wrote, or goes on from; None: none yet.
        self.saved_iteration: int | None = None
        #: What the model has seen; loading replaces it by the file's list, saving writes it.
        self.history: tuple[UsedData, ...] = ()
        #: How the model came about, see :func:`.checkpoint_origin.origin_of_run`; saving writes it.
        self.origin: dict[str, Any] = {}
        #: What :meth:`save` writes in place of weights in the model, by name.
        self.replaced: Mapping[str, Tensor] = {}
        self._loaded = ""
        self._loaded_origin: dict[str, Any] = {}
        self._former_parents: list[dict[str, str]] = []
        self.logger = logging.getLogger(__name__)

    @classmethod
    def of_config(cls, cfg: CfgNode, model: nn.Module, **options: Any) -> SafeCheckpointer:
        """Build the checkpointer of a config's model.

        Args:
            cfg: reads ``OUTPUT_DIR``, ``DATASETS`` and ``MODEL``, but for
                ``MODEL.WEIGHTS_MAY_DIFFER``, which is for training alone.
            model: plain or wrapped by DistributedDataParallel.
            options: further arguments of the class.
        """
        return cls(
            model,
            cfg.OUTPUT_DIR,
            allow_pickle=cfg.MODEL.WEIGHTS_ALLOW_PICKLE,
            classes=class_names(cfg),
            weights_classes=cfg.MODEL.WEIGHTS_CLASSES,
            conventions=conventions_of(cfg),
            **options,
        )

    def save(self, name: str, **extra: Any) -> None:
        """Write ``save_dir/name.pth`` and then make it the last checkpoint.

        Args:
            name: without folder and extension.
            extra: further data to store, of types that safe loading allows.

        Raises:
            InputError: the disk is full or the folder cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        self._write(name, self.replaced, self.history, states, extra)
        self.tag_last_checkpoint(f"{name}.pth")
        self.saved_iteration = extra.get("iteration")

    def save_weights(
        self,
        name: str,
        *,
        replaced: Mapping[str, Tensor] | None = None,
        history: Sequence[UsedData] | None = None,
        **extra: Any,
    ) -> None:
        """Write ``save_dir/name.pth`` without the state of a training: nothing to resume from.

        Args:
            name: without folder and extension.
            replaced: written in place of weights in the model, by name; None: nothing is.
            history: what these weights have seen; None: what the model has.
            extra: as of :meth:`save`.

        Raises:
            InputError: the disk is full or the folder cannot be written.
        """
        if self.save_dir and self.save_to_disk:
            history = self.history if history is None else history
            self._write(name, replaced or {}, history, {}, extra)

    def _write(
        self,
        name: str,
        replaced: Mapping[str, Tensor],
        history: Sequence[UsedData],
        states: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> None:
        weights = {**self.model.state_dict(), **replaced}
        data = {"model": weights, SEEN_IMAGES_KEY: to_plain(history), **states}
        if self.origin:
            data[ORIGIN_KEY] = self.origin
        data.update(extra)
        # Safe loading refuses NumPy scalars.
        data = tree_map_only(
            (np.generic, np.ndarray), lambda value: value.item() if value.ndim == 0 else value, data
        )
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_tensors(path, data)

    def parents(self) -> list[dict[str, str]]:
        """List the files that the loaded weights come from, nearest first.

        Returns:
            See :func:`.checkpoint_origin.parent_of`. A run that is resumed has the parents that it
            had.
        """
        if not self._loaded or self._resuming:
            return self._former_parents
        file = Path(self.path_manager.get_local_path(self._loaded.partition("?")[0]))
        parent = parent_of(self.path, file_digest(file) or "", self._loaded_origin)
        return [parent, *self._former_parents]

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a checkpoint the one that ``--resume`` starts from."""
        write_text(Path(self.save_dir) / _NOTE, last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is a run to resume; see :func:`holds_run`."""
        return holds_run(self.save_dir)

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint that ``last_checkpoint`` names; without that file, of the newest.

        Raises:
            InputError: it names none that is there, or none in the folder can be resumed.
        """
        note = Path(self.save_dir) / _NOTE
        if not note.is_file():
            newest = _newest_checkpoint(Path(self.save_dir))
            self.logger.warning(
                "%s is missing: continuing from %s, the newest intact checkpoint beside it",
                note,
                newest.name,
            )
            return str(newest)
        name = note.read_bytes().decode("utf-8", "replace").strip()
        # A path would lead to another run, which would go on in this folder.
        if name != Path(name).name or not (note.parent / name).is_file():
            raise InputError(
                f"{note}: names {name!r}, and there is no such checkpoint in this folder; write "
                "the name of one into it, or remove it to continue from the newest one"
            )
        return str(note.parent / name)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and the checkpointables.

        Args:
            path: a file, a URL that Detectron2 knows, or a name of :func:`fetch_published`;
                empty: nothing is loaded.
            checkpointables: names to restore besides the model; None: all.

        Returns:
            What else the file held.

        Raises:
            InputError: there is no such file, it is no checkpoint, it would execute code, it is of
                another model, or (when resuming) of a training run with other parameters.
        """
        self.path = path
        self._resuming = checkpointables is None and bool(self.checkpointables)
        name = path.partition("?")[0]
        if name.endswith(".pkl") and not any(
            fnmatchcase(name, each) for each in self._allow_pickle
        ):
            raise InputError(
                f"{path}: pickle files can hold code and are refused; save the weights as .pth, or "
                "add the name to MODEL.WEIGHTS_ALLOW_PICKLE to have the arrays in it read"
            )
        if path.startswith(PUBLISHED_SCHEMES):
            path = str(fetch_published(path))
        check_weights_file(path)
        self._fetch(path)
        try:
            rest = super().load(path, checkpointables)
            self.saved_iteration = rest.get("iteration") if self._resuming else None
            self.history = read_history(rest, path)
            self._loaded, self._former_parents = path, parents_in(rest)
            self._loaded_origin = {key: rest.get(key) for key in (ORIGIN_KEY, SEEN_IMAGES_KEY)}
            self._check_classes(classes_in(rest))
            return rest
        except InputError:
            raise
        except ValueError as error:
            if "parameter group" in str(error):
                raise InputError(
                    f"{path}: was trained with other frozen layers or another optimizer; "
                    f"{RESUME_ALIKE}"
                ) from error
            raise InputError(f"{path}: cannot be loaded: {error}") from error
        except (OSError, AssertionError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        finally:
            self._parsed_url_during_load = None

    def _check_classes(self, theirs: list[str]) -> None:
        """Raise if a file's classes are others: predictions would bear the wrong names."""
        if not theirs or not self._classes or theirs == self._classes or self._matched_by_name:
            return
        message = (
            f"{self.path}: predicts {', '.join(theirs)}, but the classes of the config's datasets "
            f"are {', '.join(self._classes)}"
        )
        if self._resuming or self._require_all:
            raise InputError(
                f"{message}; name the data or DATASETS.CLASSES that it was trained with"
            )
        self.logger.warning("%s", message)

    def _fetch(self, path: str) -> None:
        """Download a file that is elsewhere to where loading finds it."""
        if "://" not in path:
            return
        try:
            self.path_manager.get_local_path(path.partition("?")[0])
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            raise InputError(f"{path}: cannot be fetched: {error}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        if filename.endswith(".pyth"):
            # pycls, the home of RegNet.
            content = read_checkpoint(filename, self.path)
            return {**content, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        source = self.path or filename
        data = read_pickle(filename, source)
        if "__author__" not in data:
            # Caffe2's and torchvision's ImageNet files of the zoo.
            data |= {"__author__": "Caffe2", "matching_heuristics": True}
        data["model"] = {
            name: value for name, value in data["model"].items() if not name.endswith("_momentum")
        }
        check_tensors(data["model"], source)
        return data

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f, self.path)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._resuming:
            check_resumable(
                checkpoint,
                self.path,
                states={name: item.state_dict() for name, item in self.checkpointables.items()},
                parameters=dict(self.model.named_parameters()),
            )
        check_conventions(self.path, checkpoint, self._conventions)
        checkpoint["model"] = from_torchvision(checkpoint["model"], self.path)
        self._match_classes(checkpoint)
        fit = fit_weights(
            checkpoint,
            self.path,
            self.model,
            may_differ=self._may_differ,
            require_all=self._require_all,
        )
        # The names are the model's now; Detectron2 must not guess them.
        checkpoint.pop("matching_heuristics", None)
        # Loading removes those of another shape.
        checkpoint["model"] = dict(fit.tensors)
        incompatible = super()._load_model(checkpoint)
        fit.check_unexpected(incompatible.unexpected_keys)
        for name, theirs, here in incompatible.incorrect_shapes:
            self.logger.warning(
                "%s starts from scratch: its shape is %s in the file and %s in the model",
                name,
                theirs,
                here,
            )
        if fit.report is not None:
            self.logger.info("%s", fit.report.summary())
            equal, count = fit.count_equal(self.model.state_dict())
            self.logger.info(
                "%d of the %d backbone tensors in the model are bit-equal to the file's",
                equal,
                count,
            )
            # They are in the summary; fvcore would warn of them once more.
            incompatible.missing_keys.clear()
        return incompatible

    def _match_classes(self, checkpoint: dict[str, Any]) -> None:
        """Give the heads of a file the model's classes, by name, if both are known."""
        self._matched_by_name = False
        # A run goes on with classes of its own.
        if self._resuming:
            return
        checkpoint["model"], table = match_heads(
            checkpoint,
            self.path,
            self.model.state_dict(),
            classes=self._classes,
            weights_classes=self._weights_classes,
            require_all=self._require_all,
        )
        if table:
            self._matched_by_name = True
            self.logger.info("%s", table)


def load_for_inference(model: nn.Module, cfg: CfgNode, resume: bool = False) -> SafeCheckpointer:
    """Load weights into a model that is not going to be trained, whose heads must not be random.

    Args:
        model: a whole model.
        cfg: reads ``MODEL.WEIGHTS``, ``MODEL.WEIGHTS_*``, ``DATASETS`` and ``OUTPUT_DIR``.
        resume: take the last checkpoint of ``OUTPUT_DIR`` instead, if there is one.

    Returns:
        The checkpointer, with the ``path`` that was loaded and its ``history``.

    Raises:
        InputError: there is nothing to load, or the file lacks parameters of the model (a backbone,
            a checkpoint of stage 0), or is of other classes than the config's datasets; or as
            :meth:`SafeCheckpointer.load`.
    """
    checkpointer = SafeCheckpointer.of_config(cfg, model, require_all=True)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise InputError("MODEL.WEIGHTS is empty: name a checkpoint")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return checkpointer


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds checkpoints of a training run."""
    return Path(folder, _NOTE).is_file() or any(Path(folder).glob("model_*.pth"))


def _newest_checkpoint(folder: Path) -> Path:
    """Find the checkpoint of the last iteration in a folder; damaged ones do not count.

    Raises:
        InputError: there is none that holds the state of a training run.
    """
    iterations = {}
    for path in folder.glob("model_*.pth"):
        with suppress(InputError):
            trainer = read_checkpoint(path).get("trainer")
            if isinstance(trainer, dict) and isinstance(trainer.get("iteration"), int):
                iterations[path] = trainer["iteration"]
    if not iterations:
        raise InputError(
            f"{folder}: holds model_*.pth files and no {_NOTE}, and none of them can be resumed; "
            "choose another OUTPUT_DIR, or move them away"
        )
    # Of equal ones model_final.pth, which may hold the best weights.
    return max(iterations, key=lambda path: (iterations[path], path.name))


def check_weights_file(path: str) -> None:
    """Verify that weights are there, if they are a file and no address.

    Raises:
        InputError: they are missing; for those of an earlier stage it says how they are made.
    """
    if not path or "://" in path or os.path.isfile(path.partition("?")[0]):  # noqa: PTH113
        return
    stage = re.fullmatch(r"(?:stage|coco_staged)_\d+", Path(path).parent.name)
    if not stage or Path(path).is_dir():
        what = "a folder" if Path(path).is_dir() else "no such file"
        raise InputError(f"{path}: {what}; MODEL.WEIGHTS must name a checkpoint")
    raise InputError(
        f"{path}: no such file; it is what {stage.group()} ends with: train that first, with "
        f"OUTPUT_DIR {Path(path).parent}, or name another checkpoint in MODEL.WEIGHTS"
    )
