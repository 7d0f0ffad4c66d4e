"""Write the zip file for the benchmark server: image by image, resumable, assembled at the end.

Beside ``submission.zip`` a folder ``submission.zip.parts`` holds a small zip for every finished
image, each written whole or not at all, and ``run.json``: which model and images they belong to.
When all are there the archive is made of them in that folder, read back, and only then renamed.

The same predictions give the same bytes: names, order, times and permissions are fixed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.evaluation.instance_ap import Prediction
from cityscapes_maskrcnn.evaluation.result_files import (
    assign_text_files,
    image_results,
    result_stem,
)
from cityscapes_maskrcnn.evaluation.result_source import ResultSource
from cityscapes_maskrcnn.evaluation.submission_check import (
    ExpectedImage,
    check_submission,
    format_violations,
)
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import atomic_write, read_file, to_json, write_json

_RUN_FILE: Final = "run.json"
_FORMAT: Final = 3  # of the parts
_LARGEST_FILE: Final = 64 * 2**20  # bytes, of the files in a part


class SubmissionWriter:
    """Writes one submission; several processes may share the work.

    Args:
        output: the zip file to make.
        images: all of the split.
        run: by name what the predictions depend on (a digest of the weights, config keys, ...).
            Parts of an earlier run are used if it had the same.

    Raises:
        InputError: the output is a folder or a device, or two images would have the same result
            files.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        images: Sequence[ExpectedImage],
        run: Mapping[str, Any],
    ) -> None:
        self.output = Path(output)
        if self.output.exists() and not self.output.is_file():
            what = "a folder" if self.output.is_dir() else "no file, but a pipe or device"
            raise InputError(f"{self.output}: {what}; --output must name a zip file")
        self.work = self.output.with_name(self.output.name + ".parts")
        self._images = sorted(images, key=lambda image: image.name)
        _check_names([image.name for image in images])
        listing = "\n".join(f"{i.name} {i.height} {i.width}" for i in self._images)
        digest = hashlib.sha256(listing.encode()).hexdigest()
        # As it reads back, with lists in place of tuples.
        self._run = json.loads(to_json({"format": _FORMAT, **run, "images": digest}))

    def prepare(self) -> None:
        """Create the folder of parts, or check the existing one. One process calls this.

        Raises:
            InputError: the folder cannot be written, is not one of this class's, or has parts of
                another model or other images. Nothing is deleted then.
        """
        left = list(self.work.iterdir()) if self.work.exists() else []
        for path in left:
            # What a killed run had not finished.
            if path.suffix == ".tmp":
                path.unlink()
        finished = [path for path in left if path.suffix != ".tmp" and path.name != _RUN_FILE]
        if finished:
            self._check_run(finished[0].name)
        write_json(self.work / _RUN_FILE, self._run)

    def is_done(self, name: str) -> bool:
        """Whether the part of an image exists."""
        return self._part(name).is_file()

    def write(self, name: str, predictions: Sequence[Prediction]) -> None:
        """Write the part of one image; empty masks, which do not count, are left out.

        Args:
            name: of the image.
            predictions: of the image.

        Raises:
            InputError: a confidence is not finite, a class is none of the 8, or the disk is full.
        """
        for prediction in predictions:
            if not math.isfinite(prediction.confidence):
                raise InputError(f"{name}: a prediction's score is {prediction.confidence}")
            if prediction.category not in range(len(THING_CLASSES)):
                raise InputError(f"{name}: a prediction's class is {prediction.category}")
        kept = [prediction for prediction in predictions if prediction.mask.area()]
        with self._open_archive(self._part(name)) as archive:
            for file_name, content in image_results(name, kept):
                _add(archive, file_name, content)

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
        whole = self.work / "whole"
        with self._open_archive(whole) as archive:
            for part in parts:
                try:
                    with closing(ResultSource(part)) as source:
                        files = {name: source.read(name, _LARGEST_FILE) for name in source.names}
                except InputError as error:
                    raise InputError(
                        f"{part}: damaged ({error}); remove it and run again"
                    ) from error
                for name, content in files.items():
                    _add(archive, name, content)
        violations = check_submission(whole, self._images, num_workers)
        if violations:
            raise InputError(
                f"{whole}: what was written is not valid: {format_violations(violations, 3)}"
            )
        whole.replace(self.output)
        shutil.rmtree(self.work)

    def _part(self, name: str) -> Path:
        return self.work / f"{name}.zip"

    def _check_run(self, finished: str) -> None:
        """Raise unless the parts in the folder, ``finished`` being one, are of this run."""
        run_file = self.work / _RUN_FILE
        if not run_file.exists():
            raise InputError(
                f"{self.work}: needed for unfinished results, but it holds other files "
                f"({finished}); move it away"
            )
        try:
            before = dict(json.loads(read_file(run_file, _LARGEST_FILE)))
        except (ValueError, TypeError, RecursionError):
            before = {}
        different = sorted(
            name for name in {*before, *self._run} if before.get(name) != self._run.get(name)
        )
        if different:
            names = ", ".join(different[:3]) + ", ..." * (len(different) > 3)
            raise InputError(
                f"{self.work}: holds images predicted with another {names}; give another --output"
                f" or delete {self.work}"
            )

    @contextmanager
    def _open_archive(self, path: Path) -> Iterator[zipfile.ZipFile]:
        try:
            with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
                yield archive
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise InputError(
                f"{error}; images that are done stay in {self.work}: make room and give the same"
                " command again"
            ) from error


def _check_names(names: Sequence[str]) -> None:
    """Verify that every image's own text file, and no other, will be found for it."""
    texts = {f"{result_stem(name)}_pred.txt": name for name in names}
    own, _ = assign_text_files(texts, names)
    for name, found in own.items():
        if [texts[text] for text in found] != [name]:
            raise InputError(
                f"the text file of {name} would be taken for another image's, or that for its; "
                "rename one"
            )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file of which nothing depends on when, where and by whom it is written."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix, which gives the next line its meaning
    entry.external_attr = 0o100644 << 16
    # Masks are PNG files compressed fast, not well: this still halves them and more.
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
