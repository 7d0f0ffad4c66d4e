"""The log of a run and its saved config: Detectron2's ``default_setup``, in two steps.

Detectron2 replaces ``OUTPUT_DIR/config.yaml`` before weights, data or a checkpoint to resume from
were looked at. A command that is then refused would leave the earlier run with a config that it was
not trained with, other anchors for instance. Here the config is saved when all that is settled.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from cityscapes_maskrcnn.utils.files import atomic_write

logger = logging.getLogger(__name__)


def start_logs(folder: str | None) -> None:
    """Send the lines of Detectron2, fvcore and this project to the terminal and to a folder.

    Args:
        folder: gets ``log.txt``; None: the terminal only.
    """
    for name, short in (("fvcore", None), ("detectron2", None), ("cityscapes_maskrcnn", "cm")):
        setup_logger(folder, comm.get_rank(), name=name, abbrev_name=short)


def start_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Start the log in ``OUTPUT_DIR``, tell what is run, seed and set torch's switches.

    Args:
        cfg: the frozen config.
        args: with Detectron2's flags.
    """
    rank = comm.get_rank()
    start_logs(cfg.OUTPUT_DIR)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    if args.config_file:
        text = Path(args.config_file).read_text(encoding="utf-8")
        logger.info("Contents of args.config_file=%s:\n%s", args.config_file, text)
    if comm.is_main_process():
        logger.info("Running with full config:\n%s", cfg.dump())
    # Every process draws other numbers, the same ones whenever it is run again.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        # Images to score come in many sizes: trying out algorithms for each does not pay.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
        logger.info("Set fp32 precision to %s", cfg.FLOAT32_PRECISION)


def save_config(cfg: CfgNode, scoring: bool) -> None:
    """Write ``OUTPUT_DIR/config.yaml``, on the main process only.

    Args:
        cfg: the frozen config as the run was started with; a trainer scales its own to the number
            of processes.
        scoring: a model is only scored. Then the config that lies beside checkpoints stays: it is
            that of their training.
    """
    folder = Path(cfg.OUTPUT_DIR)
    file = folder / "config.yaml"
    of_a_training = file.is_file() and any(folder.glob("*.pth"))
    if not comm.is_main_process() or (scoring and of_a_training):
        return
    with atomic_write(file, "w") as stream:
        stream.write(cfg.dump())
    logger.info("Full config saved to %s", file)
