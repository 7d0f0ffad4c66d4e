"""Measure a form of a model in a separate process: official AP, time, file size and memory.

torch is imported inside of functions: an exported file is measured without it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cityscapes_maskrcnn.benchmarks.deployment_forms import Form
from cityscapes_maskrcnn.benchmarks.new_process import in_new_process
from cityscapes_maskrcnn.deploy.runtime import OnnxPredictor
from cityscapes_maskrcnn.deploy.scoring import exported_scores, refuse_seen_by_exported
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.memory import peak_resident_bytes


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


class _Runnable(Protocol):
    file_bytes: int
    min_size: int
    max_size: int
    proposals: int

    def prepare(self, image: Path) -> Any: ...

    def predict(self, prepared: Any) -> object: ...

    def score(self, setting: Setting) -> float: ...


def measure_in_process(form: Form, setting: Setting) -> Measured | str:
    """Measure a form in a process of its own; a text says why that is not possible."""
    try:
        return in_new_process(measure_or_reason, form, setting)
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
        return exported_scores(self._predictor, setting.images)["AP"]


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
