"""Weights, checkpoints, configs, caches and studies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import runpy
import sqlite3
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from data_kinds import scene
from harness import PROJECT, STAGE_1, Context, same_tensors, tiny
from mutators import (
    ODD,
    SURROGATE,
    mutate_bytes,
    mutate_tree,
)
from variants import Kind

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.annotations import load_instances
from cityscapes_maskrcnn.data.cache import cache_file
from cityscapes_maskrcnn.engine import trainer as trainer_module
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.recipe.performance_table import stage_rows, to_csv, to_markdown
from cityscapes_maskrcnn.recipe.step import Step
from cityscapes_maskrcnn.search.best_config import best_config, fragment_text
from cityscapes_maskrcnn.search.confirmation import confirmed_scores
from cityscapes_maskrcnn.search.storage import open_study, storage_url
from cityscapes_maskrcnn.search.study import progress, ranked_trials
from cityscapes_maskrcnn.search.study_report import parameter_importances
from cityscapes_maskrcnn.utils.config_keys import flat_config
from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.training_metrics import read_curves

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
    """Use the data set of the campaign, and one thread; draw nothing.

    The picture at the end of a training takes half of a try. Kills and full disks draw it.
    """
    os.environ["DETECTRON2_DATASETS"] = str(context.data)
    torch.set_num_threads(1)
    trainer_module.plot_training_curves = lambda *_, **__: None


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

    return Kind(lambda rng: write_checkpoint(rng, file, content), read, compare, begins_whole=True)


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


#: Values at the edges, as they are typed; each key has some that it must not have.
ODD_VALUES = (
    *("0", "-1", "1", "2", "3", "2147483648", "-2147483649", "9223372036854775808", "1" + "0" * 40),
    *("0x" + "f" * 5000, "0.0", "-0.0", "0.5", "-0.5", "1.5", "1e308", "-1e308", "1e-320", "1e400"),
    *(
        "-1e400",
        "nan",
        "True",
        "False",
        "None",
        "''",
        "x",
        " ",
        "[]",
        "()",
        "{}",
        "[[]]",
        "(None,)",
    ),
    *("(None,)", "[0]", "(-1,)", "(1e400,)", "[1,2]", "(2,1)", "[0.5,-0.5]", "('x',)", "[['x']]"),
    *("[{}]", "(1", "[" * 300, "a\nb", "\x1b[2J", "'a\\0b'", r"'\ud83d'", "/dev/zero", "x" * 9000),
)
ODD_ELEMENTS = (0, -1, 0.5, 1e308, None, "x", [], 2**63)


def opts(context: Context) -> Kind:
    """One or two KEY VALUE pairs of the command line, and a step of the training they describe."""
    start_quietly(context)
    plain = tiny(f"{SHORT} SOLVER.MAX_ITER 2")
    plain += ["OUTPUT_DIR", str(context.folder / "o")]
    whole = build_config(str(STAGE_1), plain)
    values = flat_config(whole)
    # What a job writes stays in its folder, and a trial of a search is another kind.
    names = [name for name in values if name != "OUTPUT_DIR"]
    chosen: list[list[str]] = [[]]

    def write(rng: random.Random) -> None:
        chosen[0] = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            name = rng.choice(names)
            number = values[name]
            value = rng.choice(ODD_VALUES)
            if isinstance(number, (list, tuple)) and number and rng.random() < 0.5:
                value = str(
                    mutate_tree(rng, list(number), (0, -1, 0.5, 1e308, None, "x", [], 2**63))
                )
            elif type(number) is float and rng.random() < 0.5:
                # Whole numbers are refused for their type.
                value = str(rng.choice((-number, 1 / 3, number + 1, -1e-9, 0.0, -1.0, 1e9)))
            chosen[0] += [name, value]

    def read() -> Any:
        cfg = build_config(str(STAGE_1), [*plain, *chosen[0]])
        cfg.freeze()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.max_iter = min(trainer.max_iter, 1)
        trainer.train()
        return trainer.model.state_dict()

    def compare(state: Any) -> str:
        bad = [name for name, value in state.items() if not value.isfinite().all()]
        return f"not finite: {bad[0]}" if bad else ""

    # It may describe a model of any size.
    return Kind(write, read, compare, may_be_large=True, begins_whole=True)


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


def chain(context: Context) -> Kind:
    """What a chain of stages leaves in its folder: states of steps, summaries and scores."""
    output = context.folder / "output"
    stage, scores = output / "stage_1", output / "scores" / "stage_1"
    stage.mkdir(parents=True)
    scores.mkdir(parents=True)
    weights = output / "model_final.pth"
    weights.write_bytes(b"weights")
    step = Step(
        name="stage 1",
        folder=stage,
        commands=(),
        settings={"config": "stage_1_heads.yaml", "epochs": "4"},
        needs={"stage 0/model_final.pth": weights},
        outputs=("summary.json",),
        amounts={"trials": 3},
    )
    summary = {
        "images": 2965,
        "epochs": 4.0,
        "trainable_parameters": 20_500_000,
        "seconds": 3600.5,
        "peak_memory_bytes": 2**33,
        "memory": "GPU",
        "generated": False,
    }
    split = {
        "images": 125,
        "results": {
            "segm": {"AP": 27.5, "AP50": 50.1},
            "coco_segm": {"AP": 27.0, "AP50": 50.8, "APs": 5.0, "APm": 20.6, "APl": 46.9},
        },
        "generated": False,
    }
    step.begin()
    write_json(stage / "summary.json", summary)
    step.finish()
    write_json(
        scores / "scores.json",
        {"datasets": {"cityscapes_instance_val_part3and4of4": split}, "seen": ["part 1"]},
    )
    metrics = [
        {"iteration": at, "total_loss": 1.5 / at, "segm/AP": 20.0 + at} for at in range(1, 9)
    ]
    (stage / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in metrics))
    files = sorted(output.rglob("*.json"))
    contents = {path: path.read_bytes() for path in files}

    def write(rng: random.Random) -> None:
        for path, content in contents.items():
            path.write_bytes(content)
        path = rng.choice(files)
        if rng.random() < 0.25:
            path.write_bytes(mutate_bytes(rng, contents[path]))
            return
        text = contents[path].decode()
        texts = text.splitlines() if path.name == "metrics.json" else [text]
        lines = [json.loads(line) for line in texts]
        at = rng.randrange(len(lines))
        lines[at] = mutate_tree(rng, lines[at])
        path.write_text("\n".join(map(json.dumps, lines)))

    def read() -> None:
        step.read_state()
        rows = stage_rows(output)
        read_curves(stage / "metrics.json")
        for line in to_markdown(rows).splitlines():
            if not line.isprintable() or len(line) > 10_000:
                raise RuntimeError(f"a line that no terminal should get: {line[:200]!r}")
        to_csv(rows)

    return Kind(write, read)
