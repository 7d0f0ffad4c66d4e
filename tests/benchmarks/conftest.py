from __future__ import annotations

import pytest

from cityscapes_maskrcnn.benchmarks.deployment_forms import Form
from cityscapes_maskrcnn.benchmarks.form_measurement import Setting


@pytest.fixture
def setting() -> Setting:
    """What forms are measured with, without images."""
    return Setting(
        base=Form("PyTorch float32", "PyTorch", "a.yaml", ("INPUT.MIN_SIZE_TEST", "512")),
        dataset="cityscapes_instance_val",
        images=(),
        timed=(),
        blocks=1,
        device="cpu",
        num_threads=1,
    )
