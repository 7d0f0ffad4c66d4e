from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cityscapes_maskrcnn.benchmarks import training_speed
from cityscapes_maskrcnn.benchmarks.rows import table
from cityscapes_maskrcnn.benchmarks.workload import draw_batches, random_weights

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"
SMALL = """
MODEL:
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}
  FPN: {OUT_CHANNELS: 8}
  RPN: {PRE_NMS_TOPK_TRAIN: 100, POST_NMS_TOPK_TRAIN: 50, BATCH_SIZE_PER_IMAGE: 16}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {FC_DIM: 16}
  ROI_MASK_HEAD: {CONV_DIM: 8, NUM_CONV: 1}
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a GPU there are more rows")
def test_systems_that_a_cpu_can_compare(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(f"_BASE_: {STAGE_1}\n{SMALL}")
    batches = draw_batches(count=1, batch_size=2, height=64, width=96)
    state = random_weights(str(config))
    measured = training_speed._measure(str(config), "frozen", state, batches, small=True)
    names = ["stock float32", "ours float32", "ours fastest", "ours checkpointed"]
    assert list(measured) == names
    stock, ours, fastest, checkpointed = measured.values()
    assert checkpointed.memory < ours.memory
    assert min(ours.memory, stock.memory) > 0
    assert 0 < ours.launches.operations < stock.launches.operations
    rows = {row.name: row for row in training_speed._rows("small", measured)}
    step = rows["small: step, both float32"]
    assert (step.ours, step.stock, step.unit) == (ours.ms, stock.ms, "ms")
    assert step.ratio == pytest.approx(stock.ms / ours.ms)
    # Of a CPU, with channels-last memory.
    assert rows["small: step, fastest and float32"].ours == fastest.ms
    missing = rows["small: step, fastest and AMP"]
    assert (missing.ours, missing.ratio, missing.note) == (None, None, "needs a GPU")
    (line,) = [each for each in table(rows.values()).splitlines() if "fastest and AMP" in each][:1]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["-", "-", "ms", "-", "needs a GPU"]
