from __future__ import annotations

import fcntl
import gc
import os
import pty
import resource
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

# As many threads as processes of pytest-xdist slow each other down; read when NumPy is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from cityscapes_maskrcnn.evaluation.instance_ap import Prediction
from cityscapes_maskrcnn.evaluation.result_files import image_results
from cityscapes_maskrcnn.synthetic.dataset import generate_dataset

# Where Detectron2's C++ extension was built, nothing may use it.
sys.modules["detectron2._C"] = None  # type: ignore[assignment]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no GPU; elsewhere run them last.

    A process that has used a GPU is better not forked, which other tests do.
    """
    import torch

    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in on_gpu] + on_gpu
    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Leave what a module has imported and kept out of the garbage collections of later ones.

    Otherwise each of them goes through hundreds of thousands of objects of torch, its compilers and
    pytest, which took an eighth of the time of four modules, and more after a hundred.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor write the user's annotation caches."""
    os.environ["CITYSCAPES_MASKRCNN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def numpy_of_tomorrow() -> Iterator[None]:
    """Take np.in1d away, as NumPy 2.4 does: the package must not reach it by any way.

    The official scripts call it; what compares with them asks for ``numpy_with_in1d``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(np, "in1d", raising=False)
        # SciPy imports all that is named here.
        patch.setattr(np, "__all__", [name for name in np.__all__ if name != "in1d"])
        yield


@pytest.fixture
def numpy_with_in1d(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give NumPy back what it called np.isin before 2.4."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DETECTRON2_DATASETS folder with a small generated data set; never written to by tests."""
    root = tmp_path_factory.mktemp("data sets é")
    counts = {"train": 8, "val": 6, "test": 2, "train_extra": 6}
    generate_dataset(root, counts, height=96, width=192, seed=3)
    return root


@pytest.fixture(scope="session")
def write_results() -> Callable[[Path, str, Sequence[Prediction]], Path]:
    """Write the predictions of the image of a name into a folder; returns the text file."""

    def write(folder: Path, name: str, predictions: Sequence[Prediction]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for file_name, content in image_results(name, predictions):
            path = folder / file_name
            path.write_bytes(content)
        return path

    return write


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """In a ``with`` block no file may grow beyond so many bytes: the error is a full disk's."""

    @contextmanager
    def limit_files(num_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit_files


@pytest.fixture(scope="session")
def on_terminal() -> Callable[..., tuple[int, str]]:
    """Run a command on a terminal of 80 columns: ``on_terminal(command, answer, **options)``.

    ``answer`` gets all that has been written, whenever there is more, and returns what is then
    typed.
    Returns the exit status and all that was written, with the control characters.
    """

    def run(
        command: Sequence[str], answer: Callable[[str], str] = lambda _: "", **options: Any
    ) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal, **options
        )
        os.close(theirs)
        output = ""
        limit = threading.Timer(600, process.kill)
        limit.start()
        try:
            # Reading fails when nobody has the terminal open any longer.
            with suppress(OSError):
                while data := os.read(ours, 1 << 16):
                    output += data.decode(errors="replace")
                    if typed := answer(output):
                        os.write(ours, typed.encode())
            return process.wait(300), output
        finally:
            limit.cancel()
            process.kill()
            os.close(ours)

    return run


@contextmanager
def served(server: HTTPServer) -> Iterator[str]:
    """Have a server answer in a thread during a ``with`` block; gives its URL."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def serve() -> Callable[[HTTPServer], AbstractContextManager[str]]:
    """``with serve(server) as url:``."""
    return served


@contextmanager
def serve_camera(num_frames: int) -> Iterator[str]:
    """Serve so many grey images of 64x32 as a camera does, and then no more; gives the URL."""
    _, jpeg = cv2.imencode(".jpg", np.full((32, 64, 3), 200, np.uint8))

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for _ in range(num_frames):
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: ")
                self.wfile.write(b"%d\r\n\r\n" % len(jpeg) + jpeg.tobytes() + b"\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with served(HTTPServer(("127.0.0.1", 0), Camera)) as url:
        yield f"{url}/video.mjpg"


@pytest.fixture(scope="session")
def camera_on_the_network() -> Callable[[int], AbstractContextManager[str]]:
    """``with camera_on_the_network(num_frames) as url:``."""
    return serve_camera


def randomise(network: Any, seed: int = 0) -> None:
    """Give a torchvision network random weights and BatchNorm statistics, none of them trivial.

    Values are such that activations neither vanish nor explode over 50 layers.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.4, 0.9, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.6, 1.6, generator=generator)
                module.num_batches_tracked.fill_(7)


@pytest.fixture(scope="session")
def randomised() -> Callable[..., None]:
    """The function above."""
    return randomise


def randomise_convnext(network: Any) -> None:
    """Do the same to a ConvNeXt of torchvision or timm, whose layer scales would hide all else."""
    import torch

    randomise(network)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("layer_scale", "gamma")):
                value.uniform_(0.1, 0.5)
            elif value.ndim == 1:
                value.add_(torch.rand_like(value) - 0.5)


@pytest.fixture(scope="session")
def randomised_convnext() -> Callable[[Any], None]:
    """The function above."""
    return randomise_convnext


@pytest.fixture(scope="session")
def deeplab() -> Any:
    """torchvision's own deeplabv3_resnet50 of 19 classes with random weights, in evaluation mode.

    Shared: do not change it.
    """
    import torch
    from torchvision.models.segmentation import deeplabv3_resnet50

    torch.set_num_threads(1)
    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=19, aux_loss=True)
    randomise(network)
    return network.eval()


@pytest.fixture(scope="session")
def without_other_packages() -> Callable[..., str]:
    """Code for ``sitecustomize.py`` that hides what ``pip install -e '.[EXTRAS]'`` leaves out."""

    def hide_others(*extras: str) -> str:
        packages = {"cityscapes-maskrcnn"}
        for line in requires("cityscapes_maskrcnn") or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                packages.add(requirement.name.lower().replace("_", "-"))
        others = [
            name
            for name, owners in packages_distributions().items()
            if name not in sys.stdlib_module_names
            and packages.isdisjoint(owner.lower().replace("_", "-") for owner in owners)
        ]
        assert {"detectron2", "torch"} <= {*others}
        return f"import sys\nfor name in {others}:\n    sys.modules.setdefault(name, None)\n"

    return hide_others
