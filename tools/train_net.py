#!/usr/bin/env python
"""Train or evaluate a model, like Detectron2's train_net.py, with this project's datasets."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cityscapes_maskrcnn.utils.startup import announce_imports, start_tool

start_tool()  # before the slow imports
announce_imports()

from cityscapes_maskrcnn.cli import argument_parser, launch, setup
from cityscapes_maskrcnn.engine.run_setup import discard_earlier_run, save_config
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.tool import run_tool

EXAMPLES = """
examples:
  train stage 1 on one GPU:
    tools/train_net.py --config-file configs/stage_1_heads.yaml OUTPUT_DIR output/stage_1
  continue after an interruption:
    tools/train_net.py --config-file configs/stage_1_heads.yaml --resume OUTPUT_DIR output/stage_1
  start the processes with torchrun (or srun) instead of --num-gpus:
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/stage_1_heads.yaml
  score a checkpoint by the official protocol:
    tools/train_net.py --config-file output/stage_1/config.yaml --eval-only \\
        MODEL.WEIGHTS output/stage_1/model_final.pth OUTPUT_DIR output/stage_1_val
  train Detectron2's own Cityscapes config on 8 GPUs:
    tools/train_net.py --config-file model_zoo://Cityscapes/mask_rcnn_R_50_FPN.yaml --num-gpus 8
"""


def train_or_evaluate(args: argparse.Namespace) -> Any:
    """Run in every process: build everything from the config, then train or evaluate."""
    if args.auto_batch and args.eval_only:
        raise InputError("--auto-batch: --eval-only trains nothing")
    cfg = setup(args)
    if args.eval_only:
        return Trainer.evaluate_checkpoint(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if args.auto_batch:
        trainer.choose_micro_batch()
        cfg.defrost()
        cfg.SOLVER.ACCUMULATE = trainer.cfg.SOLVER.ACCUMULATE
        cfg.freeze()
    if args.overwrite:
        discard_earlier_run(cfg.OUTPUT_DIR)
    save_config(cfg, scoring=False)
    return trainer.train()


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, by default those of the command line, and launch the processes."""
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run in OUTPUT_DIR and start again",
    )
    parser.add_argument(
        "--auto-batch",
        action="store_true",
        help="divide the batch into the largest micro-batches that fit into the GPU's memory: sets"
        " SOLVER.ACCUMULATE; SOLVER.IMS_PER_BATCH stays the batch size of a step",
    )
    return launch(train_or_evaluate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_tool(main))
