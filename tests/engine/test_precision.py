from __future__ import annotations

import pytest
import torch

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.engine.precision import build_step
from cityscapes_maskrcnn.engine.trainer import Trainer
from cityscapes_maskrcnn.utils.errors import InputError

NARROW = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"),
]


def test_channels_last_computes_the_same() -> None:
    config_file = "configs/stage_0_backbone.yaml"
    models = []
    for value in ("False", "True"):
        torch.manual_seed(3)
        cfg = build_config(config_file, [*NARROW, "MODEL.CHANNELS_LAST", value])
        models.append(Trainer.build_model(cfg))
    plain, channels_last = models
    conv = plain.backbone.res3[0].conv2.weight, channels_last.backbone.res3[0].conv2.weight
    assert torch.equal(*conv)
    assert [weight.is_contiguous() for weight in conv] == [True, False]
    inputs = [
        {
            "image": torch.randint(256, (3, 65, 97), dtype=torch.uint8),
            "sem_seg": torch.randint(19, (65, 97)),
        }
        for _ in range(4)
    ]
    losses = []
    for model in models:
        model.sem_seg_head.aspp.dropout.p = 0.0
        losses.append(model.train()(inputs)["loss_sem_seg"])
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    ours, theirs = (model.sem_seg_head.conv.weight.grad for model in models)
    # Rounding grows from layer to layer, so the gradient as a whole is compared.
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(
    ("name", "precision", "scales"),
    [("float16", torch.float16, True), ("bfloat16", torch.bfloat16, False)],
)
def test_mixed_precision_takes_the_type_that_the_config_names(name, precision, scales) -> None:
    cfg = build_config("", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", name])
    model = torch.nn.Linear(1, 1)
    step = build_step(cfg, model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert step.precision is precision
    # Without a GPU torch switches every scaler off.
    assert step.grad_scaler.is_enabled() == (scales and torch.cuda.is_available())


def test_an_unknown_precision_is_named() -> None:
    cfg = build_config("", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "fp16"])
    with pytest.raises(InputError, match="'fp16': it must be float16 or bfloat16"):
        build_step(cfg, torch.nn.Linear(1, 1), [], None)
