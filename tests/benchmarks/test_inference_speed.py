from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cityscapes_maskrcnn.benchmarks import inference_speed
from cityscapes_maskrcnn.benchmarks.workload import config_of, draw_batches, random_weights
from cityscapes_maskrcnn.engine.trainer import Trainer

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
SMALL = """
MODEL:
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}
  FPN: {OUT_CHANNELS: 8}
"""


def test_it_predicts_in_the_precision_of_the_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(f"_BASE_: {STAGE_1}\n{SMALL}")
    dtypes: set[torch.dtype] = set()
    build_model = Trainer.build_model

    def build(cfg: Any) -> nn.Module:
        model = build_model(cfg)
        model.backbone.fpn_output2.register_forward_hook(lambda *args: dtypes.add(args[2].dtype))
        return model

    monkeypatch.setattr(Trainer, "build_model", build)
    cfg = config_of(str(config), "TEST.PRECISION", "bfloat16", "MODEL.DEVICE", "cpu")
    predict = inference_speed._build(cfg, random_weights(str(config)))
    ((image,),) = draw_batches(count=1, batch_size=1, height=64, width=96)
    predict([image])
    assert dtypes == {torch.bfloat16}
