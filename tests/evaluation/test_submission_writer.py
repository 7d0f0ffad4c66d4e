"""Writing a submission: what is in it, the same bytes again, interrupted, and on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cityscapes_maskrcnn.evaluation.instance_ap import Prediction
from cityscapes_maskrcnn.evaluation.masks import RunMask, mask_from_bitmap
from cityscapes_maskrcnn.evaluation.submission_check import ExpectedImage, check_submission
from cityscapes_maskrcnn.evaluation.submission_writer import SubmissionWriter
from cityscapes_maskrcnn.utils.errors import InputError

HEIGHT, WIDTH = 40, 70
NAMES = [f"{city}_{number:06}_000019" for city, number in [("ulm", 1), ("bonn", 2), ("ulm", 0)]]
IMAGES = [ExpectedImage(name, HEIGHT, WIDTH) for name in NAMES]
RUN = {"weights": "a", "sizes": (400, 500)}


def box(x0: int, y0: int, bitmap: np.ndarray) -> RunMask:
    return mask_from_bitmap(bitmap, x0=x0, y0=y0, height=HEIGHT, width=WIDTH)


def predictions(name: str) -> list[Prediction]:
    """A car, a person and an empty mask; nothing for the last image."""
    if name == NAMES[-1]:
        return []
    random = np.random.default_rng(NAMES.index(name))
    return [
        Prediction(box(10, 5, random.random((20, 30)) < 0.8), 2, float(np.float32(0.3))),
        Prediction(box(0, 0, np.ones((12, 12))), 0, 0.75),
        Prediction(box(0, 0, np.zeros((2, 2))), 1, 0.5),
    ]


def write(output: Path, names: list[str] = NAMES, run: dict[str, Any] = RUN) -> SubmissionWriter:
    writer = SubmissionWriter(output, IMAGES, run)
    writer.prepare()
    for name in names:
        if not writer.is_done(name):
            writer.write(name, predictions(name))
    return writer


def test_what_is_in_it(tmp_path: Path) -> None:
    output = tmp_path / "new" / "submission.zip"
    write(output).finish(num_workers=1)
    assert [path.name for path in output.parent.iterdir()] == ["submission.zip"]
    with zipfile.ZipFile(output) as archive:
        assert archive.namelist() == [
            f"{NAMES[1]}_0_car.png",
            f"{NAMES[1]}_1_person.png",
            f"{NAMES[1]}_pred.txt",
            f"{NAMES[2]}_pred.txt",
            f"{NAMES[0]}_0_car.png",
            f"{NAMES[0]}_1_person.png",
            f"{NAMES[0]}_pred.txt",
        ]
        assert archive.read(f"{NAMES[2]}_pred.txt") == b""
        assert archive.read(f"{NAMES[0]}_pred.txt").decode().splitlines() == [
            f"{NAMES[0]}_0_car.png 26 0.30000001192092896",
            f"{NAMES[0]}_1_person.png 24 0.75",
        ]
    assert check_submission(output, IMAGES, 1) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a b", "a_b"], "the images a b and a_b have the same result files"),
        (["a", "a_pred"], "the text file of a would be taken for another image's"),
    ],
)
def test_images_of_one_text_file_are_refused_before_any_is_predicted(
    tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SubmissionWriter(tmp_path / "s.zip", [ExpectedImage(n, HEIGHT, WIDTH) for n in names], RUN)


def test_names_that_begin_with_others(tmp_path: Path) -> None:
    names = ["new york 0.02", "new york 0.02_night", "0001", "00010"]
    images = [ExpectedImage(name, HEIGHT, WIDTH) for name in names]
    writer = SubmissionWriter(tmp_path / "s.zip", images, RUN)
    writer.prepare()
    for name in names:
        writer.write(name, predictions(NAMES[0]))
    writer.finish(num_workers=1)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        texts = [name for name in archive.namelist() if name.endswith(".txt")]
    assert texts == [
        "0001_pred.txt",
        "00010_pred.txt",
        "new_york_0.02_pred.txt",
        "new_york_0.02_night_pred.txt",
    ]


def test_same_bytes_again_in_any_order_and_after_a_kill(tmp_path: Path) -> None:
    write(tmp_path / "a.zip").finish(num_workers=1)
    first = write(tmp_path / "b.zip", NAMES[::-1][:2])
    with pytest.raises(InputError, match="1 of 3 images are not done, the first is ulm_000001"):
        first.finish()
    # What a kill in the middle of a part, and of the archive, leaves behind.
    (first.work / ".ulm_000001_000019.zip.x7.tmp").write_bytes(b"half")
    (first.work / ".whole.x8.tmp").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in first.work.glob("*.zip")}
    assert len(before) == 2
    second = write(tmp_path / "b.zip")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(second.work.glob(".*.tmp"))
    second.finish(num_workers=1)
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()


def test_parts_of_another_model_stay_and_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s.zip", NAMES[:1])
    for run, names in [
        ({**RUN, "weights": "other"}, "weights"),
        ({**RUN, "MODEL.X": [1, 2.5], "more": 1}, "MODEL.X, more"),
        ({"weights": "a"}, "sizes"),
    ]:
        with pytest.raises(InputError, match=f"another {names}; give another --output or delete "):
            write(tmp_path / "s.zip", run=run)
    # Compared as it reads back from JSON.
    same = write(tmp_path / "s.zip", [], {**RUN, "sizes": [400, 500]})
    assert same.is_done(NAMES[0])


@pytest.mark.parametrize("content", ["[]", "{", "3", "[" * 100_000])
def test_a_damaged_note_is_refused_unless_nothing_is_lost(tmp_path: Path, content: str) -> None:
    note = write(tmp_path / "s.zip", []).work / "run.json"
    note.write_text(content)
    write(tmp_path / "s.zip", NAMES[:1])
    note.write_text(content)
    with pytest.raises(InputError, match="give another --output or delete"):
        write(tmp_path / "s.zip")


def test_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "s.zip.parts").mkdir()
    (tmp_path / "s.zip.parts" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        write(tmp_path / "s.zip")
    assert (tmp_path / "s.zip.parts" / "thesis.tex").exists()
    # Renaming a finished file over a device would remove it.
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="--output must name a zip file"):
            write(output)


def test_damaged_part_is_named(tmp_path: Path) -> None:
    writer = write(tmp_path / "s.zip")
    part = writer.work / f"{NAMES[0]}.zip"
    content = part.read_bytes()
    for position in (100, content.rindex(b"PK\1\2") + 6, content.rindex(b"PK\1\2") + 10):
        damaged = bytearray(content)
        damaged[position] ^= 255  # content; version; compression
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{NAMES[0]}.zip: damaged"):
            writer.finish(num_workers=1)
    assert not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize(
    ("category", "score", "message"), [(2, float("nan"), "score is nan"), (8, 0.5, "class is 8")]
)
def test_invalid_predictions(tmp_path: Path, category: int, score: float, message: str) -> None:
    writer = write(tmp_path / "s.zip", [])
    prediction = Prediction(box(0, 0, np.ones((2, 2))), category, score)
    with pytest.raises(InputError, match=f"{NAMES[0]}: a prediction's {message}"):
        writer.write(NAMES[0], [prediction])
    assert not writer.is_done(NAMES[0])


FULL_DISK = """
import resource, sys
sys.path.insert(0, {folder!r})
from test_submission_writer import *
writer = write(Path({output!r}), NAMES[: {images}])
# No file may grow beyond this many bytes: the error is the one of a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    if {images} == len(NAMES):
        writer.finish(num_workers=1)
    else:
        writer.write(NAMES[0], predictions(NAMES[0]))
except InputError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("images", "limit"), [(0, 300), (3, 1200)])
def test_full_disk(tmp_path: Path, images: int, limit: int) -> None:
    """While the part of an image is written, and while all parts are put together."""
    output = tmp_path / "s.zip"
    output.write_text("an earlier submission")
    write(tmp_path / "whole.zip").finish(num_workers=1)
    assert (tmp_path / "whole.zip").stat().st_size > limit
    code = FULL_DISK.format(
        folder=str(Path(__file__).parent), output=str(output), images=images, limit=limit
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be written: File too large; images that are done stay in" in done.stderr
    assert output.read_text() == "an earlier submission"
    work = tmp_path / "s.zip.parts"
    assert not list(work.glob(".*.tmp"))
    # With room again, the same goes on to the end.
    assert len(list(work.glob("*.zip"))) == images
    write(output).finish(num_workers=1)
    assert check_submission(output, IMAGES, 1) == []
