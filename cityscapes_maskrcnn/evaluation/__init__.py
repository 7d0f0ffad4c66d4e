"""Scores: the official Cityscapes protocols and COCO's, and the files they read and write."""
