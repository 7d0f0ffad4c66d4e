"""Comparisons with Detectron2 and the official scripts; ``tools/benchmark.py`` runs them."""
