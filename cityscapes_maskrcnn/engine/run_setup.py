"""The output folder of a run, its log and its saved config: Detectron2's ``default_setup``.

Detectron2 replaces ``OUTPUT_DIR/config.yaml`` before weights, data or a checkpoint to resume from
were looked at. A command that is then refused would leave the earlier run with a config that it was
not trained with, other anchors for instance. Here the config is saved when all that is settled.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import cv2
import detectron2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

import cityscapes_maskrcnn
from cityscapes_maskrcnn.engine.checkpoint import holds_run
from cityscapes_maskrcnn.engine.outcome import SCORES_FILE, SUMMARY_FILE
from cityscapes_maskrcnn.engine.terminal import TerminalHandler
from cityscapes_maskrcnn.engine.tracking_services import RUN_IDS_FILE
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import remove_temporary_files, write_text
from cityscapes_maskrcnn.utils.locks import LockTimeoutError, acquire_lock

logger = logging.getLogger(__name__)

# As Detectron2's log.txt.
_LOG_LINE: Final = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_LOCK_FILE: Final = ".train_net.lock"
# What a log and a config need at least: on a full disk the run ends before it has begun.
_PROBE_BYTES: Final = 1 << 16
# What a training run leaves in its folder beside its log, config.yaml and metrics.json.
_RUN_FILES: Final = (
    "last_checkpoint",
    "model_*.pth",
    "start_weights.pth",
    SUMMARY_FILE,
    SCORES_FILE,
    "events.out.tfevents.*",
    RUN_IDS_FILE,
    "training_curves.png",
    "drift.csv",
    "drift.md",
    "drift.png",
)


def lock_output_dir(folder: str, timeout: float = 10.0) -> None:
    """Make a folder and lock it for as long as this process lives; the main process calls this.

    Two trainings in one folder would overwrite each other's checkpoints. What a killed one left of
    files that it was writing, each perhaps as large as a checkpoint, is removed.

    Args:
        folder: ``OUTPUT_DIR``.
        timeout: seconds to wait for another process, which may be about to end.

    Raises:
        InputError: another process trains there, the folder cannot be written, or it has folders
            with the names of a run's files.
    """
    if not folder:
        raise InputError("OUTPUT_DIR is empty: name a folder")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"OUTPUT_DIR {folder}: a file where a folder is needed")
    try:
        # The descriptor stays open: closing it would end the lock.
        descriptor = acquire_lock(Path(folder, _LOCK_FILE), timeout=timeout)
    except LockTimeoutError as error:
        raise InputError(
            f"OUTPUT_DIR {folder}: another training is running there; wait for it to end, or "
            "choose another folder"
        ) from error
    names = ("log.txt", "config.yaml", "metrics.json", *_RUN_FILES)
    for path in [path for name in names for path in Path(folder).glob(name)]:
        if path.is_dir():
            raise InputError(f"{path}: a folder where training writes a file; move it")
    for pattern in (".*.tmp", "inference*/**/.*.tmp"):
        remove_temporary_files(Path(folder), pattern)
    _end_last_line(Path(folder, "metrics.json"))
    try:
        os.pwrite(descriptor, bytes(_PROBE_BYTES), 0)
        os.fsync(descriptor)
        os.ftruncate(descriptor, 0)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {folder}: cannot be written: {error.strerror}") from error


def _end_last_line(file: Path) -> None:
    """Cut off half a line, which the next one would be appended to."""
    if file.is_file():
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)


def refuse_earlier_run(folder: str) -> None:
    """Verify that no checkpoints would be overwritten.

    Raises:
        InputError: the folder holds those of an earlier run.
    """
    if holds_run(folder):
        raise InputError(
            f"OUTPUT_DIR {folder}: contains the checkpoints of an earlier run; continue it with "
            "--resume, choose another OUTPUT_DIR, or delete that run with --overwrite"
        )


def discard_earlier_run(folder: str) -> None:
    """Remove the files of an earlier training run, on the main process only.

    Its checkpoints before anything else is written: a new ``config.yaml`` beside them would have
    them scored, or resumed, with settings that they were not trained with. ``metrics.json`` is
    open already.
    """
    if comm.is_main_process():
        for path in [path for name in _RUN_FILES for path in Path(folder).glob(name)]:
            path.unlink()
        with suppress(FileNotFoundError):
            os.truncate(Path(folder, "metrics.json"), 0)


def environment() -> dict[str, str]:
    """List the versions and devices that results depend on, by name.

    Detectron2's own report asks its compiled extension, which need not exist and crashed on a
    machine with a GPU.
    """
    rows = {
        "cityscapes_maskrcnn": cityscapes_maskrcnn.__version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": f"{detectron2.__version__} in {Path(detectron2.__file__).parent}",
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "CUDA, cuDNN": f"{torch.version.cuda}, {torch.backends.cudnn.version()}",
        "DETECTRON2_DATASETS": os.environ.get("DETECTRON2_DATASETS", "not set"),
    }
    for index in range(torch.cuda.device_count()):
        rows[f"GPU {index}"] = torch.cuda.get_device_name(index)
    return rows


class _LogFile(logging.FileHandler):
    """The ``log.txt`` of a run, which is appended to.

    Not Detectron2's, whose file ends in a traceback where the last lines cannot be written.
    """


def start_logs(folder: str | None) -> None:
    """Send the lines of Detectron2, fvcore and this project to the terminal and to a folder.

    A training or scoring that this process started before gets none of them any more.

    Args:
        folder: gets ``log.txt``; None: the terminal only.
    """
    rank = comm.get_rank()
    loggers = [logging.getLogger(name) for name in ("fvcore", "detectron2", "cityscapes_maskrcnn")]
    for each in loggers:
        each.setLevel(logging.DEBUG)
        each.propagate = False
        for handler in each.handlers[:]:
            if isinstance(handler, _LogFile | TerminalHandler):
                each.removeHandler(handler)
                handler.close()
    if rank == 0:
        stage = Path(folder).resolve().name if folder else ""
        terminal = TerminalHandler(sys.stdout, stage, has_file=folder is not None)
        for each in loggers:
            each.addHandler(terminal)
    if folder is not None:
        name = f"log.txt.rank{rank}" if rank else "log.txt"
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = _LogFile(Path(folder, name), encoding="utf-8")
        file.setFormatter(logging.Formatter(_LOG_LINE, datefmt="%m/%d %H:%M:%S"))
        for each in loggers:
            each.addHandler(file)
    _complain_once({handler for each in loggers for handler in each.handlers})


def _complain_once(handlers: Iterable[logging.Handler]) -> None:
    """Have handlers that cannot write say so in one line, not in a traceback for every record."""
    complaints = set()

    def handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.Handler.handleError(handler, record)
            return
        name = getattr(handler, "baseFilename", "the terminal")
        if name not in complaints:
            complaints.add(name)
            with suppress(OSError):
                sys.stderr.write(f"warning: {name}: cannot be written: {error.strerror}\n")

    for each in handlers:
        each.handleError = partial(handle_error, each)  # type: ignore[method-assign]


def start_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Start the log in ``OUTPUT_DIR``, seed, and set torch's switches.

    Args:
        cfg: the frozen config.
        args: with Detectron2's flags.
    """
    rank = comm.get_rank()
    start_logs(cfg.OUTPUT_DIR)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    rows = "\n".join(f"{name:20} {value}" for name, value in environment().items())
    logger.info("Environment info:\n%s", rows)
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
    write_text(file, cfg.dump())
    logger.info("Full config saved to %s", file)
