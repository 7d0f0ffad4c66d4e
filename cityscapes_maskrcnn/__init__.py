"""Mask R-CNN on Cityscapes instance segmentation, as a Detectron2 project extension.

The names below are imported when they are first used: files of numbers and file formats work
without Detectron2.
"""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
    from cityscapes_maskrcnn.data.registration import register_all, register_datasets_of
    from cityscapes_maskrcnn.engine.predictor import Predictor
    from cityscapes_maskrcnn.engine.trainer import Trainer
    from cityscapes_maskrcnn.evaluation.evaluator import CityscapesInstanceEvaluator

# Newer versions of torch warn of what detectron2 and fvcore call, amid progress bars and errors.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
# DATALOADER.NUM_WORKERS is the user's, and more of them than cores only share these.
warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
# fvcore says the same once more.
logging.getLogger("detectron2.checkpoint.detection_checkpoint").setLevel(logging.WARNING)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

__version__ = "0.1.0"

__all__ = [
    "CityscapesInstanceEvaluator",
    "Predictor",
    "Trainer",
    "add_cityscapes_maskrcnn_config",
    "register_all",
    "register_datasets_of",
]

_MODULES = {
    "CityscapesInstanceEvaluator": "evaluation.evaluator",
    "Predictor": "engine.predictor",
    "Trainer": "engine.trainer",
    "add_cityscapes_maskrcnn_config": "config",
    "register_all": "data.registration",
    "register_datasets_of": "data.registration",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
