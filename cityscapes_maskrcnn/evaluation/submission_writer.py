"""The zip file for the benchmark's server: written image by image, resumable, put together last.

Beside ``submission.zip`` a folder ``submission.zip.parts`` holds a small zip for every image that
is done, each written whole or not at all, and says which model and images they belong to. When all
are there the archive is made of them in that folder, read back, and only then renamed.

The same predictions give the same bytes: names, order, times and permissions are fixed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.instance_ap import Prediction
from cityscapes_maskrcnn.evaluation.result_files import image_name, image_results
from cityscapes_maskrcnn.evaluation.submission_check import (
    ExpectedImage,
    check_submission,
    format_violations,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write

_RUN_FILE: Final = "run.json"
_FORMAT: Final = 1  # of the parts; another one starts anew
logger = logging.getLogger(__name__)


class SubmissionWriter:
    """Writes one submission; several processes may share the work.

    Args:
        output: the zip file to make.
        images: all of the split.
        run: what the results depend on (digests of the weights, the config, ...), by name. Parts
            that an earlier run with another ``run`` or other images left are not used.

    Raises:
        InputError: the output is a folder.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        images: Sequence[ExpectedImage],
        run: Mapping[str, str],
    ) -> None:
        self.output = Path(output)
        if self.output.is_dir():
            raise InputError(f"{self.output}: a folder; --output must name a zip file")
        self.work = self.output.with_name(self.output.name + ".parts")
        self._images = sorted(images, key=lambda image: image.name)
        listing = "\n".join(f"{i.name} {i.height} {i.width}" for i in self._images)
        digest = hashlib.sha256(listing.encode()).hexdigest()
        self._run = {"format": str(_FORMAT), **run, "images": digest}

    def prepare(self) -> None:
        """Make the folder of parts, or clean up the one that is there. One process calls this.

        Raises:
            InputError: the output cannot be written, or the folder is not one of this class's.
        """
        with self._clear_errors(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            different = self._differences()
            if different:
                logger.warning(
                    "%s: holds parts made with another %s; they are removed, this run starts anew",
                    self.work,
                    " and ".join(different),
                )
                shutil.rmtree(self.work)
                self.work.mkdir()
            for left in self.work.iterdir():
                # What a run that was killed had not finished.
                if left.suffix == ".tmp":
                    left.unlink()
            with atomic_write(self.work / _RUN_FILE, "w") as file:
                json.dump(self._run, file, indent=1)

    def is_done(self, image_file: str | os.PathLike[str]) -> bool:
        """Whether the part of an image is there."""
        return self._part(image_name(image_file)).is_file()

    def write(
        self,
        image_file: str | os.PathLike[str],
        predictions: Sequence[Prediction],
        height: int,
        width: int,
    ) -> None:
        """Write the part of one image; empty masks, which do not count, are left out.

        Raises:
            InputError: a confidence or a class is none, or the disk is full.
        """
        for prediction in predictions:
            if not math.isfinite(prediction.confidence):
                raise InputError(f"{image_file}: a prediction's score is {prediction.confidence}")
            if prediction.category not in range(len(THING_CLASSES)):
                raise InputError(f"{image_file}: a prediction's class is {prediction.category}")
        kept = [prediction for prediction in predictions if prediction.mask.area()]
        part = self._part(image_name(image_file))
        with (
            self._clear_errors(part),
            atomic_write(part) as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            for name, content in image_results(image_file, kept, height, width):
                _add(archive, name, content)

    def finish(self, num_workers: int | None = None) -> None:
        """Put the parts together, read everything back, and give the file its name.

        Args:
            num_workers: processes that read back; default one per core.

        Raises:
            InputError: images are not done, a part is damaged, the disk is full, or what was
                written is not a valid submission.
        """
        parts = [self._part(image.name) for image in self._images]
        missing = [part.stem for part in parts if not part.is_file()]
        if missing:
            raise InputError(
                f"{self.output}: {len(missing)} of {len(parts)} images are not done, the first is "
                f"{missing[0]}"
            )
        whole = self.work / "whole.tmp"
        with self._clear_errors(self.output):
            try:
                with whole.open("wb") as file:
                    with zipfile.ZipFile(file, "w") as archive:
                        for part in parts:
                            _copy(part, archive)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                whole.unlink(missing_ok=True)
                raise
            violations = check_submission(whole, self._images, num_workers)
            if violations:
                raise InputError(
                    f"{whole}: what was written is not valid: {format_violations(violations, 3)}"
                )
            whole.replace(self.output)
        shutil.rmtree(self.work)

    def _part(self, name: str) -> Path:
        return self.work / f"{name}.zip"

    def _differences(self) -> list[str]:
        """Names of what the parts that are there depend on and this run has otherwise."""
        run_file = self.work / _RUN_FILE
        if not run_file.exists():
            others = [path.name for path in self.work.iterdir() if path.suffix != ".tmp"]
            if others:
                raise InputError(
                    f"{self.work}: needed for unfinished results, but it holds other files "
                    f"({others[0]}); move it away"
                )
            return []
        try:
            before = json.loads(run_file.read_text(encoding="utf-8"))
        except ValueError:
            return [_RUN_FILE]
        if not isinstance(before, dict):
            return [_RUN_FILE]
        return [name for name, value in self._run.items() if before.get(name) != value]

    @contextmanager
    def _clear_errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written: {error.strerror or error}{self._advice()}"
            ) from error
        except InputError as error:
            raise InputError(f"{error}{self._advice() * (' written: ' in str(error))}") from error

    def _advice(self) -> str:
        return (
            f"; images that are done stay in {self.work}: make room and give the same command again"
        )


def _copy(part: Path, archive: zipfile.ZipFile) -> None:
    try:
        with zipfile.ZipFile(part) as source:
            for entry in source.infolist():
                _add(archive, entry.filename, source.read(entry))
    except zipfile.BadZipFile as error:
        raise InputError(f"{part}: damaged ({error}); remove it and run again") from error


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file of which nothing depends on when, where and by whom it is written."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix, which gives the next line its meaning
    entry.external_attr = 0o100644 << 16
    # Masks are PNG files compressed fast, not well: this still halves them and more.
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
