"""One training of the ablation: how long it is, what its steps cost, and how it is scored."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch.utils.flop_counter import FlopCounterMode

from cityscapes_maskrcnn.benchmarks.ablation_table import SIZE_LIMITS, SIZES
from cityscapes_maskrcnn.data.labels import THING_CLASSES
from cityscapes_maskrcnn.engine.checkpoint import load_for_inference
from cityscapes_maskrcnn.engine.run_anchors import resolve_anchors
from cityscapes_maskrcnn.engine.run_setup import save_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.evaluation.coco_ap import coco_scores
from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator
from cityscapes_maskrcnn.evaluation.image_scoring import ImageResult

# The part of val that chooses, and the part that is reported.
CHOICE: Final = "cityscapes_instance_val_part1and2of4"
REPORT: Final = "cityscapes_instance_val_part3and4of4"


def total_operations(steps: Sequence[int], iterations: Sequence[int]) -> int:
    """Sum the operations of all stages.

    Args:
        steps: operations of a step of each stage.
        iterations: of each stage.
    """
    return sum(step * number for step, number in zip(steps, iterations, strict=True))


def equal_iterations(budget: int, steps: Sequence[int], epochs: Sequence[int]) -> list[int]:
    """Divide an amount of compute among the stages of an arm.

    Args:
        budget: floating point operations.
        steps: operations of a step of each stage.
        epochs: shares of the stages in the iterations.

    Returns:
        Iterations of each stage, at least one. Their operations are the budget within half a step
        of the longest stage, which gets what rounding leaves.
    """
    scale = budget / sum(step * share for step, share in zip(steps, epochs, strict=True))
    iterations = [max(1, round(scale * share)) for share in epochs]
    longest = max(range(len(epochs)), key=lambda index: epochs[index])
    left = budget - total_operations(steps, iterations)
    iterations[longest] = max(1, iterations[longest] + round(left / steps[longest]))
    return iterations


def count_operations(cfg: CfgNode, batches: int) -> int:
    """Count the floating point operations of a training step, forward and backward.

    Args:
        cfg: of a training; edited: anchors are filled in, and it is frozen.
        batches: the mean over so many of its first batches, with the weights it starts from.

    Returns:
        Those of convolutions and matrix products, a multiplication and an addition being two.
    """
    resolve_anchors(cfg, resume=False, eval_only=False)
    cfg.OUTPUT_DIR = ""
    cfg.freeze()
    seed_all_rng(cfg.SEED)
    model = Trainer.build_model(cfg).train()
    total = 0
    for batch in islice(iter(Trainer.build_train_loader(cfg)), batches):
        with EventStorage(), FlopCounterMode(display=False) as counter:
            losses: dict[str, Any] = model(batch)
            sum(losses.values()).backward()
        total += counter.get_total_flops()
    return total // batches


def train(cfg: CfgNode, folder: Path) -> Path:
    """Train, or go on with an interrupted training.

    Args:
        cfg: edited: output folder, anchors; frozen.
        folder: the output folder.

    Returns:
        The trained weights.
    """
    weights = folder / "model_final.pth"
    if weights.exists():
        return weights
    cfg.OUTPUT_DIR = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    resolve_anchors(cfg, resume=True, eval_only=False)
    cfg.freeze()
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    save_config(cfg, scoring=False)
    trainer.train()
    return weights


class SizeEvaluator(CityscapesInstanceEvaluator):
    """Score by the official protocol, and COCO's by the sizes of :data:`SIZE_LIMITS`."""

    def _summarise(self, images: list[ImageResult]) -> OrderedDict[str, dict[str, float]]:
        results = super()._summarise(images)
        coco = [image.coco for image in images if image.coco is not None]
        by_size = coco_scores(coco, "segm", self._scored, size_limits=SIZE_LIMITS)
        results["by_size"] = {key: 100 * by_size[key] for key in SIZES}
        return results


def score(cfg: CfgNode, opts: Mapping[str, object], weights: Path) -> dict[str, dict[str, float]]:
    """Score weights on the part of val that chooses and on the one that is reported.

    Args:
        cfg: of the training; edited, and frozen.
        opts: values by config key, of inference.
        weights: the file.

    Returns:
        By ``"choice"`` and ``"report"`` the official AP, AP50 and ``AP-<class>``, and COCO-style
        APs, APm and APl, in percent.
    """
    changes = {**opts, "MODEL.WEIGHTS": str(weights), "DATASETS.TEST": (CHOICE, REPORT)}
    cfg.merge_from_list([word for pair in changes.items() for word in pair])
    cfg.freeze()
    model = Trainer.build_model(cfg).eval()
    load_for_inference(model, cfg)
    test = Trainer.test_with_TTA if cfg.TEST.AUG.ENABLED else Trainer.test
    evaluators: list[DatasetEvaluator] = [SizeEvaluator(name) for name in cfg.DATASETS.TEST]
    tested = test(cfg, model, evaluators)
    results = {name.removesuffix("_TTA"): each for name, each in tested.items()}
    flat = {
        name: {
            **{key: each["segm"][key] for key in ("AP", "AP50")},
            **{f"AP-{kind}": each["segm"].get(f"AP-{kind}", math.nan) for kind in THING_CLASSES},
            **each["by_size"],
        }
        for name, each in results.items()
    }
    return {"choice": flat[CHOICE], "report": flat[REPORT]}
