"""Limits that group objects by size and occlusion: in datasets, anchor fits and error analyses."""

from __future__ import annotations

from typing import Final

# COCO's limits of the area, in pixels; what is below the second name's is the first, and so on.
SIZE_LIMITS: Final[dict[str, float]] = {"small": 0, "medium": 32**2, "large": 96**2}
SIZE_RANGES: Final = {"small": "< 32² px", "medium": "32² to 96² px", "large": "≥ 96² px"}
# The limits of the Caltech pedestrian benchmark, shares.
OCCLUSION_LIMITS: Final = {"none": 0.0, "partial": 0.01, "heavy": 0.35}
OCCLUSION_RANGES: Final = {"none": "< 1 %", "partial": "1 % to 35 %", "heavy": "≥ 35 %"}
OCCLUSION_NAMES: Final = {
    "none": "not occluded",
    "partial": "partly occluded",
    "heavy": "heavily occluded",
}
# Smaller objects do not count in the official protocol.
MIN_REGION_PIXELS: Final = 100
