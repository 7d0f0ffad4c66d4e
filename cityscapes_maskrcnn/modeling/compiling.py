"""Apply ``torch.compile`` to the dense parts of a detector: fewer and larger kernels."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from detectron2.modeling import Backbone, StandardROIHeads
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from cityscapes_maskrcnn.modeling.folding import FoldedConv2d
from cityscapes_maskrcnn.modeling.patch_dct_head import PatchDCTHead
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.text import message_with_type

MODES: Final = ("off", "auto", "on")
# Of one part, in each of its uses (training, validation, prediction). INPUT.MIN_SIZE_TRAIN has 8
# sizes, which images of one aspect ratio do not multiply.
_MAX_SHAPES: Final = 32

logger = logging.getLogger(__name__)


def compile_parts(
    model: nn.Module, mode: str, cache_dir: Path, backend: str = "inductor"
) -> nn.Module:
    """Have a detector's backbone with its pyramid, RPN head, box head and mask head compiled.

    A part is compiled when it is first called with inputs of a shape, and then for each further
    shape: nothing is padded beyond what Detectron2 pads, so shapes change no result. The number of
    regions is left open, so that the box head and the mask head are compiled once. Parts of classes
    of one's own, and other models, stay as they are.

    Args:
        model: on its device, its norms folded, not wrapped by DistributedDataParallel. Changed in
            place; its parameters, buffers and their names are not.
        mode: of :data:`MODES`. "auto": where that works, on a GPU; the log says why not otherwise.
        cache_dir: for what the compiler keeps for the next run; ``TORCHINDUCTOR_CACHE_DIR``, if it
            is set, names another one.
        backend: of ``torch.compile``.

    Returns:
        The model.

    Raises:
        InputError: the mode is unknown; it is "on" and nothing can be compiled here.
    """
    if mode not in MODES:
        raise InputError(f"MODEL.COMPILE {mode!r}: it must be one of {', '.join(MODES)}")
    if mode == "off":
        return model
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir))
    device = next(model.parameters()).device
    reason = _why_not(device, mode, backend)
    if reason and mode == "on":
        raise InputError(f"MODEL.COMPILE on: {reason}")
    if reason:
        logger.info("MODEL.COMPILE auto: nothing is compiled: %s", reason)
        return model
    for part in _parts(model, backend=backend, required=mode == "on"):
        # As an attribute of the module it comes before the method of its class.
        part.module.__dict__[part.method] = part
    return model


def _why_not(device: torch.device, mode: str, backend: str) -> str:
    """Try the compiler.

    Returns:
        Why nothing is to be compiled; empty: it works.
    """
    if mode == "auto" and device.type != "cuda":
        return f"the model is on the {device.type.upper()}; that is for GPUs"
    if mode == "auto" and torch.are_deterministic_algorithms_enabled():
        return "DETERMINISTIC is True"
    try:
        torch.compile(_increment, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # torch and Triton raise errors of many types
        return f"torch.compile does not work here: {message_with_type(error)}"
    return ""


def _increment(x: Tensor) -> Tensor:
    return x + 1


def _parts(model: nn.Module, *, backend: str, required: bool) -> Iterator[CompiledPart]:
    """List the parts of a model that can be compiled."""
    part = partial(CompiledPart, backend=backend, required=required)
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, Backbone):
        yield part("backbone", backbone, launched_together=True)
    rpn = getattr(model, "proposal_generator", None)
    if isinstance(rpn, RPN) and isinstance(rpn.rpn_head, StandardRPNHead):
        yield part("RPN head", rpn.rpn_head)
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, StandardROIHeads):
        return
    if isinstance(heads.box_head, FastRCNNConvFCHead):
        yield part("box head", heads.box_head, regions=True)
    mask_head = getattr(heads, "mask_head", None)
    if isinstance(mask_head, MaskRCNNConvUpsampleHead | PatchDCTHead):
        # Its forward computes losses too.
        yield part("mask head", mask_head, method="layers", regions=True)


class CompiledPart:
    """A method of a module, compiled for each shape of its inputs.

    Args:
        name: for the log.
        module: what the method belongs to.
        backend: of ``torch.compile``.
        required: whether it is an error that the part cannot be compiled.
        method: takes one tensor or a list of tensors.
        regions: whether the first axis counts regions, whose number is left open.
        launched_together: on a GPU, where no gradients are computed, launch all kernels at once, as
            a CUDA graph. That saves the host's time, and keeps the memory of the part's
            intermediate results. The method returns a dict of tensors.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        backend: str,
        required: bool,
        method: str = "forward",
        regions: bool = False,
        launched_together: bool = False,
    ) -> None:
        self.name = name
        self.module = module
        self.method = method
        self._backend = backend
        self._required = required
        self._regions = regions
        self._launched_together = launched_together
        self._plain: Callable[..., Any] = getattr(type(module), method)
        self._folded = [each for each in module.modules() if isinstance(each, FoldedConv2d)]
        # By whether it is a CUDA graph.
        self._compiled: dict[bool, Callable[..., Any]] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._full: set[tuple[Any, ...]] = set()
        self._given_up = False

    def __call__(self, x: Tensor | list[Tensor]) -> Any:
        """Call the method, compiled if these shapes are among those that it is compiled for."""
        tensors = [x] if isinstance(x, Tensor) else x
        # The compiler takes sizes of 0 and 1 for others than those that may vary.
        if self._given_up or (self._regions and len(tensors[0]) < 2):
            return self._plain(self.module, x)
        device_type = tensors[0].device.type
        # Outside of what is compiled, which does not look for changes.
        for layer in self._folded:
            layer.fold(device_type)
        use = self._use_of(device_type)
        key = (use, *(self._shape_of(tensor) for tensor in tensors))
        if key in self._seen:
            try:
                return self._call_compiled(x, device_type)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                # Something else than the shapes has changed.
                return self._compile(x, tensors, key)
        if sum(seen[0] == use for seen in self._seen) >= _MAX_SHAPES:
            if use not in self._full:
                logger.warning(
                    "MODEL.COMPILE: the %s is given inputs of more than %d shapes; it is not"
                    " compiled for further ones",
                    self.name,
                    _MAX_SHAPES,
                )
                self._full.add(use)
            return self._plain(self.module, x)
        return self._compile(x, tensors, key)

    def _compile(self, x: Tensor | list[Tensor], tensors: list[Tensor], key: Any) -> Any:
        """Compute for a new shape, and log how long that took."""
        shapes = ", ".join("x".join(map(str, each.shape)) for each in tensors)
        for layer in self._folded:
            layer.folded_by_caller = True
        if self._regions:
            for each in tensors:
                torch._dynamo.mark_dynamic(each, 0)
        start = time.perf_counter()
        try:
            # Beyond its limit torch would go on uncompiled, or raise an error for a whole graph.
            # The backward pass too, so that its time counts and its errors are seen here.
            with (
                torch._dynamo.config.patch(recompile_limit=4 * _MAX_SHAPES),
                torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            ):
                result = self._call_compiled(x, tensors[0].device.type)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # those of torch, Triton and C++ compilers have many types
            reason = f"the {self.name} cannot be compiled for {shapes}: {message_with_type(error)}"
            if self._required:
                raise InputError(f"MODEL.COMPILE on: {reason}") from error
            logger.warning("MODEL.COMPILE auto: %s; it runs without compilation", reason)
            self._given_up = True
            return self._plain(self.module, x)
        self._seen.add(key)
        logger.info(
            "MODEL.COMPILE: compiled the %s for %s in %.1f s",
            self.name,
            shapes,
            time.perf_counter() - start,
        )
        return result

    def _call_compiled(self, x: Tensor | list[Tensor], device_type: str) -> Any:
        is_graph = self._launched_together and device_type == "cuda" and not torch.is_grad_enabled()
        if is_graph not in self._compiled:
            # One graph, or an error: a break would be slow without a word.
            self._compiled[is_graph] = torch.compile(
                self._plain,
                fullgraph=True,
                dynamic=None if self._regions else False,
                backend=self._backend,
                options={"triton.cudagraphs": True} if is_graph else None,
            )
        result = self._compiled[is_graph](self.module, x)
        # The next call writes its results to the same memory.
        return {name: each.clone() for name, each in result.items()} if is_graph else result

    def _use_of(self, device_type: str) -> tuple[Any, ...]:
        autocast = torch.is_autocast_enabled(device_type)
        return (
            self.module.training,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_autocast_dtype(device_type) if autocast else None,
        )

    def _shape_of(self, tensor: Tensor) -> tuple[Any, ...]:
        """Get what another compilation is needed for: of regions not how many there are."""
        skipped = 1 if self._regions else 0
        return (*tensor.shape[skipped:], tensor.stride(), tensor.dtype, tensor.requires_grad)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model compiles for itself.
        return {**self.__dict__, "_compiled": {}, "_seen": set()}
