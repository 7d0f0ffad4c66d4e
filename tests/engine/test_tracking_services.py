from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, EventWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cityscapes_maskrcnn.engine.tracking_services import (
    _SERVICES,
    MlflowWriter,
    WandbWriter,
    _ServiceWriter,
    check_tracking,
    write_final_scores,
)
from cityscapes_maskrcnn.utils.errors import InputError


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Leave out what is only noted: whether that is recorded depends on the tests before."""
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_scores_of_the_best_checkpoint_are_added_at_the_end(cfg: CfgNode, tmp_path: Path) -> None:
    write_final_scores(cfg, {"segm": {"AP": 20.0, "AP-train": float("nan")}}, iteration=30)
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
        storage.put_scalar("segm/AP-car", 25.0)
        storage.put_scalar("segm/AP-car (parked)", 12.5)
        storage.put_scalar("segm/AP-car [parked]", 40.0)
        storage.put_image("predictions/street (1).png", np.zeros((3, 4, 4), np.uint8))
        storage.put_image("predictions/straße.png", np.zeros((3, 4, 4), np.uint8))
        writer.write()
    client, run_id = writer._client, writer._run_id
    writer.close()
    assert not warnings_in(caplog)
    # The digests are those of `printf 'segm/AP-car (parked)' | sha256sum`.
    assert client.get_run(run_id).data.metrics == {
        "segm/AP-car": 25.0,
        "segm/AP-car _parked_-2c371d4b": 12.5,
        "segm/AP-car _parked_-167e8975": 40.0,
    }
    pictures = {Path(each.path).name for each in client.list_artifacts(run_id, "images")}
    assert {name.partition("+")[0] for name in pictures} == {
        "predictions~street _1_.png-30a0ce11",
        "predictions~stra_e.png-e0a64944",
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
    write_final_scores(cfg, {"segm": {"AP": 20.0}}, iteration=30)
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
