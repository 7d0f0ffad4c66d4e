"""Mask R-CNN on Cityscapes instance segmentation, as a Detectron2 project extension."""

__version__ = "0.1.0"
