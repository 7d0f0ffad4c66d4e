"""Detectron2's anchor generator with sizes and ratios that were fitted to the training boxes."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator

from cityscapes_maskrcnn.utils.errors import InputError

K_MEANS = "KMeansAnchorGenerator"


@ANCHOR_GENERATOR_REGISTRY.register()
class KMeansAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's generator; its name in the config asks for fitted anchors.

    It takes ``MODEL.ANCHOR_GENERATOR.SIZES`` and ``ASPECT_RATIOS`` as they are. Where ``SIZES`` is
    empty, :func:`cityscapes_maskrcnn.engine.run_anchors.resolve_anchors` fills in both before a
    model is built.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Read what :class:`DefaultAnchorGenerator` reads.

        Raises:
            InputError: there are no sizes, or not one list of them for each level.
        """
        node = cfg.MODEL.ANCHOR_GENERATOR
        if not node.SIZES:
            raise InputError(
                "MODEL.ANCHOR_GENERATOR.SIZES is empty: take the config.yaml in the output folder "
                "of the training run, which holds the fitted anchors"
            )
        for key in ("SIZES", "ASPECT_RATIOS"):
            if len(node[key]) not in (1, len(input_shape)):
                raise InputError(
                    f"MODEL.ANCHOR_GENERATOR.{key} has {len(node[key])} lists for the "
                    f"{len(input_shape)} levels of MODEL.RPN.IN_FEATURES"
                )
        return super().from_config(cfg, input_shape)
