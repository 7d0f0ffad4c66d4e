from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage, EventWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cityscapes_maskrcnn.config import add_cityscapes_maskrcnn_config
from cityscapes_maskrcnn.engine.event_writers import (
    _SERVICES,
    MlflowWriter,
    RunStorage,
    TensorboardWriter,
    WandbWriter,
    _ServiceWriter,
    check_tracking,
    curve_at_thresholds,
    write_report,
)
from cityscapes_maskrcnn.evaluation.instance_ap import PrecisionRecall
from cityscapes_maskrcnn.utils.errors import InputError


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_cityscapes_maskrcnn_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Leave out what is only noted: whether that is recorded depends on the tests before."""
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


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
    assert [(each.step, each.value) for each in events.Scalars("segm/AP")] == [(9, 11), (19, 12.5)]
    assert [each.step for each in events.Tensors("precision_recall/car")] == [9, 19]
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


def test_scores_of_the_best_checkpoint_are_added_at_the_end(cfg: CfgNode, tmp_path: Path) -> None:
    write_report(cfg, {"segm": {"AP": 20.0, "AP-train": float("nan")}}, iteration=30)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["report/segm/AP"]
    assert [(each.step, each.value) for each in events.Scalars("report/segm/AP")] == [(30, 20)]


def test_backends_are_checked_before_training(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.TRACKING.BACKENDS = ("wandb", "mlflow")
    check_tracking(cfg)
    cfg.TRACKING.BACKENDS = ("wandb", "ml-flow")
    with pytest.raises(InputError, match="ml-flow: it must be of wandb, mlflow"):
        check_tracking(cfg)
    # Not installed, but there is a folder in which W&B kept runs.
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    cfg.TRACKING.BACKENDS = ("wandb",)
    with pytest.raises(InputError, match="wandb: it is not installed; pip install wandb"):
        check_tracking(cfg)


class BrokenService(_ServiceWriter):
    """A service that is lost after the first scalars."""

    name = "broken"
    advice = "mend it"

    def _start(self, run_id: str | None) -> str:
        self.sent: list[int] = []
        return run_id or "new"

    def _address(self) -> str:
        return ""

    def _place(self) -> str:
        return "nowhere"

    def _put_scalars(self, iteration: int, scalars: object) -> None:
        if self.sent:
            raise ConnectionError("the line is\ncut")
        assert scalars == {"loss": 1.0}
        self.sent.append(iteration)

    def _end(self) -> None:
        raise AssertionError("it is gone")


def test_a_service_that_fails_is_left(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    writer: EventWriter = BrokenService(cfg)
    writer.start(resumed=False)
    with EventStorage(0) as storage:
        for iteration in range(4):
            storage.iter = iteration
            storage.put_scalar("loss", 1.0)
            writer.write()
        writer.close()
    assert writer.sent == [0]
    assert warnings_in(caplog) == [
        "broken: the line is cut; later scalars and pictures are not sent"
    ]


class ServiceWithoutPictures(BrokenService):
    """A service that refuses pictures."""

    def _put_scalars(self, iteration: int, scalars: object) -> None:
        assert scalars == {"loss": 1.0}
        self.sent.append(iteration)

    def _put_picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        raise ValueError(f"{name}, {pixels.shape} at {iteration}, is refused")

    def _end(self) -> None:
        self.sent.append(-1)


def test_scalars_go_on_where_a_picture_is_refused(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ServiceWithoutPictures(cfg)
    writer.start(resumed=False)
    with EventStorage(0) as storage:
        for iteration in range(3):
            storage.iter = iteration
            storage.put_scalar("loss", 1.0)
            storage.put_image("predictions/a", np.zeros((3, 2, 2), np.uint8))
            writer.write()
    writer.close()
    assert writer.sent == [0, 1, 2, -1]
    assert warnings_in(caplog) == [
        "broken: predictions/a, (2, 2, 3) at 0, is refused; later pictures are not sent"
    ]


def test_mlflow_takes_names_of_own_classes_and_images(
    cfg: CfgNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Files are ready sooner than a database.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    writer = MlflowWriter(cfg)
    writer.start(resumed=False)
    with EventStorage(3) as storage:
        storage.put_scalar("segm/AP-car (parked)", 12.5)
        storage.put_image("predictions/street (1).png", np.zeros((3, 4, 4), np.uint8))
        storage.put_image("predictions/straße.png", np.zeros((3, 4, 4), np.uint8))
        writer.write()
    client, run_id = writer._client, writer._run_id
    writer.close()
    assert not warnings_in(caplog)
    assert client.get_run(run_id).data.metrics == {"segm/AP-car _parked_": 12.5}
    pictures = {Path(each.path).name for each in client.list_artifacts(run_id, "images")}
    assert {name.partition("+")[0] for name in pictures} == {
        "predictions~street _1_.png",
        "predictions~stra_e.png",
    }


def test_a_dead_service_costs_nobody_else_the_final_scores(
    cfg: CfgNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Dead(BrokenService):
        name = "dead"

        def _start(self, run_id: str | None) -> str:
            raise ConnectionError(f"nobody answers {run_id}")

    sent: list[object] = []

    class Working(BrokenService):
        name = "working"

        def _put_scalars(self, iteration: int, scalars: object) -> None:
            sent.append((iteration, scalars))

        def _end(self) -> None:
            sent.append("end")

    for kind in (Dead, Working):
        monkeypatch.setitem(_SERVICES, kind.name, kind)
    cfg.TRACKING.BACKENDS = ("dead", "working")
    write_report(cfg, {"segm": {"AP": 20.0}}, iteration=30)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("report/segm/AP")] == [(30, 20)]
    assert sent == [(30, {"report/segm/AP": 20.0}), "end"]
    assert warnings_in(caplog) == [
        "The final scores, which scores.json holds, are not sent: TRACKING.BACKENDS dead: no run "
        "can be started: nobody answers None; mend it"
    ]


@pytest.mark.parametrize("kind", [WandbWriter, MlflowWriter])
def test_a_service_out_of_reach_is_noticed_at_once(
    cfg: CfgNode, kind: type[_ServiceWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    # Nobody listens on port 9. Their clients would try again for minutes.
    monkeypatch.setattr(WandbWriter, "_address", lambda _: "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 cannot be reached: .*refused"):
        kind(cfg).start(resumed=False)
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_damaged_run_ids(cfg: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text('{"wandb": 5}')
    with pytest.raises(InputError, match=r"tracking\.json: wandb is damaged; remove it"):
        BrokenService(cfg).start(resumed=True)
