"""Fold frozen BatchNorm into the convolution before it: one pass less over every feature map."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class FoldedConv2d(Conv2d):
    """Detectron2's convolution, which multiplies a norm that stands still into its weight.

    ``norm(conv(x))`` is the convolution of ``x`` by ``weight * scale``, with the bias ``shift``.
    The result is equal but for rounding; parameters and buffers stay what they are, and so do
    their gradients and ``state_dict()``.

    * :class:`FrozenBatchNorm2d` is folded always, live BatchNorm while it is in evaluation mode and
      nothing is learnt.
    * A convolution whose weight is learnt multiplies anew in every step, as part of the graph.
      Otherwise the product is kept, in the precision and memory format in which it is used, until
      one of its tensors changes or :meth:`train` or :meth:`eval` is called.

    A change is seen by a tensor's version and address. Writing through ``.data`` into a tensor of a
    layer that has been used, and fused optimizers, leave both as they are: call :meth:`train` or
    :meth:`eval` afterwards, as Detectron2's trainer and evaluation do.

    :func:`fold_frozen_norms` builds it.

    Attributes:
        folded_by_caller: while being compiled, take the product that :meth:`fold` was last asked
            for; False: compute it as part of the graph.
    """

    folded_by_caller = False
    _product: _Product | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and activate, shape (N, C, H, W)."""
        if not self._can_fold():
            return super().forward(x)
        if torch.compiler.is_compiling():
            product = self._product if self.folded_by_caller else None
        else:
            product = self.fold(x.device.type)
        weight, bias = self._multiply() if product is None else (product.weight, product.bias)
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def fold(self, device_type: str) -> _Product | None:
        """Bring the product up to date.

        Args:
            device_type: whose autocast is asked for the precision.

        Returns:
            The product; None where there is none to keep.
        """
        sources = self._sources()
        if not self._can_fold() or (
            torch.is_grad_enabled() and any(each.requires_grad for each in sources)
        ):
            self._product = None
            return None
        dtype = self.weight.dtype
        if torch.is_autocast_enabled(device_type) and dtype is torch.float32:
            dtype = torch.get_autocast_dtype(device_type)
        product = self._product
        if product is None or not product.fits(sources, dtype):
            # Outside of inference mode: what is made in it cannot be used in training.
            with (
                torch.inference_mode(mode=False),
                torch.no_grad(),
                torch.autocast(device_type, enabled=False),
            ):
                weight, bias = self._multiply()
                product = self._product = _Product(
                    weight=weight.to(dtype),
                    bias=bias.to(dtype),
                    # They keep the memory from being given to other tensors: an address is proof.
                    sources=[each.detach() for each in sources],
                    versions=[each._version for each in sources],
                )
        return product

    def train(self, mode: bool = True) -> FoldedConv2d:
        """Set the mode as :class:`nn.Module`, and forget the product."""
        self._product = None
        super().train(mode)
        return self

    def _can_fold(self) -> bool:
        # BatchNorm in training mode normalises by the batch.
        return isinstance(self.norm, FrozenBatchNorm2d) or not (
            self.norm.training or torch.is_grad_enabled()
        )

    def _sources(self) -> list[Tensor]:
        """List the tensors that the product is made of.

        The counter is among them: BatchNorm's kernels do not count their changes of the statistics.
        """
        # Not by their names: every layer asks for them in every step.
        tensors = (
            *self._parameters.values(),
            *self.norm._parameters.values(),
            *self.norm._buffers.values(),
        )
        return [each for each in tensors if each is not None]

    def _multiply(self) -> tuple[Tensor, Tensor]:
        """Compute weight, shape (O, C, h, w), and bias, shape (O,), of the folded convolution."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        return self.weight * scale.reshape(-1, 1, 1, 1), shift

    def __getstate__(self) -> dict[str, Any]:
        # A copy has tensors of its own.
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_product": None, "folded_by_caller": False}


class _Product(NamedTuple):
    """The tensors of a folded convolution and what they were computed from."""

    weight: Tensor
    bias: Tensor
    sources: list[Tensor]
    versions: list[int]

    def fits(self, sources: list[Tensor], dtype: torch.dtype) -> bool:
        """Whether it is still the product of these tensors, in this precision."""
        return (
            self.weight.dtype is dtype
            and len(sources) == len(self.sources)
            and all(
                now._version == version and now.data_ptr() == then.data_ptr()
                for now, then, version in zip(sources, self.sources, self.versions, strict=True)
            )
        )


def fold_frozen_norms(model: nn.Module) -> nn.Module:
    """Fold BatchNorm into the convolutions of a model, in place, wherever it stands still.

    Args:
        model: any; in it Detectron2's :class:`Conv2d` with a norm that is FrozenBatchNorm2d, or
            BatchNorm with running statistics, become :class:`FoldedConv2d`. Freeze what is to be
            frozen before. Names, values and the kind of parameters and buffers do not change.

    Returns:
        The model.
    """
    for module in model.modules():
        # Of a subclass nobody knows what it computes.
        if type(module) is Conv2d and _is_known(module.norm):
            module.__class__ = FoldedConv2d
    return model


def fold_for_good(model: nn.Module) -> nn.Module:
    """Replace norms behind convolutions by the product of both, for export and pruning.

    Args:
        model: changed in place. Detectron2's :class:`Conv2d` with a norm that
            :func:`fold_frozen_norms` folds has afterwards a weight and a bias, and no norm. The
            bias is trained if the weight is.

    Returns:
        The model.
    """
    fold_frozen_norms(model)
    for module in model.modules():
        if isinstance(module, FoldedConv2d):
            with torch.no_grad():
                weight, bias = module._multiply()
            is_trained = module.weight.requires_grad
            module.__class__ = Conv2d
            module.norm = None
            module.weight = nn.Parameter(weight, requires_grad=is_trained)
            module.bias = nn.Parameter(bias, requires_grad=is_trained)
    return model


def activate_in_place(model: nn.Module) -> nn.Module:
    """Have ReLU overwrite its input where nothing else reads that, as Detectron2's blocks do.

    That is in Detectron2's :class:`Conv2d` and between the layers of its box and mask heads. The
    results and gradients are bit-equal; a step needs less memory by a feature map.

    Args:
        model: any; changed in place.

    Returns:
        The model.
    """
    for module in model.modules():
        layers: list[Any] = [module.activation] if isinstance(module, Conv2d) else []
        if isinstance(module, FastRCNNConvFCHead | MaskRCNNConvUpsampleHead):
            # Each follows a linear layer or a convolution; see their order in Detectron2.
            layers = list(module)
        for each in layers:
            if type(each) is nn.ReLU:
                each.inplace = True
    return model


def _is_known(norm: object) -> bool:
    if type(norm) is FrozenBatchNorm2d:
        return True
    return isinstance(norm, _BatchNorm) and norm.affine and norm.track_running_stats
