"""Malformed variants of every kind of input: one clear line, or the official script's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from data_kinds import annotation, annotation_png, image, image_cache, photo
from harness import Context, Job
from result_kinds import result_mask, result_text, submission
from state_kinds import best, cache, chain, config, opts, resume, study, weights
from variants import Kind, attempt, usual_seconds
from weight_kinds import checkpoint_tools, weights_pkl, weights_safetensors


def jobs(size: str) -> list[Job]:
    """Build the jobs: 1,000 variants of each kind, or a few."""
    kinds = {
        # seconds a variant
        annotation: 0.06,
        annotation_png: 0.07,
        image: 0.07,
        photo: 0.05,
        result_text: 0.05,
        result_mask: 0.05,
        submission: 0.05,
        weights: 0.15,
        weights_pkl: 0.15,
        weights_safetensors: 0.15,
        checkpoint_tools: 0.1,
        resume: 0.7,
        config: 0.25,
        opts: 0.6,
        cache: 0.05,
        image_cache: 0.03,
        study: 0.32,
        best: 0.08,
        chain: 0.04,
    }
    tries = 1000 if size == "full" else 3
    return [
        Job(f"fuzz/{kind.__name__}", tries, tries * seconds, partial(fuzz, kind))
        for kind, seconds in kinds.items()
    ]


def fuzz(prepare: Callable[[Context], Kind], context: Context) -> Iterator[str]:
    """Read variants of one kind; where they fail, keep them in the job's folder."""
    kind = prepare(context)
    log = context.folder / "printed"
    if kind.begins_whole:
        kind = kind._replace(seconds=kind.seconds + usual_seconds(kind, log))
    for number in context.numbers:
        kind.write(context.random(number))
        yield attempt(kind, log)
