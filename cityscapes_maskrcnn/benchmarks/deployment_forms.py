"""The forms of a trained model that are compared: how PyTorch runs it, and exported files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cityscapes_maskrcnn.deploy.runtime import read_card
from cityscapes_maskrcnn.utils.errors import InputError

_EXPORTED: Final = {
    "float32": "tools/export_model.py",
    "fp16": "tools/compress_model.py quantize --form fp16",
    "int8": "tools/compress_model.py quantize",
}


@dataclass(frozen=True)
class Form:
    """A form of the model: a config that PyTorch runs, or an exported file.

    Attributes:
        name: for the table.
        group: what it is an example of; a colour in the picture.
        config_file: of PyTorch.
        opts: KEY VALUE pairs, ``MODEL.WEIGHTS`` among them.
        file: the ``.onnx`` file; None: PyTorch.
        missing: why there is nothing to measure.
    """

    name: str
    group: str
    config_file: str = ""
    opts: tuple[str, ...] = ()
    file: Path | None = None
    missing: str = ""


def list_forms(
    config_file: str,
    opts: Sequence[str],
    *,
    scale: tuple[int, int],
    num_proposals: int,
    sizes: Sequence[int] | None,
    proposals: Sequence[int],
    also: Sequence[Sequence[str]],
    onnx: Sequence[Path],
    no_bfloat16: str,
) -> list[Form]:
    """List the forms; the first one is PyTorch in float32.

    Args:
        config_file: of the model.
        opts: KEY VALUE pairs, with ``MODEL.WEIGHTS``; every form in PyTorch has them.
        scale: ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` of the model, in pixels.
        num_proposals: ``MODEL.RPN.POST_NMS_TOPK_TEST`` of the model.
        sizes: shorter sides of the images in pixels; None: half and three quarters of the model's.
            The longer side changes as much.
        proposals: other numbers of proposals.
        also: further models: name, config, weights.
        onnx: exported files.
        no_bfloat16: why PyTorch in bfloat16 is not worth measuring here; empty: it is.

    Raises:
        InputError: ``opts`` name a precision or compiling, there are ``sizes`` though no image is
            resized, or an exported file is missing or damaged.
    """
    named = next((key for key in opts[::2] if key in ("TEST.PRECISION", "MODEL.COMPILE")), None)
    if named:
        raise InputError(
            f"{named}: remove it; every precision, and compilation, is a separate form"
        )
    if sizes and not scale[0]:
        raise InputError(
            "INPUT.MIN_SIZE_TEST 0: no image is resized, so --sizes cannot be compared"
        )
    # Further models have them too, and a config file of a training may name others.
    float32 = ("TEST.PRECISION", "float32", "MODEL.COMPILE", "off")
    base = Form(
        f"PyTorch float32 ({scale[0]} px, {num_proposals} proposals)",
        "PyTorch",
        config_file,
        (*opts, *float32),
    )
    return [
        base,
        *_precisions(base, no_bfloat16),
        *_sizes(base, scale, sizes or (scale[0] // 2, 3 * scale[0] // 4)),
        *_proposals(base, num_proposals, proposals),
        *_others(base, also),
        *_exported(onnx),
    ]


def _precisions(base: Form, no_bfloat16: str) -> Iterator[Form]:
    """PyTorch in half precision, and compiled."""
    for name, key, value, missing in (
        ("bfloat16", "TEST.PRECISION", "bfloat16", no_bfloat16),
        ("float16", "TEST.PRECISION", "float16", ""),
        ("float32, compiled", "MODEL.COMPILE", "on", ""),
    ):
        yield Form(
            f"PyTorch {name}",
            "PyTorch",
            config_file=base.config_file,
            opts=(*base.opts, key, value),
            missing=missing,
        )


def _sizes(base: Form, scale: tuple[int, int], sizes: Iterable[int]) -> Iterator[Form]:
    """PyTorch with images of other sizes."""
    for size in sizes:
        if size != scale[0]:
            longer = round(scale[1] * size / scale[0])
            keys = ("INPUT.MIN_SIZE_TEST", str(size), "INPUT.MAX_SIZE_TEST", str(longer))
            yield Form(f"input {size} px", "input size", base.config_file, (*base.opts, *keys))


def _proposals(base: Form, top: int, proposals: Iterable[int]) -> Iterator[Form]:
    """PyTorch with other numbers of proposals."""
    for number in proposals:
        if number != top:
            keys = ("MODEL.RPN.POST_NMS_TOPK_TEST", str(number))
            name = f"{number} proposals"
            yield Form(name, "proposals", base.config_file, (*base.opts, *keys))


def _others(base: Form, also: Sequence[Sequence[str]]) -> Iterator[Form]:
    """Further models, pruned ones above all, with the KEY VALUE pairs of the base."""
    for name, config_file, weights in also:
        opts = (*base.opts, "MODEL.WEIGHTS", weights)
        yield Form(f"PyTorch float32, {name}", "other model", config_file, opts)
    if not also:
        advice = "none given: tools/compress_model.py prune writes one; name it with --also"
        yield Form("PyTorch float32, pruned", "other model", missing=advice)


def _exported(files: Sequence[Path]) -> Iterator[Form]:
    """Exported files, by what they compute in."""
    kinds = [read_card(file).get("quantized", {}).get("form", "float32") for file in files]
    for kind, file in zip(kinds, files, strict=True):
        name = f"ONNX Runtime {kind}, {file.resolve().parent.name}"
        yield Form(name, "ONNX Runtime", file=file)
    for kind, program in _EXPORTED.items():
        if kind not in kinds:
            advice = f"none given: {program} writes one; name it with --onnx"
            yield Form(f"ONNX Runtime {kind}", "ONNX Runtime", missing=advice)
