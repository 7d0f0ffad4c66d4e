"""Services that track a training run in addition to TensorBoard: Weights & Biases and MLflow.

Their packages are imported when a run that names them in ``TRACKING.BACKENDS`` starts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import numpy.typing as npt
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from cityscapes_maskrcnn.engine.event_writers import RunStorage, TensorboardWriter
from cityscapes_maskrcnn.engine.hooks import without_nan
from cityscapes_maskrcnn.utils.config_keys import flat_config
from cityscapes_maskrcnn.utils.errors import InputError
from cityscapes_maskrcnn.utils.files import read_json, write_json
from cityscapes_maskrcnn.utils.text import message_of, printable

# In OUTPUT_DIR: the ids of the run at each service.
RUN_IDS_FILE: Final = "tracking.json"

# MLflow takes no more of them at once, and no longer ones.
_MAX_PARAMS, _MAX_PARAM_LENGTH = 100, 6000
# As Detectron2's writers: scalars are medians over so many iterations.
_WINDOW: Final = 20

logger = logging.getLogger(__name__)


class _ServiceWriter(EventWriter):
    """Base of writers to a service outside the run's folder, which may fail while a run goes on.

    Place it before the TensorBoard writer, which removes pictures from the storage.

    Attributes:
        finished: as :class:`.TensorboardWriter`'s.

    Args:
        cfg: the frozen config.
    """

    name = ""
    package = ""
    advice = ""

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._last_write = -1
        self._started = False
        self._takes_pictures = True
        self.finished = False

    def start(self, resumed: bool) -> None:
        """Begin a run at the service, or go on with the one that this folder has there.

        Args:
            resumed: whether the training goes on from a checkpoint.

        Raises:
            InputError: the service refuses it or cannot be reached; or the file of run ids is
                damaged.
        """
        file = Path(self._cfg.OUTPUT_DIR) / RUN_IDS_FILE
        ids: dict[str, str] = {}
        if file.is_file():
            form = {f"{name}?": str for name in _SERVICES}
            ids = read_json(file, form=form, advice="remove it to begin a new run")
        try:
            _check_reachable(self._address())
            run_id = self._start(ids.get(self.name) if resumed else None)
        except Exception as error:  # of many kinds: network, login, names, files
            raise InputError(
                f"TRACKING.BACKENDS {self.name}: no run can be started: {message_of(error)}; "
                f"{self.advice}"
            ) from error
        self._started = True
        logger.info("%s: run %s, %s", self.name, run_id, self._place())
        if ids.get(self.name) != run_id:
            write_json(file, {**ids, self.name: run_id})

    def write(self) -> None:
        """Send what is new."""
        if not self._started:
            return
        storage = get_event_storage()
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_write:
                by_iteration.setdefault(iteration, {})[name] = float(value)
        self._last_write = max([self._last_write, *by_iteration])
        with self._failures("later scalars and pictures are not sent") as failed:
            for iteration in sorted(by_iteration):
                self._put_scalars(iteration, by_iteration[iteration])
        self._started = not failed
        # Scalars go on where a picture is refused.
        if self._started and self._takes_pictures:
            with self._failures("later pictures are not sent") as failed:
                for name, picture, iteration in storage._vis_data:
                    self._put_picture(iteration, name, _to_pixels(picture))
            self._takes_pictures = not failed

    def close(self) -> None:
        """End the run at the service."""
        if self._started:
            with self._failures("its end is not recorded"):
                self._end()
            self._started = False

    @contextmanager
    def _failures(self, consequence: str) -> Iterator[list[Exception]]:
        """Warn and go on without the service: the training is worth more.

        Yields a list, which then holds what was raised.
        """
        failed: list[Exception] = []
        try:
            yield failed
        except Exception as error:
            failed.append(error)
            logger.warning("%s: %s; %s", self.name, message_of(error), consequence)

    @property
    def _run_name(self) -> str:
        return self._cfg.TRACKING.RUN_NAME or "/".join(Path(self._cfg.OUTPUT_DIR).parts[-2:])

    def _address(self) -> str:
        """The service; an address with http only if it is reached by that."""
        raise NotImplementedError

    def _start(self, run_id: str | None) -> str:
        """Go on with a run, or begin one if there is no id; returns its id."""
        raise NotImplementedError

    def _place(self) -> str:
        """Where the run, which has been started, can be seen."""
        raise NotImplementedError

    def _put_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        raise NotImplementedError

    def _put_picture(self, iteration: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class WandbWriter(_ServiceWriter):
    """Send scalars, pictures and config to Weights & Biases; see :class:`_ServiceWriter`.

    Scalars have an axis of their own, ``iteration``. W&B's own steps only rise, so that what is
    trained again after an interruption would be dropped.
    """

    name = "wandb"
    package = "wandb"
    advice = "log in by `wandb login`, or keep the run on disk: WANDB_MODE=offline"

    def _address(self) -> str:
        import wandb

        settings = wandb.setup().settings
        return str(settings.base_url) if settings.mode in ("online", "run", "shared") else ""

    def _start(self, run_id: str | None) -> str:
        import wandb

        new_id = run_id or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=self._cfg.TRACKING.PROJECT,
            name=self._run_name,
            id=new_id,
            resume="allow" if run_id else None,
            dir=self._cfg.OUTPUT_DIR,
            config=yaml.safe_load(self._cfg.dump()),
            # It would take over the terminal, and look for code and a git repository to send.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
            ),
        )
        self._run.define_metric("iteration", hidden=True)
        self._run.define_metric("*", step_metric="iteration")
        return new_id

    def _place(self) -> str:
        return str(self._run.url or f"{Path(self._run.dir).parent} (wandb sync sends it)")

    def _put_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **scalars})

    def _put_picture(self, iteration: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        import wandb

        self._run.log({"iteration": iteration, name: wandb.Image(pixels, file_type="jpg")})

    def _end(self) -> None:
        self._run.finish(exit_code=0 if self.finished else 1)


class MlflowWriter(_ServiceWriter):
    """Send scalars, pictures and config to MLflow; see :class:`_ServiceWriter`."""

    name = "mlflow"
    package = "mlflow-skinny"
    advice = "MLFLOW_TRACKING_URI names the place, such as sqlite:////data/mlflow.db"

    def _address(self) -> str:
        with _no_telemetry():
            from mlflow import MlflowClient

        self._client = MlflowClient()
        return str(self._client.tracking_uri)

    def _place(self) -> str:
        return re.sub(r"//[^/@]*@", "//", self._client.tracking_uri)

    def _start(self, run_id: str | None) -> str:
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self._run_id: str = run_id
            return run_id
        experiment = self._client.get_experiment_by_name(self._cfg.TRACKING.PROJECT)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(self._cfg.TRACKING.PROJECT)
        )
        run = self._client.create_run(experiment_id, run_name=self._run_name)
        self._run_id = run.info.run_id
        self._put_config()
        return self._run_id

    def _put_config(self) -> None:
        from mlflow.entities import Param

        params = [
            Param(key, str(value)[:_MAX_PARAM_LENGTH])
            for key, value in flat_config(self._cfg).items()
            if not key.startswith("SEARCH.")
        ]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_PARAMS])
        self._client.log_text(self._run_id, self._cfg.dump(), "config.yaml")

    def _put_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(_mlflow_key(name), value, now, iteration) for name, value in scalars.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _put_picture(self, iteration: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        self._client.log_image(self._run_id, pixels, key=_mlflow_key(name), step=iteration)

    def _end(self) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if self.finished else "KILLED")


_SERVICES: Final[Mapping[str, type[_ServiceWriter]]] = {
    each.name: each for each in (WandbWriter, MlflowWriter)
}


def check_tracking(cfg: CfgNode) -> None:
    """Verify ``TRACKING.BACKENDS``.

    Raises:
        InputError: a name is unknown, or its package is not installed.
    """
    for name in cfg.TRACKING.BACKENDS:
        if name not in _SERVICES:
            raise InputError(
                f"TRACKING.BACKENDS {printable(name, 100)}: it must be of {', '.join(_SERVICES)}; "
                "TensorBoard's files are always written"
            )
        package = importlib.util.find_spec(name)
        # A folder of that name, such as the one in which W&B keeps runs, is no package.
        if package is None or package.origin is None:
            raise InputError(
                f"TRACKING.BACKENDS {name}: it is not installed; pip install "
                f"{_SERVICES[name].package}"
            )


def service_writers(cfg: CfgNode) -> list[_ServiceWriter]:
    """Build the writers that ``TRACKING.BACKENDS`` names, on the main process only."""
    return [_SERVICES[name](cfg) for name in dict.fromkeys(cfg.TRACKING.BACKENDS)]


class TrackRun(HookBase):
    """Start the runs of the services before training, and tell the writers how it ended.

    Place it before :class:`.hooks.WriteEvents`, which closes them; main process only.

    Args:
        writers: as those of :class:`.hooks.WriteEvents`.
    """

    def __init__(self, writers: Iterable[EventWriter]) -> None:
        self._writers = list(writers)

    def before_train(self) -> None:
        """Start the runs.

        Raises:
            InputError: see :meth:`_ServiceWriter.start`.
        """
        for writer in self._writers:
            if isinstance(writer, _ServiceWriter):
                writer.start(resumed=self.trainer.start_iter > 0)

    def after_train(self) -> None:
        """Note whether all iterations were trained."""
        for writer in self._writers:
            if isinstance(writer, (_ServiceWriter, TensorboardWriter)):
                writer.finished = self.trainer.iter >= self.trainer.max_iter


def write_final_scores(cfg: CfgNode, results: Mapping[str, Any], iteration: int) -> None:
    """Add the scores of a run's best checkpoint, which come after all else: ``report/segm/AP``.

    Args:
        cfg: the frozen config of the training run, whose writers are closed.
        results: Detectron2's, by task.
        iteration: the last one.
    """
    # TensorBoard's file first: a service may be away for long.
    writers: Sequence[EventWriter] = [TensorboardXWriter(cfg.OUTPUT_DIR), *service_writers(cfg)]
    with RunStorage(iteration) as storage:
        scores = flatten_results_dict(without_nan(results))
        named = {f"report/{name}": value for name, value in scores.items()}
        storage.put_scalars(smoothing_hint=False, **named)
        for writer in writers:
            try:
                with closing(writer):
                    if isinstance(writer, _ServiceWriter):
                        writer.start(resumed=True)
                        writer.finished = True
                    writer.write()
            except (InputError, OSError) as error:
                logger.warning("The final scores, which scores.json holds, are not sent: %s", error)


def _check_reachable(address: str) -> None:
    """Raise an OSError at once where the clients of services try again for minutes.

    Not where a proxy leads to the service.
    """
    place = urlsplit(address)
    if place.scheme in ("http", "https") and place.hostname and not getproxies():
        port = place.port or {"http": 80, "https": 443}[place.scheme]
        try:
            socket.create_connection((place.hostname, port), timeout=15).close()
        except OSError as error:
            raise ConnectionError(f"{place.hostname}:{port} cannot be reached: {error}") from error


def _to_pixels(picture: Any) -> npt.NDArray[np.uint8]:
    """Turn a picture of an event storage, (3, H, W), into (H, W, 3), uint8."""
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        pixels = (255 * pixels.clip(0, 1)).round()
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(np.uint8)


def _mlflow_key(name: str) -> str:
    """Replace what MLflow refuses in names of metrics and pictures, such as ``(`` and ``ß``.

    A digest then ends the name: ``car (parked)`` and ``car [parked]`` have metrics of their own.
    """
    key = re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)
    if key == name:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{key}-{digest[:8]}"


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Have MLflow, when it is first imported, report nothing to its makers.

    It asks the environment then, and not again.
    """
    before = os.environ.get("MLFLOW_DISABLE_TELEMETRY")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_DISABLE_TELEMETRY"]
        else:
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = before
