"""Malformed variants of every kind of input: one clear line, or the official script's result.

Every variant is read in a forked process with a limit of memory and of time. It survives if the
reader ends with one line of error, or accepts it and agrees with the official script where there is
one, within two seconds and 500 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import runpy
import shutil
import signal
import sqlite3
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
import yaml
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from detectron2.data.detection_utils import read_image as detectron2_read_image
from harness import (
    PROJECT,
    STAGE_1,
    Context,
    Job,
    last_line,
    limit_memory,
    one_clear_line,
    same_tensors,
    tiny,
)
from mutators import (
    ODD,
    PNG_MAGIC,
    SURROGATE,
    mutate_bytes,
    mutate_lines,
    mutate_png,
    mutate_tree,
    mutate_zip,
    without_remarks,
)
from PIL import Image, ImageDraw

from cityscapes_maskrcnn.benchmarks.official_evaluation import (
    runnable_official_code,
    score_result_files,
)
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.annotations import annotation_dicts, load_instances, read_instances
from cityscapes_maskrcnn.data.cache import cache_file
from cityscapes_maskrcnn.data.images import read_image, read_label_image
from cityscapes_maskrcnn.data.labels import CONTIGUOUS_TO_ID, ID_TO_CONTIGUOUS
from cityscapes_maskrcnn.data.tree_check import check_tree
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.instance_ap import (
    average_precision,
    averages,
    ground_truth,
)
from cityscapes_maskrcnn.evaluation.result_files import (
    find_ground_truth,
    match_result_files,
    read_instance_ids,
)
from cityscapes_maskrcnn.evaluation.submission_check import (
    ExpectedImage,
    check_submission,
    format_violations,
)
from cityscapes_maskrcnn.search.best_config import best_config, fragment_text
from cityscapes_maskrcnn.search.confirmation import confirmed_scores
from cityscapes_maskrcnn.search.storage import open_study, storage_url
from cityscapes_maskrcnn.search.study import progress, ranked_trials
from cityscapes_maskrcnn.search.study_report import parameter_importances
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import run_tool

SECONDS, MEGABYTES = 2.0, 500
SIZE = (64, 128)
STEM = "ulm_000000_000019"


class Kind(NamedTuple):
    """How one kind of input is damaged, read and compared.

    Attributes:
        write: writes a damaged file.
        read: reads it as a tool does; runs in a forked process.
        compare: gets what was read; the fault in words where the official script differs.
        may_refuse: whether an error is a good end; a damaged cache is none of the user's business.
        may_be_large: whether running out of memory may be that error.
    """

    write: Callable[[random.Random], object]
    read: Callable[[], Any]
    compare: Callable[[Any], str] = lambda _: ""
    may_refuse: bool = True
    may_be_large: bool = False


def jobs(size: str) -> list[Job]:
    """Build the jobs: 1,000 variants of each kind, or a few."""
    kinds = {
        # seconds a variant
        annotation: 0.06,
        annotation_png: 0.07,
        image: 0.07,
        result_text: 0.05,
        result_mask: 0.05,
        submission: 0.05,
        weights: 0.15,
        resume: 0.7,
        config: 0.25,
        cache: 0.05,
        study: 0.32,
        best: 0.08,
    }
    tries = 1000 if size == "full" else 6
    return [
        Job(f"fuzz/{kind.__name__}", tries, tries * seconds, partial(fuzz, kind))
        for kind, seconds in kinds.items()
    ]


def fuzz(prepare: Callable[[Context], Kind], context: Context) -> Iterator[str]:
    """Read variants of one kind; where they fail, keep them in the job's folder."""
    kind = prepare(context)
    for number in context.numbers:
        kind.write(context.random(number))
        yield attempt(kind, context.folder / "printed")


def attempt(kind: Kind, log: Path) -> str:
    """Read a variant in a forked process and judge how that ended."""
    outcome = log.with_name("outcome")
    outcome.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        try:
            _read(kind, log, outcome)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not outcome.exists():
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "no outcome"
        return "it hangs" if name == "SIGALRM" else f"the process died: {name}"
    code, seconds, megabytes, verdict = pickle.loads(outcome.read_bytes())
    printed = log.read_text(errors="replace")
    if code or "Traceback" in printed:
        verdict = one_clear_line(code, printed)
        if not verdict and not kind.may_refuse:
            verdict = f"refused: {last_line(printed)}"
        if not verdict and not kind.may_be_large and "memory" in printed.lower():
            verdict = f"memory ran out: {last_line(printed)}"
    if not verdict and seconds > SECONDS:
        verdict = f"{seconds:.1f} seconds; {last_line(printed)}"
    if not verdict and megabytes > MEGABYTES:
        verdict = f"{megabytes:.0f} MB; {last_line(printed)}"
    return verdict


def _read(kind: Kind, log: Path, outcome: Path) -> None:
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    signal.alarm(60)
    limit_memory(3 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: list[Any] = []
    # Of the processor: the machine may be busy.
    begin = time.process_time()
    try:
        code = run_tool(lambda: found.append(kind.read()))
    except BaseException:
        traceback.print_exc()
        code = 1
    seconds = time.process_time() - begin
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    verdict = ""
    if code == 0:
        signal.alarm(60)
        with log.with_name("official").open("w") as file, contextlib.redirect_stdout(file):
            try:
                verdict = kind.compare(found[0])
            except BaseException:
                verdict = f"the comparison failed: {traceback.format_exc()}"
    outcome.with_suffix(".part").write_bytes(pickle.dumps((code, seconds, megabytes, verdict)))
    outcome.with_suffix(".part").rename(outcome)


# Annotations and images ------------------------------------------------------------------------


def scene(folder: Path) -> Path:
    """Write a split of one image with its annotations; the folder of ``leftImg8bit``."""
    objects = [
        ("road", [[0, 30], [127, 30], [127, 63], [0, 63]]),
        ("car", [[10, 30], [50, 30], [50, 50], [10, 50]]),
        ("license plate", [[20, 40], [24, 40], [24, 43], [20, 43]]),
        ("person", [[60, 20], [70, 20], [72, 55], [58, 55]]),
        ("persongroup", [[90, 20], [120, 20], [120, 40], [90, 40]]),
        ("car", [[40, 35], [80, 35], [80, 60], [40, 60]]),
        ("bicycle", [[100, 45], [115, 45], [110, 60]]),
    ]
    content = {
        "imgHeight": SIZE[0],
        "imgWidth": SIZE[1],
        "objects": [{"label": label, "polygon": polygon} for label, polygon in objects],
    }
    content["objects"][2]["deleted"] = 0
    content["objects"][4]["id"] = 4
    images, labels = (
        folder / "cityscapes" / kind / "val/ulm" for kind in ("leftImg8bit", "gtFine")
    )
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(images / f"{STEM}_leftImg8bit.png")
    stem = f"{labels}/{STEM}_gtFine"
    Path(f"{stem}_polygons.json").write_text(json.dumps(content))
    annotation = Annotation()
    annotation.fromJsonText(json.dumps(content))
    instances = np.array(createInstanceImage(annotation, "ids"))
    Image.fromarray(instances.astype(np.uint16)).save(f"{stem}_instanceIds.png")
    classes = np.where(instances < 1000, instances, instances // 1000)
    Image.fromarray(classes.astype(np.uint8)).save(f"{stem}_labelIds.png")
    return folder / "cityscapes"


def annotation(context: Context) -> Kind:
    """``*_polygons.json``, against what the official painter draws."""
    tree = scene(context.folder)
    (file,) = tree.rglob("*_polygons.json")
    content = file.read_bytes()

    def write(rng: random.Random) -> None:
        if rng.random() < 0.25:
            file.write_bytes(mutate_bytes(rng, content))
            return
        text = json.dumps(mutate_tree(rng, json.loads(content)))
        if rng.random() < 0.05:
            text = text.replace('"imgWidth"', f'"x": {"[" * 50_000}, "imgWidth"', 1)
        file.write_text(text)

    def read() -> Any:
        (checked,) = [c for c in check_tree(tree, True, num_workers=1) if c.name == "gtFine/val"]
        try:
            return read_instances(str(file))
        except InputError as error:
            if not checked.problems:
                raise RuntimeError("the check finds this file in order") from error
            raise

    return Kind(write, read, partial(compare_with_painter, file))


def compare_with_painter(file: Path, record: Any) -> str:
    """Every instance that the painter draws large is read, and the other way round."""
    painted = Annotation()
    try:
        painted.fromJsonFile(str(file))
        pixels = np.array(createInstanceImage(painted, "ids"))
    except Exception:
        return ""  # it has no opinion
    height, width = record["size"].tolist()
    if pixels.shape != (height, width):
        return f"size {(height, width)}, the painter's {pixels.shape}"
    ids, areas = np.unique(pixels, return_counts=True)
    drawn, large_drawn, read, large_read = Counter(), Counter(), Counter(), Counter()
    for number, area in zip(ids.tolist(), areas.tolist(), strict=True):
        label = (number // 1000 if number >= 1000 else number), number < 1000
        if label[0] in ID_TO_CONTIGUOUS:
            # A class has one id for all its groups.
            drawn[label] += 1
            large_drawn[label] += area > 40
    for found in annotation_dicts(record):
        label = CONTIGUOUS_TO_ID[found["category_id"]], found["iscrowd"]
        mask = Image.new("1", (width, height))
        for ring in found["segmentation"]:
            ImageDraw.Draw(mask).polygon([round(v - 0.5) for v in ring], fill=1)
        area = int(np.asarray(mask).sum())
        read[label] += 1
        large_read[label] += area > 40
    for label in {*drawn, *read}:
        most = 1 if label[1] else read[label]
        if large_drawn[label] > min(read[label], most) or (
            large_read[label] > drawn[label] and not label[1]
        ):
            return f"instances of {label}: read {read[label]}, drawn {drawn[label]}"
    return ""


def annotation_png(context: Context) -> Kind:
    """``*_labelIds.png`` and ``*_instanceIds.png``, against Pillow and the official reader."""
    tree = scene(context.folder)
    files = [next(tree.rglob(f"*_{kind}Ids.png")) for kind in ("label", "instance")]
    contents = [file.read_bytes() for file in files]
    chosen: list[int] = [0]

    def write(rng: random.Random) -> None:
        chosen[0] = rng.randrange(2)
        files[chosen[0]].write_bytes(mutate_png(rng, contents[chosen[0]]))

    def read() -> Any:
        if chosen[0] == 0:
            return read_label_image(files[0])
        return ground_truth(read_instance_ids(files[1]))

    def compare(found: Any) -> str:
        try:
            pixels = np.array(Image.open(BytesIO(without_remarks(files[chosen[0]].read_bytes()))))
        except Exception as error:
            return f"accepted, but Pillow says: {error}"
        if chosen[0] == 0:
            return "" if np.array_equal(pixels, found) else "other pixels than Pillow's"
        try:
            official = instances2dict([str(files[1])])[str(files[1].resolve())]
        except Exception:
            return ""
        expected = sorted(
            (each["instID"], each["pixelCount"])
            for instances in official.values()
            for each in instances
            if each["labelID"] in ID_TO_CONTIGUOUS
        )
        read = sorted(zip(found.ids.tolist(), found.areas.tolist(), strict=True))
        return "" if read == expected else f"instances {read}, the official script's {expected}"

    return Kind(write, read, compare)


def image(context: Context) -> Kind:
    """``*_leftImg8bit.png``, against Detectron2's reader."""
    (file,) = scene(context.folder).rglob("*_leftImg8bit.png")
    content = file.read_bytes()

    def compare(found: Any) -> str:
        data, plain = file.read_bytes(), file.with_name("plain.png")
        if not data.startswith(PNG_MAGIC):
            return ""  # decoders of lossy formats differ
        plain.write_bytes(without_remarks(data))
        try:
            expected = detectron2_read_image(str(plain), "BGR")
        except Exception as error:
            return f"accepted, but Detectron2 says: {error}"
        return "" if np.array_equal(found, expected) else "other pixels than Detectron2's"

    return Kind(
        lambda rng: file.write_bytes(mutate_png(rng, content)), lambda: read_image(file), compare
    )


# Results ---------------------------------------------------------------------------------------

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
    return averages(average_precision(match_result_files(own, gt_files, num_workers=1)))


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


# Weights, configs, caches, studies -------------------------------------------------------------

ODD_TENSORS = (
    *(torch.zeros(()), torch.zeros(0), torch.zeros(3), torch.full((8,), float("nan"))),
    *(torch.ones(8, dtype=torch.bool), torch.ones(8, dtype=torch.int8), torch.zeros(8, 8, 1, 1)),
    *(torch.zeros(8, dtype=torch.complex64), torch.zeros(8).half(), -torch.ones(8).double()),
    *(torch.zeros(4).to(torch.float8_e4m3fn), torch.zeros(2**14, 2**14).to_sparse()),
    *(torch.empty(3, device="meta"), torch.zeros(1).expand(2**16), np.float64(1.5), np.zeros(3)),
    *(b"bytes", (1, 2), {1, 2}),
)
SHORT = "SOLVER.MAX_ITER 3 DATASETS.TEST () TEST.EVAL_EPOCHS 0 TEST.VALIDATION_LOSS False"
SHORT += " SOLVER.CHECKPOINT_EPOCHS 0 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.IMS_PER_BATCH 1"


def start_quietly(context: Context) -> None:
    """Use the data set of the campaign, and one thread."""
    os.environ["DETECTRON2_DATASETS"] = str(context.data)
    torch.set_num_threads(1)


def write_checkpoint(rng: random.Random, file: Path, content: Any) -> None:
    """Damage what a checkpoint holds, or its bytes."""
    saved = BytesIO()
    whole = rng.random() < 0.25
    torch.save(content if whole else mutate_tree(rng, content, (*ODD, *ODD_TENSORS)), saved)
    file.write_bytes(mutate_bytes(rng, saved.getvalue()) if whole else saved.getvalue())


def weights(context: Context) -> Kind:
    """A ``.pth`` file for inference: what is loaded is what the file holds."""
    start_quietly(context)
    file = context.folder / "model.pth"
    cfg = build_config(str(STAGE_1), [*tiny(SHORT), "MODEL.WEIGHTS", str(file)])
    model = Trainer.build_model(cfg).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def read() -> Any:
        load_for_inference(model, cfg)
        return {name: value.clone() for name, value in model.state_dict().items()}

    def compare(loaded: Any) -> str:
        bad = [name for name, value in loaded.items() if not value.isfinite().all()]
        if bad:
            return f"not finite: {bad[0]}"
        differ = [name for name in state if not torch.equal(state[name], loaded[name])]
        content = torch.load(file, weights_only=True)
        while isinstance(content, dict) and isinstance(inner := content.get("model"), dict):
            content = inner
        values = {name.removeprefix("module."): value for name, value in content.items()}
        for name in differ:
            if name not in values or not torch.equal(values[name].to(loaded[name]), loaded[name]):
                return f"{name} is not what the file has"
        return ""

    return Kind(
        lambda rng: write_checkpoint(rng, file, {"model": state, "iteration": 4}), read, compare
    )


def resume(context: Context) -> Kind:
    """The checkpoint that ``--resume`` goes on from, and a step of training after it."""
    start_quietly(context)
    output = context.folder / "o"
    cfg = build_config(str(STAGE_1), [*tiny(SHORT), "OUTPUT_DIR", str(output)])
    output.mkdir()
    first = Trainer(cfg)
    first.resume_or_load(resume=False)
    first.train()
    file = output / "model_0000001.pth"
    content = torch.load(file, weights_only=True)
    (output / "last_checkpoint").write_text(file.name)
    (output / "model_final.pth").unlink()
    trainer = Trainer(cfg)

    def read() -> Any:
        trainer.resume_or_load(resume=True)
        trainer.train()
        return trainer.model.state_dict()

    def compare(state: Any) -> str:
        bad = [name for name, value in state.items() if not value.isfinite().all()]
        return f"not finite: {bad[0]}" if bad else ""

    return Kind(lambda rng: write_checkpoint(rng, file, content), read, compare)


def write_yaml(rng: random.Random, file: Path, content: Any) -> None:
    """Damage what a yaml file says, or its bytes."""
    if rng.random() < 0.25:
        file.write_bytes(mutate_bytes(rng, yaml.safe_dump(content).encode()))
        return
    odd = (*ODD, "(1,", "(5,)", "('x', None)", "!!python/name:os.system", "cityscapes_instance_val")
    text = yaml.dump(mutate_tree(rng, content, odd))
    if rng.random() < 0.05:
        text += "X: " + rng.choice(("[" * 20_000, "&a [*a, *a]", "{" * 3000 + "}" * 3000))
    file.write_text(text)


def config(context: Context) -> Kind:
    """A yaml config, and the trainer that it describes."""
    start_quietly(context)
    file = context.folder / "config.yaml"
    opts = tiny(SHORT)
    whole = build_config(str(STAGE_1), [*opts, "OUTPUT_DIR", str(context.folder / "o")])
    plain = yaml.safe_load(whole.dump())
    sections = ("MODEL", "INPUT", "DATASETS", "SOLVER", "DATALOADER", "TEST", "SEED", "OUTPUT_DIR")
    content = {key: plain[key] for key in sections}
    for key in ("PANOPTIC_FPN", "RETINANET", "SEM_SEG_HEAD", "PROPOSAL_GENERATOR"):
        content["MODEL"].pop(key, None)

    def read() -> None:
        cfg = build_config(str(file), [])
        cfg.freeze()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)

    # It may describe a model of any size.
    return Kind(lambda rng: write_yaml(rng, file, content), read, may_be_large=True)


def best(context: Context) -> Kind:
    """``best.yaml``, included into the config of the tuned stage."""
    start_quietly(context)
    file = context.folder / "best.yaml"
    content = {
        "MODEL": {
            "ROI_HEADS": {"IOU_THRESHOLDS": [0.2, 0.4], "IOU_LABELS": [0, -1, 1]},
            "RPN": {"IOU_THRESHOLDS": [0.2, 0.7]},
            "FPN": {"FREEZE": False},
            "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]},
        },
        "DATASETS": {"TUNED_ON": ["cityscapes_instance_val_part1of4"]},
        "VERSION": 2,
    }
    stage = str(PROJECT / "configs" / "demo" / "stage_2_tuned.yaml")
    return Kind(
        lambda rng: write_yaml(rng, file, content),
        lambda: build_config(stage, ["INCLUDE", f"('{file}',)"]) and None,
    )


def cache(context: Context) -> Kind:
    """An annotation cache: what is loaded is what the annotations say, unless it is forged."""
    tree = scene(context.folder)
    folders = str(tree / "leftImg8bit/val"), str(tree / "gtFine/val")
    expected = load_instances(*folders)
    file = cache_file(folders[1], "instances")
    content = file.read_bytes()
    # A digest, the length of the index, the index as JSON, and numbers.
    length = int.from_bytes(content[32:40], "little")
    index, numbers = json.loads(content[40 : 40 + length]), content[40 + length :]
    forged = [False]

    def write(rng: random.Random) -> None:
        forged[0] = rng.random() < 0.4
        if not forged[0]:
            file.write_bytes(mutate_bytes(rng, content))
            return
        text = json.dumps(mutate_tree(rng, index)).encode()
        body = len(text).to_bytes(8, "little") + text + numbers
        file.write_bytes(hashlib.sha256(body).digest() + body)

    def compare(found: Any) -> str:
        if forged[0] or same_tensors(found, expected):
            return ""
        return "other annotations than the files have"

    return Kind(write, lambda: load_instances(*folders), compare, may_refuse=False)


def study(context: Context) -> Kind:
    """The database of a study."""
    program = runpy.run_path(str(PROJECT / "tests/search/search_worker.py"))
    original, file = context.folder / "s.db", context.folder / "damaged.db"
    url = storage_url(str(original))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = program["join"](url)
    for number in range(12):
        trial = made.ask()
        program["SPACE"].suggest(trial)
        trial.report(number, 10)
        trial.set_user_attr("iterations", 100)
        made.tell(trial, 20.0 + number % 5)
    content = original.read_bytes()
    with contextlib.closing(sqlite3.connect(original)) as database:
        names = [
            name
            for (name,) in database.execute("select name from sqlite_master where type = 'table'")
        ]
        tables = {
            name: [row[1] for row in database.execute(f"pragma table_info({name})")]
            for name in names
        }

    def write(rng: random.Random) -> None:
        file.write_bytes(content)
        if rng.random() < 0.5:
            file.write_bytes(mutate_bytes(rng, content))
            return
        table = rng.choice(sorted(tables))
        column = rng.choice(tables[table])
        plain = [value for value in ODD if isinstance(value, (str, float, type(None)))]
        odd = [*(value for value in plain if value != SURROGATE), -1, 0, 2**40]
        change = rng.choice(("drop", "delete", "update", "update", "update", "update", "rename"))
        statement = {
            "drop": f"drop table {table}",
            "delete": f"delete from {table} where rowid % 3 = 0",
            "update": f"update or ignore {table} set {column} = ? where rowid % 2 = 0",
            "rename": f"alter table {table} rename column {column} to other",
        }[change]
        with (
            contextlib.closing(sqlite3.connect(file)) as database,
            contextlib.suppress(sqlite3.Error),
            database,
        ):
            database.execute(statement, [rng.choice(odd)] if change == "update" else [])

    def read() -> None:
        with open_study(storage_url(str(file)), "") as opened:
            progress(opened.trials, 20)
            confirmed_scores(opened)
            ranked = ranked_trials(opened.trials)
            parameter_importances(opened)
            for trial in ranked[:1]:
                fragment = best_config(opened, trial)
                fragment_text(
                    opened, where="s", best=trial, score="1", fragment=fragment, file=file
                )

    return Kind(write, read)
