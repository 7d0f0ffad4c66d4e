"""A trained model in several forms: official AP against time, file size and memory.

torch is imported inside of functions: an exported file is measured in a process without it.
"""

from __future__ import annotations

import io
import itertools
import math
import multiprocessing
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

from tabulate import tabulate
from tqdm import tqdm

from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor, read_card
from cityscapes_maskrcnn.deploy.scoring import exported_ap, refuse_seen_by_exported
from cityscapes_maskrcnn.evaluation.instance_ap import PROTOCOL
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.memory import peak_resident_bytes
from cityscapes_maskrcnn.utils.spread import spread
from cityscapes_maskrcnn.visualization.style import About
from cityscapes_maskrcnn.visualization.trade_chart import TradePoint, plot_trade

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


@dataclass(frozen=True)
class Setting:
    """What all forms are measured with.

    Attributes:
        base: the form that each one is timed in turn with.
        dataset: name of the images.
        images: of each the file and that of its instance ids.
        timed: the files that are timed.
        blocks: how often they are.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        num_threads: of either runtime on a CPU.
    """

    base: Form
    dataset: str
    images: tuple[tuple[Path, Path], ...]
    timed: tuple[Path, ...]
    blocks: int
    device: str
    num_threads: int


@dataclass(frozen=True)
class Measured:
    """What one process measured.

    Attributes:
        ap: official AP in percent.
        milliseconds: an image, from resized pixels to boxes, classes, scores and 28x28 masks.
        base_milliseconds: of the base form, in turn with it.
        file_bytes: of the exported file; of PyTorch parameters and buffers.
        memory_bytes: the most that the process held after the timed images; on a GPU what it took
            of the GPU.
        min_size: of images in pixels, as ``INPUT.MIN_SIZE_TEST``.
        max_size: as ``INPUT.MAX_SIZE_TEST``.
        proposals: as ``MODEL.RPN.POST_NMS_TOPK_TEST``.
    """

    ap: float
    milliseconds: float
    base_milliseconds: float
    file_bytes: int
    memory_bytes: int
    min_size: int
    max_size: int
    proposals: int


@dataclass(frozen=True)
class Row:
    """A row of the table; what could not be measured is None and ``note`` says why."""

    name: str
    group: str
    ap: float | None = None
    milliseconds: float | None = None
    times_faster: float | None = None
    file_megabytes: float | None = None
    memory_megabytes: float | None = None
    min_size: int | None = None
    max_size: int | None = None
    proposals: int | None = None
    note: str = ""


class _Runnable(Protocol):
    file_bytes: int
    min_size: int
    max_size: int
    proposals: int

    def prepare(self, image: Path) -> Any: ...

    def predict(self, prepared: Any) -> object: ...

    def score(self, setting: Setting) -> float: ...


def benchmark_deployment(
    *,
    config_file: str,
    opts: Sequence[str],
    dataset: str,
    also: Sequence[Sequence[str]],
    onnx: Sequence[Path],
    sizes: Sequence[int] | None,
    proposals: Sequence[int],
    num_timed: int,
    blocks: int,
    json_file: Path | None,
    picture: Path | None,
) -> str:
    """Measure every form in a process of its own, in turn with PyTorch in float32.

    Args:
        config_file: of the model.
        opts: KEY VALUE pairs, with ``MODEL.WEIGHTS``.
        dataset: to score on; empty: the first of ``DATASETS.TEST``.
        also: further models: name, config, weights; ``opts`` hold for them too.
        onnx: exported files.
        sizes: shorter sides of the images in pixels; None: half and three quarters of
            ``INPUT.MIN_SIZE_TEST``. The longer side changes as much.
        proposals: ``RPN.POST_NMS_TOPK_TEST``.
        num_timed: how many of the images are timed, one at a time.
        blocks: how often they are; the median counts.
        json_file: for the rows; None: nowhere.
        picture: PNG file; None: none is drawn.

    Returns:
        A table, in which each form that cannot run here has the reason. The name of a further
        model or an exported file says where its images or proposals differ from the model's.

    Raises:
        InputError: the model itself cannot run, a number is out of range, ``opts`` name a precision
            or compiling, or the dataset is unknown, or has no labels or no object to find.
    """
    import torch

    from cityscapes_maskrcnn.benchmarks.rows import device_name
    from cityscapes_maskrcnn.cli import build_config
    from cityscapes_maskrcnn.data.registration import check_dataset_names, is_generated_dataset
    from cityscapes_maskrcnn.evaluation.evaluator import image_and_ground_truth_files

    if min(num_timed, blocks, *(sizes or ()), *proposals) < 1:
        raise InputError("--images, --repeats, --sizes and --proposals must be 1 or more")
    named = next((key for key in opts[::2] if key in ("TEST.PRECISION", "MODEL.COMPILE")), None)
    if named:
        raise InputError(
            f"{named}: remove it; every precision, and compiling, is a form of its own"
        )
    cfg = build_config(config_file, list(opts))
    dataset = dataset or next(iter(cfg.DATASETS.TEST), "")
    check_dataset_names([dataset])
    images = image_and_ground_truth_files(dataset)
    scale = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    if sizes and not scale[0]:
        raise InputError(
            "INPUT.MIN_SIZE_TEST 0: no image is resized, so --sizes cannot be compared"
        )
    top = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    # Further models have them too, and a config file of a training may name others.
    float32 = ("TEST.PRECISION", "float32", "MODEL.COMPILE", "off")
    own = (*opts, "DATASETS.TEST", f"('{dataset}',)", *float32)
    base = Form(f"PyTorch float32 ({scale[0]} px, {top} proposals)", "PyTorch", config_file, own)
    forms = [
        base,
        *_precisions(base),
        *_sizes(base, scale, sizes or (scale[0] // 2, 3 * scale[0] // 4)),
        *_proposals(base, top, proposals),
        *_others(base, also),
        *_exported(onnx),
    ]
    setting = Setting(
        base=base,
        dataset=dataset,
        images=tuple(images),
        timed=tuple(spread([image for image, _ in images], num_timed)),
        blocks=blocks,
        device=cfg.MODEL.DEVICE,
        num_threads=torch.get_num_threads(),
    )
    rows = _measure_all(forms, setting)
    machine = device_name(torch.device(cfg.MODEL.DEVICE))
    about = About(
        dataset=dataset,
        num_images=len(images),
        generated=is_generated_dataset(dataset),
        model=machine,
        protocol=PROTOCOL,
    )
    if json_file is not None:
        content = {"about": asdict(about), "blocks": blocks, "timed_images": num_timed}
        write_json(json_file, {**content, "rows": [asdict(row) for row in rows]})
    if picture is not None:
        points = [
            TradePoint(row.name, row.group, row.ap, row.milliseconds, file, memory)
            for row in rows
            if row.ap is not None
            and row.milliseconds is not None
            and (file := row.file_megabytes) is not None
            and (memory := row.memory_megabytes) is not None
        ]
        missing = [row.name for row in rows if row.ap is None]
        plot_trade(picture, points, missing=missing, about=about)
    return f"{about}\n\n{_table(rows)}"


def _precisions(base: Form) -> Iterator[Form]:
    """PyTorch in half precision, and compiled."""
    for name, key, value in (
        ("bfloat16", "TEST.PRECISION", "bfloat16"),
        ("float16", "TEST.PRECISION", "float16"),
        ("float32, compiled", "MODEL.COMPILE", "on"),
    ):
        yield Form(f"PyTorch {name}", "PyTorch", base.config_file, (*base.opts, key, value))


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
        advice = "none given: tools/compress_model.py prune writes one; name it by --also"
        yield Form("PyTorch float32, pruned", "other model", missing=advice)


def _exported(files: Sequence[Path]) -> Iterator[Form]:
    """Exported files, by what they compute in."""
    kinds = [read_card(file).get("quantized", {}).get("form", "float32") for file in files]
    for kind, file in zip(kinds, files, strict=True):
        name = f"ONNX Runtime {kind}, {file.resolve().parent.name}"
        yield Form(name, "ONNX Runtime", file=file)
    for kind, program in _EXPORTED.items():
        if kind not in kinds:
            advice = f"none given: {program} writes one; name it by --onnx"
            yield Form(f"ONNX Runtime {kind}", "ONNX Runtime", missing=advice)


def _measure_all(forms: Sequence[Form], setting: Setting) -> list[Row]:
    results: list[Measured | str] = []
    with tqdm(forms, unit="form") as progress:
        for form in progress:
            progress.set_description(form.name)
            result = form.missing or _in_process(form, setting)
            if form is setting.base:
                base = _usable(result, setting.dataset)
            results.append(result)
    bases = [each.base_milliseconds for each in results if isinstance(each, Measured)]
    return [
        _row(form, result, median(bases), base) for form, result in zip(forms, results, strict=True)
    ]


def _usable(result: Measured | str, dataset: str) -> Measured:
    """Refuse a base form that no other one can be compared with."""
    if isinstance(result, str):
        raise InputError(result)
    if math.isnan(result.ap):
        raise InputError(f"{dataset}: no object to find, so AP is undefined")
    return result


def _row(form: Form, result: Measured | str, base_milliseconds: float, base: Measured) -> Row:
    if isinstance(result, str):
        return Row(form.name, form.group, note=result)
    share = result.milliseconds / result.base_milliseconds
    others = []
    if (result.min_size, result.max_size) != (base.min_size, base.max_size):
        others.append(f"{result.min_size}/{result.max_size} px")
    if result.proposals != base.proposals:
        others.append(f"{result.proposals} proposals")
    # The names of these groups say what differs.
    is_named = not others or form.group in ("input size", "proposals")
    return Row(
        form.name if is_named else f"{form.name} ({', '.join(others)})",
        form.group,
        ap=None if math.isnan(result.ap) else result.ap,
        # Others may have slowed the machine while this form was measured, and the base with it.
        milliseconds=share * base_milliseconds,
        times_faster=1 / share,
        file_megabytes=result.file_bytes / 1e6,
        memory_megabytes=result.memory_bytes / 1e6,
        min_size=result.min_size,
        max_size=result.max_size,
        proposals=result.proposals,
        note="AP is undefined: no object of its classes" if math.isnan(result.ap) else "",
    )


def _in_process(form: Form, setting: Setting) -> Measured | str:
    """Measure a form in a process of its own; a text says why that is not possible."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_or_reason, form, setting).result()
        except BrokenProcessPool:
            return "its process was killed, perhaps for lack of memory"


def measure_or_reason(form: Form, setting: Setting) -> Measured | str:
    """Measure a form in this process; a text says why that is not possible.

    What fails in the base form is a fault of all, and raised unless it is an :class:`InputError`.
    """
    try:
        return measure(form, setting)
    except InputError as error:
        return " ".join(str(error).split())
    except Exception as error:
        if form == setting.base:
            raise
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def measure(form: Form, setting: Setting) -> Measured:
    """Measure a form in this process, where nothing else has run so far.

    Raises:
        InputError: it cannot run here, or has seen images that it is to be scored on.
    """
    # Progress bars of scoring would cross the caller's.
    with redirect_stderr(io.StringIO()):
        before = _memory(setting.device)
        model = _load(form, setting)
        prepared = [model.prepare(file) for file in setting.timed]
        for each in prepared:
            model.predict(each)
        memory = _memory(setting.device)
        if setting.device.startswith("cuda"):
            memory -= before
        ap = model.score(setting)
        base = _load(setting.base, setting)
        works: dict[Hashable, Callable[[], object]] = {
            "form": _in_turn(model, prepared),
            "base": _in_turn(base, [base.prepare(file) for file in setting.timed]),
        }
        from cityscapes_maskrcnn.benchmarks.clock import median_times

        times = median_times(works, blocks=setting.blocks, calls=len(prepared), warm_up=1)
    return Measured(
        ap=ap,
        milliseconds=times["form"],
        base_milliseconds=times["base"],
        file_bytes=model.file_bytes,
        memory_bytes=memory,
        min_size=model.min_size,
        max_size=model.max_size,
        proposals=model.proposals,
    )


def _in_turn(model: _Runnable, prepared: Sequence[Any]) -> Callable[[], object]:
    images = itertools.cycle(prepared)
    return lambda: model.predict(next(images))


def _memory(device: str) -> int:
    """Bytes: of a GPU those in use, which neither runtime gives back; else this process' peak."""
    if not device.startswith("cuda"):
        return peak_resident_bytes()
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _load(form: Form, setting: Setting) -> _Runnable:
    return _OnnxForm(form.file, setting) if form.file else _TorchForm(form, setting)


class _OnnxForm:
    """An exported file in ONNX Runtime."""

    def __init__(self, file: Path, setting: Setting) -> None:
        self._file = file
        self._predictor = OnnxPredictor(
            file, device=setting.device, num_threads=setting.num_threads
        )
        self.file_bytes = file.stat().st_size
        card = self._predictor.card
        self.min_size, self.max_size = card["input"]["min_size"], card["input"]["max_size"]
        self.proposals = card["thresholds"]["proposals"]

    def prepare(self, image: Path) -> Any:
        return self._predictor.prepare(image)

    def predict(self, prepared: Any) -> object:
        return self._predictor(prepared, paste_masks=False)

    def score(self, setting: Setting) -> float:
        images = [image for image, _ in setting.images]
        refuse_seen_by_exported(
            self._predictor,
            str(self._file),
            dataset=setting.dataset,
            images=images,
            flag="--score",
        )
        return exported_ap(self._predictor, setting.images)


class _TorchForm:
    """A config and its weights in PyTorch."""

    def __init__(self, form: Form, setting: Setting) -> None:
        import torch

        from cityscapes_maskrcnn.cli import build_config
        from cityscapes_maskrcnn.engine.predictor import Predictor

        torch.set_num_threads(setting.num_threads)
        self._cfg = build_config(form.config_file, [*form.opts, "MODEL.DEVICE", setting.device])
        self._predictor = Predictor(self._cfg, self._cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        state = self._predictor.model.state_dict()
        self.file_bytes = sum(each.numel() * each.element_size() for each in state.values())
        self.min_size = self._cfg.INPUT.MIN_SIZE_TEST
        self.max_size = self._cfg.INPUT.MAX_SIZE_TEST
        self.proposals = self._cfg.MODEL.RPN.POST_NMS_TOPK_TEST

    def prepare(self, image: Path) -> Any:
        return self._predictor.prepare(str(image))

    def predict(self, prepared: Any) -> object:
        return self._predictor(prepared, paste_masks=False)

    def score(self, setting: Setting) -> float:
        from cityscapes_maskrcnn.deploy.export import score_checkpoint
        from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator

        evaluator = CityscapesInstanceEvaluator(setting.dataset, coco=False)
        return score_checkpoint(self._cfg, self._predictor.model, evaluator)["AP"]


def _table(rows: Iterable[Row]) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    cells = [
        (
            row.name,
            number(row.ap, 2),
            number(row.milliseconds, 1),
            "-" if row.times_faster is None else f"{row.times_faster:.2f}x",
            number(row.file_megabytes, 1),
            number(row.memory_megabytes, 0),
            row.note,
        )
        for row in rows
    ]
    headers = ("", "AP, %", "ms an image", "faster", "file, MB", "memory, MB", "note")
    align = ("left", *("right",) * 5, "left")
    return tabulate(cells, headers, "github", colalign=align, disable_numparse=True)
