"""Result files, masks and submissions, compared with the official script."""

from __future__ import annotations

import random
import shutil
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from data_kinds import SIZE, STEM, scene
from harness import Context
from mutators import (
    mutate_bytes,
    mutate_lines,
    mutate_png,
    mutate_zip,
)
from PIL import Image
from variants import Kind

from cityscapes_maskrcnn.benchmarks.official_evaluation import (
    runnable_official_code,
    score_result_files,
)
from cityscapes_maskrcnn.evaluation.instance_ap import (
    average_precision,
    averages,
    match_image,
)
from cityscapes_maskrcnn.evaluation.result_files import (
    find_ground_truth,
    map_result_files,
)
from cityscapes_maskrcnn.evaluation.submission_check import (
    ExpectedImage,
    check_submission,
    format_violations,
)

LINES = f"{STEM}_0.png 26 0.9\n{STEM}_1.png 26 0.75\n{STEM}_2.png 24 0.5\n"
ODD_FIELDS = (
    *("26.0", "2.6e1", "13", "-1", "0", "99", "1e400", "nan", "inf", "0.9", "1_0", "\u0662\u0666"),
    *("0x1a", "True", f"{STEM}_1.png", f"./{STEM}_0.png", f"a/../{STEM}_0.png", "../x.png", "/x"),
    *("gone.png", ".", "~", "x" * 5000, "\x1b[31m", "\u202e", f"{STEM}_0.PNG", "\x00", "+0.5"),
)


def results(folder: Path) -> tuple[Path, Path]:
    """Write ground truth and a results folder of one image; the folders of both."""
    gt_dir = scene(folder) / "gtFine/val"
    own = folder / "results"
    own.mkdir()
    ids = np.array(Image.open(next(gt_dir.rglob("*_instanceIds.png"))))
    for number, instance in enumerate((26000, 26001, 24000)):
        pixels = np.where(np.roll(ids == instance, number, 1), 255, 0).astype(np.uint8)
        Image.fromarray(pixels).save(own / f"{STEM}_{number}.png")
    (own / f"{STEM}_pred.txt").write_text(LINES)
    return own, gt_dir


def score(own: Path, gt_dir: Path) -> Any:
    """Score a results folder as tools/evaluate_results.py does."""
    gt_files = find_ground_truth(gt_dir)
    return averages(average_precision(map_result_files(match_image, own, gt_files, num_workers=1)))


def compare_with_official(own: Path, gt_dir: Path, found: Any) -> str:
    """The official script's averages of the same files are the same numbers."""
    files = sorted(gt_dir.rglob("*_instanceIds.png"))
    with runnable_official_code(own.parent) as scores:
        try:
            score_result_files(own, files)()
        except SystemExit:
            return "accepted, but the official script refuses it"
        except Exception as error:
            return f"accepted, but the official script fails: {error!r}"
    (expected,) = scores
    if not _close(found, expected):
        return f"scores {found['allAp']}, the official script's {expected['allAp']}"
    return ""


def _close(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return all(key in found and _close(found[key], expected[key]) for key in expected)
    return bool(np.isclose(found, expected, rtol=1e-6, atol=1e-9, equal_nan=True))


def result_text(context: Context) -> Kind:
    """A text file of results, against the official script."""
    own, gt_dir = results(context.folder)
    file = own / f"{STEM}_pred.txt"

    def write(rng: random.Random) -> None:
        if rng.random() < 0.2:
            file.write_bytes(mutate_bytes(rng, LINES.encode()))
        else:
            file.write_bytes(mutate_lines(rng, LINES, ODD_FIELDS))

    compare = partial(compare_with_official, own, gt_dir)
    return Kind(write, partial(score, own, gt_dir), compare)


def result_mask(context: Context) -> Kind:
    """A mask of results, against the official script."""
    own, gt_dir = results(context.folder)
    file = own / f"{STEM}_1.png"
    content = file.read_bytes()
    compare = partial(compare_with_official, own, gt_dir)
    return Kind(
        lambda rng: file.write_bytes(mutate_png(rng, content)),
        partial(score, own, gt_dir),
        compare,
    )


def submission(context: Context) -> Kind:
    """A submission's zip file: the official script scores what the check finds in order."""
    own, gt_dir = results(context.folder)
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(own.iterdir()):
            archive.write(each, each.name)
    content, file = packed.getvalue(), context.folder / "s.zip"
    names = ("", "/", "../x.png", "/etc/x.png", "a\\b.png", "\x1b[31m.png", "a b.png", "x.txt")
    names += ("\u202e.png", "C:x.png", f"{STEM}.txt", f"d/{STEM}_pred.txt", "x" * 9000, "\x00.png")

    def mutate_entry(rng: random.Random, data: bytes) -> bytes:
        if data.startswith(b"\x89PNG"):
            return mutate_png(rng, data)
        return mutate_lines(rng, LINES, ODD_FIELDS)

    def read() -> Any:
        violations = check_submission(file, [ExpectedImage(STEM, *SIZE)], num_workers=1)
        text = format_violations(violations, 10)
        for line in text.splitlines():
            if not line.isprintable() or len(line) > 10_000:
                raise RuntimeError(f"a line that no terminal should get: {line[:200]!r}")
        return violations

    def compare(violations: Any) -> str:
        if violations:
            return ""
        shutil.rmtree(own)
        with zipfile.ZipFile(file) as archive:
            archive.extractall(own)
        return compare_with_official(own, gt_dir, score(own, gt_dir))

    return Kind(
        lambda rng: file.write_bytes(mutate_zip(rng, content, names, mutate_entry)), read, compare
    )
