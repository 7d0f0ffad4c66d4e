"""Weights of other formats, and what describes and converts checkpoints."""

from __future__ import annotations

import json
import pickle
import random
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import PROJECT, STAGE_1, Context, tiny
from mutators import ODD, mutate_bytes, mutate_tree
from safetensors.torch import load, save
from state_kinds import SHORT, start_quietly, write_checkpoint
from torch import nn
from variants import Kind

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.checkpoint_origin import describe_checkpoint, format_description
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.files import to_json

ODD_ARRAYS = (
    *(np.zeros(()), np.zeros(0), np.zeros(3), np.full(8, np.nan), np.zeros(8, bool)),
    *(np.zeros(8, np.int8), np.zeros(8, np.complex64), np.zeros(8, "f2"), np.array(["a", "b"])),
    *(np.zeros(2, "f8,i4"), np.zeros(3, "M8[s]"), np.array([None, {}]), np.ones((8, 8)).T),
    *(np.ma.masked_array([1.0, 2.0]), np.float32(1.5), b"bytes", (1, 2), {1, 2}, 1j, range(3)),
)


def _loaded(model: nn.Module, cfg: Any) -> dict[str, torch.Tensor]:
    """Load the weights of a config for inference."""
    load_for_inference(model, cfg)
    return {name: value.clone() for name, value in model.state_dict().items()}


def _difference(before: Any, values: Any, loaded: Any) -> str:
    """Where loaded tensors are neither what they were nor what a file has: the fault in words."""
    for name, value in loaded.items():
        if not value.isfinite().all():
            return f"not finite: {name}"
        if torch.equal(before[name], value):
            continue
        wanted = torch.as_tensor(values[name]) if name in values else None
        if wanted is None or not torch.equal(wanted.to(value), value):
            return f"{name} is not what the file has"
    return ""


def weights_pkl(context: Context) -> Kind:
    """A ``.pkl`` file of Detectron2's model zoo: what is loaded is what pickle reads."""
    start_quietly(context)
    file = context.folder / "model.pkl"
    opts = ["MODEL.WEIGHTS", str(file), "MODEL.WEIGHTS_ALLOW_PICKLE", "('*.pkl',)"]
    cfg = build_config(str(STAGE_1), [*tiny(SHORT), *opts])
    model = Trainer.build_model(cfg).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arrays = {name: value.numpy() for name, value in before.items()}
    content = {"model": arrays, "__author__": "fuzz"}

    def write(rng: random.Random) -> None:
        protocol = rng.choice((0, 2, 2, 4, 5))
        whole = rng.random() < 0.4
        tree = content if whole else mutate_tree(rng, content, (*ODD, *ODD_ARRAYS))
        data = pickle.dumps(tree, protocol)
        file.write_bytes(mutate_bytes(rng, data) if whole else data)

    def compare(loaded: Any) -> str:
        values = pickle.loads(file.read_bytes(), encoding="latin1")
        if isinstance(inner := values.get("model"), dict):
            values = inner
        return _difference(before, values, loaded)

    return Kind(write, partial(_loaded, model, cfg), compare)


def weights_safetensors(context: Context) -> Kind:
    """A ``.safetensors`` file: what is loaded is what its library reads."""
    start_quietly(context)
    file = context.folder / "model.safetensors"
    cfg = build_config(str(STAGE_1), [*tiny(SHORT), "MODEL.WEIGHTS", str(file)])
    model = Trainer.build_model(cfg).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    content = save(before)
    # The length of the header, the header as JSON, numbers.
    length = int.from_bytes(content[:8], "little")
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]

    def write(rng: random.Random) -> None:
        if rng.random() < 0.4:
            file.write_bytes(mutate_bytes(rng, content))
            return
        text = json.dumps(mutate_tree(rng, header)).encode()
        size = rng.choice((len(text), len(text), len(text), len(text) + 1, 0, 2**63, 2**64 - 1))
        file.write_bytes(size.to_bytes(8, "little") + text + numbers)

    def compare(loaded: Any) -> str:
        return _difference(before, load(file.read_bytes()), loaded)

    return Kind(write, partial(_loaded, model, cfg), compare)


def checkpoint_tools(context: Context) -> Kind:
    """A checkpoint that is described, or converted: the tensors are what the file has."""
    start_quietly(context)
    cfg = build_config(str(STAGE_1), [*tiny(SHORT), "OUTPUT_DIR", str(context.folder / "o")])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = 1
    trainer.train()
    trainer.checkpointer.save("model_fuzz", iteration=0)
    content = torch.load(context.folder / "o/model_fuzz.pth", weights_only=True)
    file, converted = context.folder / "model.pth", context.folder / "converted.pth"
    convert = runpy.run_path(str(PROJECT / "tools/convert_weights.py"))["main"]
    describes = [True]

    def write(rng: random.Random) -> None:
        describes[0] = rng.random() < 0.5
        write_checkpoint(rng, file, content)
        converted.unlink(missing_ok=True)

    def read() -> None:
        if not describes[0]:
            convert(["--keep-names", str(file), str(converted)])
            return
        description = describe_checkpoint(Path(file))
        to_json(description, indent=1)
        for line in format_description(description).splitlines():
            if not line.isprintable() or len(line) > 10_000:
                raise RuntimeError(f"a line that no terminal should get: {line[:200]!r}")

    def compare(_: Any) -> str:
        if describes[0]:
            return ""
        # The tool takes files with NumPy's values too, which torch's safe reader refuses.
        numpy_values = [np._core.multiarray.scalar, np.dtype, *vars(np.dtypes).values()]
        with torch.serialization.safe_globals([each for each in numpy_values if callable(each)]):
            values = torch.load(file, weights_only=True)
        while isinstance(values, dict) and isinstance(inner := values.get("model"), dict):
            values = inner
        found = torch.load(converted, weights_only=True)["model"]
        for name, value in values.items():
            if torch.is_tensor(value) and not torch.equal(found[name], value):
                return f"{name} is not what the file has"
        return ""

    return Kind(write, read, compare)
