"""A trained model in several forms: official AP against time, file size and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate
from tqdm import tqdm

from cityscapes_maskrcnn.benchmarks.deployment_forms import Form, list_forms
from cityscapes_maskrcnn.benchmarks.form_measurement import Measured, Setting, measure_in_process
from cityscapes_maskrcnn.benchmarks.rows import device_name
from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.data.registration import check_dataset_names, is_generated_dataset
from cityscapes_maskrcnn.evaluation.evaluator import image_and_ground_truth_files
from cityscapes_maskrcnn.evaluation.instance_ap import PROTOCOL
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_json
from cityscapes_maskrcnn.utils.spread import spread
from cityscapes_maskrcnn.visualization.style import About
from cityscapes_maskrcnn.visualization.trade_chart import TradePoint, plot_trade


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
    if min(num_timed, blocks, *(sizes or ()), *proposals) < 1:
        raise InputError("--images, --repeats, --sizes and --proposals must be 1 or more")
    cfg = build_config(config_file, list(opts))
    dataset = dataset or next(iter(cfg.DATASETS.TEST), "")
    check_dataset_names([dataset])
    forms = list_forms(
        config_file,
        (*opts, "DATASETS.TEST", f"('{dataset}',)"),
        scale=(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        num_proposals=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        sizes=sizes,
        proposals=proposals,
        also=also,
        onnx=onnx,
        no_bfloat16=_emulated_bfloat16(cfg.MODEL.DEVICE),
    )
    images = image_and_ground_truth_files(dataset)
    setting = Setting(
        base=forms[0],
        dataset=dataset,
        images=tuple(images),
        timed=tuple(spread([image for image, _ in images], num_timed)),
        blocks=blocks,
        device=cfg.MODEL.DEVICE,
        num_threads=torch.get_num_threads(),
    )
    rows = _measure_all(forms, setting)
    about = About(
        dataset=dataset,
        num_images=len(images),
        generated=is_generated_dataset(dataset),
        model=device_name(torch.device(cfg.MODEL.DEVICE)),
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


def _emulated_bfloat16(device: str) -> str:
    """Why bfloat16 cannot gain anything on a device; empty where it can."""
    # DEFAULT: not even AVX2.
    if device == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"):
        return "without AVX-512 the processor emulates bfloat16, several times slower than float32"
    return ""


def _measure_all(forms: Sequence[Form], setting: Setting) -> list[Row]:
    results: list[Measured | str] = []
    with tqdm(forms, unit="form") as progress:
        for form in progress:
            progress.set_description(form.name)
            result = form.missing or measure_in_process(form, setting)
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
