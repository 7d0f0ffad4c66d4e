from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cityscapes_maskrcnn.engine.event_writers import (
    RunStorage,
    TensorboardWriter,
    curve_at_thresholds,
)
from cityscapes_maskrcnn.utils.error_summary import PrecisionRecall

# Of 4 objects: scores 0.2 (wrong), 0.5 (right), 0.9 (right); then no prediction at all.
CURVE = PrecisionRecall(
    confidences=np.array([0.2, 0.5, 0.9, np.inf]),
    recall=np.array([0.5, 0.5, 0.25, 0.0]),
    precision=np.array([2 / 3, 1.0, 1.0, 1.0]),
)


def test_a_curve_at_even_thresholds() -> None:
    true, false, negative, missed, precision, recall = curve_at_thresholds(CURVE, 4, 6)
    # At 0, 0.2, 0.4, 0.6, 0.8 and 1.
    assert true.tolist() == [2, 2, 2, 1, 1, 0]
    assert false.tolist() == [1, 1, 0, 0, 0, 0]
    assert negative.tolist() == [0] * 6
    assert missed.tolist() == [2, 2, 2, 3, 3, 4]
    assert precision.tolist() == pytest.approx([2 / 3, 2 / 3, 1, 1, 1, 1])
    assert recall.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25, 0]


def test_a_curve_of_wrong_predictions_only() -> None:
    nothing = PrecisionRecall(
        confidences=np.array([0.5, np.inf]),
        recall=np.zeros(2),
        precision=np.array([0.0, 1.0]),
    )
    true, false, _, missed, precision, recall = curve_at_thresholds(nothing, 3, 3)
    assert (true.tolist(), false.tolist(), missed.tolist()) == ([0] * 3, [0] * 3, [3] * 3)
    assert (precision.tolist(), recall.tolist()) == ([0, 0, 1], [0] * 3)


def test_tensorboard_has_one_run_with_its_hyperparameters(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.SOLVER.BASE_LR = 0.25
    # A second writer, as of a run that is resumed, adds to the run of the first.
    for iteration, ap in ((9, 11.0), (19, 12.5)):
        writer = TensorboardWriter(cfg)
        with RunStorage(iteration) as storage:
            storage.put_scalar("segm/AP", ap, smoothing_hint=False)
            storage.put_pr_curve("precision_recall/car", CURVE, 4)
            writer.write()
            writer.finished = True
            writer.close()
    # A folder of its own, as SummaryWriter.add_hparams makes, would be another run.
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    # Files of one second are read in the order of their numbers as text: 10 before 9.
    scores = sorted(events.Scalars("segm/AP"), key=lambda each: each.wall_time)
    assert [(each.step, each.value) for each in scores] == [(9, 11), (19, 12.5)]
    curves = sorted(events.Tensors("precision_recall/car"), key=lambda each: each.wall_time)
    assert [each.step for each in curves] == [9, 19]
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = events.PluginTagToContent("hparams")
    assert {*content} == {
        metadata.EXPERIMENT_TAG,
        metadata.SESSION_START_INFO_TAG,
        metadata.SESSION_END_INFO_TAG,
    }
    start = plugin_data_pb2.HParamsPluginData.FromString(content[metadata.SESSION_START_INFO_TAG])
    chosen = start.session_start_info.hparams
    assert chosen["SOLVER.BASE_LR"].number_value == 0.25
    assert chosen["SOLVER.OPTIMIZER"].string_value == "SGD"
    assert chosen["MODEL.FPN.FREEZE"].bool_value is False
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content[metadata.EXPERIMENT_TAG])
    assert "segm/AP" in {info.name.tag for info in experiment.experiment.metric_infos}
    (text,) = {each.tensor_proto.string_val[0] for each in events.Tensors("config/text_summary")}
    assert b"    BASE_LR: 0.25\n" in text
