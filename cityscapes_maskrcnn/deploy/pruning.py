"""Remove channels from a trained Mask R-CNN: structured pruning with Torch-Pruning.

A channel is removed from all layers that depend on it: those that compute it, those that add
something to it, and those that read it (Fang et al., "DepGraph", CVPR 2023). From every such group
the same share goes: the channels whose weights have the smallest norm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from cityscapes_maskrcnn.data.registration import register_datasets_of
from cityscapes_maskrcnn.deploy.exportable import check_exportable, plain_config
from cityscapes_maskrcnn.engine.checkpoint import SafeCheckpointer, load_for_inference
from cityscapes_maskrcnn.engine.checkpoint_origin import origin_of_run
from cityscapes_maskrcnn.engine.class_check import class_names
from cityscapes_maskrcnn.engine.run_setup import environment
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.modeling.folding import fold_for_good
from cityscapes_maskrcnn.modeling.narrowing import layer_widths, weighted_layers
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import write_text

#: Without the extension.
_NAME: Final = "model_pruned"
# Kernels compute channels by eights, so that others would cost as much; narrower layers are small.
_STEP: Final = 8
_NARROW: Final = 32


def prune_checkpoint(cfg: CfgNode, ratio: float, folder: Path) -> tuple[Path, int, int]:
    """Prune ``MODEL.WEIGHTS`` and write it with a config that fine-tunes and loads it.

    Args:
        cfg: the model's config. What it says about data and schedule is kept for the fine-tuning,
            which trains all layers, has them imitate the original, and writes to
            ``folder/fine_tuned``.
        ratio: share of the channels to remove, between 0 and 1. What the pyramid gives to the heads
            and what the heads predict keep their channels.
        folder: a new one, for ``model_pruned.pth`` and ``config.yaml``.

    Returns:
        The checkpoint, and the numbers of parameters before and after.

    Raises:
        InputError: the ratio is out of range, the folder exists, the model cannot be pruned or is
            pruned already, or its weights cannot be loaded.
    """
    if not 0 < ratio < 1:
        raise InputError(f"--ratio {ratio:g}: it must be above 0 and below 1")
    if folder.exists():
        raise InputError(f"{folder}: exists already; name another --output")
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: only GeneralizedRCNN can be"
            " pruned"
        )
    if cfg.MODEL.PRUNED_WIDTHS:
        raise InputError("MODEL.PRUNED_WIDTHS: the model is pruned already; prune the original")
    register_datasets_of(cfg)
    plain = plain_config(cfg)
    model = Trainer.build_model(plain).eval()
    _check_prunable(model)
    loaded = load_for_inference(model, plain)
    fold_for_good(model)
    before = _count(model)
    prune_channels(model, ratio)

    pruned = cfg.clone()
    pruned.defrost()
    pruned.MODEL.WEIGHTS = str(folder / f"{_NAME}.pth")
    pruned.MODEL.DISTILLATION.TEACHER = cfg.MODEL.WEIGHTS
    pruned.MODEL.PRUNED_WIDTHS = CfgNode(layer_widths(model), new_allowed=True)
    # Every layer has to make up for what is gone.
    pruned.MODEL.BACKBONE.FREEZE_AT = 0
    pruned.MODEL.FPN.FREEZE = False
    pruned.OUTPUT_DIR = str(folder / "fine_tuned")
    folder.mkdir(parents=True)
    written = SafeCheckpointer(model, str(folder))
    written.origin = origin_of_run(
        config=pruned.dump(),
        seed=cfg.SEED,
        device="cpu",
        environment=environment(),
        parents=loaded.parents(),
        classes=class_names(cfg),
    )
    written.save_weights(_NAME, history=loaded.history)
    write_text(folder / "config.yaml", pruned.dump())
    return folder / f"{_NAME}.pth", before, _count(model)


def _check_prunable(model: Any) -> None:
    if not isinstance(model.backbone, FPN):
        raise InputError("MODEL.BACKBONE.NAME: only backbones with an FPN can be pruned")
    try:
        check_exportable(model)
    except InputError as error:
        raise InputError(f"only what can be exported can be pruned: {error}") from error


def prune_channels(model: Any, ratio: float) -> None:
    """Remove a share of the channels of every layer, in place.

    Channels that the FPN gives to the heads and that the heads predict are kept. Of a layer at
    least one channel stays; layers of 32 channels or more keep a multiple of 8.

    Args:
        model: Detectron2's, in evaluation mode, folded (:func:`fold_for_good`). Nothing of it is
            frozen afterwards.
        ratio: from 0 to below 1.

    Raises:
        InputError: it has layers that cannot be pruned, or Torch-Pruning is missing.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise InputError(
            "pruning needs the package torch-pruning: pip install -e '.[compress]'"
        ) from error
    layers = weighted_layers(model)
    kept = [
        layer
        for name, layer in layers.items()
        if name.startswith(("backbone.fpn_output", "roi_heads.box_predictor."))
        or name.endswith((".objectness_logits", ".anchor_deltas", "mask_head.predictor"))
    ]
    # The graph is that of the gradients, in which a convolution and its activation are two nodes.
    activations = {each: each.activation for each in layers.values() if hasattr(each, "activation")}
    model.requires_grad_(True)
    for each in activations:
        each.activation = None
    graph = torch_pruning.DependencyGraph().build_dependency(
        _Layers(model), torch.zeros(1, 3, 64, 64)
    )
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    plan = []
    # Chosen before anything is removed, so that no group is judged by what is left of another.
    for group in graph.get_all_groups(
        ignored_layers=kept, root_module_types=(nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    ):
        root = group[0].dep
        scores = importance(group)
        removed = len(scores) - _kept_channels(len(scores), ratio)
        chosen = scores.argsort(stable=True)[:removed].tolist()
        plan.append((root.target.module, root.handler, chosen))
    for module, handler, chosen in plan:
        if chosen:
            graph.get_pruning_group(module, handler, chosen).prune()
    for each, activation in activations.items():
        each.activation = activation


def _kept_channels(width: int, ratio: float) -> int:
    kept = max(1, math.ceil(width * (1 - ratio)))
    return min(width, math.ceil(kept / _STEP) * _STEP) if width >= _NARROW else kept


def _count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


class _Layers(nn.Module):
    """All layers of a Mask R-CNN, with gradients to follow: no proposals, no pooling.

    The heads read nothing of the backbone: what it gives them is kept.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: Any = model.backbone
        self.rpn_head: Any = model.proposal_generator.rpn_head
        heads = model.roi_heads
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        self.mask_head: Any = heads.mask_head
        self._box_size = heads.box_pooler.output_size
        self._mask_size = heads.mask_pooler.output_size

    def forward(self, images: Tensor) -> list[Any]:
        """Compute features and, of zeros, the outputs of every head."""
        features = self.backbone(images)
        channels = next(iter(features.values())).shape[1]
        return [
            *features.values(),
            self.rpn_head([images.new_zeros(1, channels, 8, 8)]),
            self.box_predictor(self.box_head(images.new_zeros(1, channels, *self._box_size))),
            # Of a FusedMaskHead too, the graph is that of its single layers.
            MaskRCNNConvUpsampleHead.layers(
                self.mask_head, images.new_zeros(1, channels, *self._mask_size)
            ),
        ]
