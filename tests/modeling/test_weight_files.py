from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from http.server import HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import Weights, WeightsEnum

from cityscapes_maskrcnn.modeling.weight_files import (
    TORCHVISION_DEEPLAB,
    download,
    fetch_published,
    fetch_timm,
    fetch_torchvision,
    read_checkpoint,
    read_pickle,
    write_safetensors,
)
from cityscapes_maskrcnn.utils.errors import InputError


class Evil:
    """Unpickling this creates a file: the proof that code was run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.proof,))


@pytest.fixture(autouse=True)
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's cache for this test; returns the folder of the files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def published(folder: Path, digits: str | None = None) -> WeightsEnum:
    """A file as torchvision publishes its weights, and the enum that names it."""
    folder.mkdir(parents=True)
    torch.save({"layer.weight": torch.arange(3.0)}, folder / "new.pth")
    if digits is None:
        digits = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    path = (folder / "new.pth").rename(folder / f"little_network-{digits}.pth")
    url = path.as_uri()
    return WeightsEnum("Little", {"V1": Weights(url=url, transforms=lambda x: x, meta={})}).V1


def test_a_download_is_cached_where_torchvision_looks(tmp_path: Path, torch_home: Path) -> None:
    weights = published(tmp_path / "server")
    path = download(weights)
    assert path.parent == torch_home
    assert torch.equal(read_checkpoint(path)["model"]["layer.weight"], torch.arange(3.0))
    # Now from the cache: torchvision itself finds it, and the server is not asked.
    (tmp_path / "server" / path.name).unlink()
    assert download(weights) == path
    assert torch.equal(weights.get_state_dict()["layer.weight"], torch.arange(3.0))


def test_many_ask_and_one_downloads(
    tmp_path: Path, torch_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = published(tmp_path / "server")
    with ThreadPoolExecutor(4) as pool:
        paths = {*pool.map(download, [weights] * 8)}
    assert len(paths) == 1
    # torchvision prints one such line for every download.
    assert capfd.readouterr().out.count("Downloading:") == 1
    assert sorted(path.suffix for path in torch_home.iterdir()) == [".lock", ".pth"]


def test_a_download_with_another_hash_is_refused(tmp_path: Path, torch_home: Path) -> None:
    with pytest.raises(InputError, match="invalid hash value"):
        download(published(tmp_path / "server", digits="0123abcd"))
    assert not [*torch_home.glob("*.pth")]


def test_a_cached_file_with_another_hash_is_refused(torch_home: Path) -> None:
    """torchvision itself would load it; this is the real enum's file name."""
    torch_home.mkdir(parents=True)
    path = torch_home / "deeplabv3_resnet50_coco-cd0a2569.pth"
    torch.save({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(InputError, match=r"SHA-256 begins with \w{8}, not cd0a2569") as caught:
        fetch_torchvision(TORCHVISION_DEEPLAB)
    assert str(path) in str(caught.value)


def test_no_connection_is_one_line(monkeypatch: pytest.MonkeyPatch, torch_home: Path) -> None:
    # A proxy on a port where nothing listens: the download fails at once, on every machine.
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="cannot be downloaded") as caught:
        fetch_torchvision(TORCHVISION_DEEPLAB)
    message = str(caught.value)
    assert str(torch_home / "deeplabv3_resnet50_coco-cd0a2569.pth") in message
    assert "\n" not in message


class Hub(ThreadingHTTPServer):
    """A folder as the Hugging Face hub gives its files.

    Attributes:
        asked: the path of every request.
        missing_bytes: how many the connection loses at the end of every file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.missing_bytes = 0
        super().__init__(("127.0.0.1", 0), HubHandler)

    def publish(self, name: str, value: float) -> None:
        path = self.folder / "timm" / name / "resolve" / "main" / "model.safetensors"
        path.parent.mkdir(parents=True)
        save_file({"layer.weight": torch.full((99,), value)}, path)


class HubHandler(SimpleHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(401)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - self.server.missing_bytes])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(
    serve: Callable[[HTTPServer], AbstractContextManager[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    with serve(server) as url:
        monkeypatch.setenv("HF_ENDPOINT", f"{url}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server


def test_timms_weights_are_downloaded_once(hub: Hub, torch_home: Path) -> None:
    """All files of the hub have the same name, and stay apart in the cache."""
    names = ["convnext_tiny.in12k_ft_in1k", "convnext_base.fb_in1k"]
    for value, name in enumerate(names):
        hub.publish(name, value)
    with ThreadPoolExecutor(4) as pool:
        paths = [*pool.map(fetch_published, [f"timm://{name}" for name in names] * 4)]
    assert paths == [torch_home / f"{name}.safetensors" for name in names] * 4
    for value, path in enumerate(paths[:2]):
        weight = read_checkpoint(path)["model"]["layer.weight"]
        assert torch.equal(weight, torch.full((99,), float(value)))
    assert sorted(hub.asked) == sorted(
        f"/timm/{name}/resolve/main/model.safetensors" for name in names
    )
    assert {path.suffix for path in torch_home.iterdir()} == {".lock", ".safetensors"}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_timms_name_without_a_tag_is_timms_default(size: str, hub: Hub, torch_home: Path) -> None:
    tag = timm.get_pretrained_cfg(f"convnext_{size}").tag
    hub.publish(f"convnext_{size}.{tag}", 0)
    path = fetch_timm(f"timm://convnext_{size}")
    assert path == torch_home / f"convnext_{size}.{tag}.safetensors"


def test_half_a_file_of_timms_does_not_reach_the_cache(hub: Hub, torch_home: Path) -> None:
    hub.publish("convnext_tiny.fb_in1k", 1)
    hub.missing_bytes = 8
    with pytest.raises(InputError, match=r"^http.*: not a \.safetensors file, or damaged"):
        fetch_timm("timm://convnext_tiny.fb_in1k")
    assert [path.suffix for path in torch_home.iterdir()] == [".lock"]
    hub.missing_bytes = 0
    assert fetch_timm("timm://convnext_tiny.fb_in1k").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm://convnext_tiny.of_nobody", "not on the Hugging Face hub, .*: HTTP Error 401: "),
        ("timm://convnext_tiny_hnf.a2h_in1k", r"unknown; the names of this kind are timm://convn"),
        ("timm://convnextv2_tiny.fcmae_ft_in1k", "unknown; the names of this kind are timm://conv"),
        ("timm://convnext_tiny.", "unknown; "),
        ("timm://convnext_tiny.a/../b", "unknown; "),
        ("timm://", "unknown; "),
    ],
)
def test_wrong_names_of_timms_weights_get_one_line(
    name: str, message: str, hub: Hub, torch_home: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fetch_published(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert not [*torch_home.glob("*.safetensors")]
    # Wrong names are not asked for.
    assert len(hub.asked) == int(name.endswith(".of_nobody"))


def test_no_connection_to_the_hub_is_one_line(
    monkeypatch: pytest.MonkeyPatch, torch_home: Path
) -> None:
    for address in ("http://127.0.0.1:9", "nonsense"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(InputError, match=rf"^{address}/timm/.*cannot be downloaded") as caught:
            fetch_timm("timm://convnext_tiny.fb_in1k")
        assert str(caught.value).endswith(f"{torch_home / 'convnext_tiny.fb_in1k.safetensors'}")
        assert "\n" not in str(caught.value)


TENSORS = {"a.weight": torch.arange(4.0), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"model": TENSORS, "epoch": 4},
        {"state_dict": TENSORS, "epoch": 4},
        {"model_state_dict": TENSORS, "optimizer": {"state": {}, "param_groups": []}},
        {"model": {"state_dict": TENSORS}, "epoch": 4},
        # What torchvision's reference scripts save.
        {"model": TENSORS, "epoch": 4, "args": argparse.Namespace(lr=0.1, device="cuda")},
    ],
)
def test_nested_checkpoints(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "weights.pth")
    read = read_checkpoint(tmp_path / "weights.pth")
    assert {*read["model"]} == {"a.weight", "a.bias"}
    assert torch.equal(read["model"]["a.weight"], TENSORS["a.weight"])
    assert read.get("epoch") == content.get("epoch")


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path)
    assert torch.equal(read_checkpoint(path)["model"]["a.weight"], TENSORS["a.weight"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"not a \.safetensors file, or damaged"):
        read_checkpoint(path)


def test_no_code_is_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "weights.pth"
    torch.save({"model": TENSORS, "args": Evil(proof)}, path)
    with pytest.raises(InputError, match="not a checkpoint that can be loaded safely"):
        read_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # so the file was armed


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(path)
    for content in [b"", b"text", b"\x00\xff" * 500, b"PK\x03\x04" + b"\x07" * 99]:
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a checkpoint") as caught:
            read_checkpoint(path, name="its name")
        assert str(caught.value).startswith("its name: ")
        assert "\n" not in str(caught.value)
    for content, message in [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html>", "it is a web page"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_checkpoint(path)
    for content in [[1.0], torch.zeros(3), {"epoch": 3}, {"model": {7: torch.zeros(2)}}]:
        torch.save(content, path)
        with pytest.raises(InputError, match="holds no tensors by name"):
            read_checkpoint(path)
    (tmp_path / "weights.pkl").write_bytes(b"")
    with pytest.raises(InputError, match="pickle files are refused"):
        read_checkpoint(tmp_path / "weights.pkl")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pkl")  # nobody writes into it
    with pytest.raises(InputError, match=r"x.pkl: not a file, but a pipe or device"):
        read_pickle(tmp_path / "x.pkl")


def test_a_damaged_tensor_is_noticed(tmp_path: Path) -> None:
    """torch.load does not look at the check sums of the zip file that torch.save writes."""
    path = tmp_path / "w.pth"
    torch.save({"layer.weight": torch.arange(5000.0)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(5000.0).numpy().tobytes()) + 4000
    content[at] ^= 1
    path.write_bytes(bytes(content))
    assert not torch.equal(
        torch.load(path, weights_only=True)["layer.weight"], torch.arange(5000.0)
    )
    with pytest.raises(InputError, match=r"w\.pth: damaged: the check sum of .*data/0 is wrong"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            b'{"a":{"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[0,0]}}',
            "damaged: it has a shape that no tensor can have",
        ),
        (
            b"{%b}"
            % b",".join(
                b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number
                for number in range(100_000)
            ),
            "not a .safetensors file of weights, or damaged: its header has 5688891 bytes; "
            "at most 4000000 are read",
        ),
    ],
    ids=["shape", "many"],
)
def test_headers_of_safetensors(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=rf"^{path}: {message}$"):
        read_checkpoint(path)


def test_safetensors_say_what_a_checkpoint_says(tmp_path: Path) -> None:
    columns = torch.arange(12, dtype=torch.bfloat16).reshape(2, 2, 3, 1)
    tensors = {
        "a": torch.tensor([1, 2]),
        "b": columns.contiguous(memory_format=torch.channels_last),
        # Of one memory with the first.
        "c": columns[0],
    }
    content = {"model": tensors, "said": [{"images": 5, "names": "é"}]}
    for name in ("one", "two"):
        write_safetensors(tmp_path / f"{name}.safetensors", content)
    one, two = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    read = read_checkpoint(tmp_path / "one.safetensors")
    assert read["said"] == content["said"]
    assert {*read} == {"model", "said"}
    for name, value in tensors.items():
        assert read["model"][name].dtype == value.dtype
        assert torch.equal(read["model"][name], value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged: .* in what it says of its making"), ("[" * 100_000, "damaged: ")],
)
def test_safetensors_that_say_garbage(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a.b": torch.ones(2)}, path, {"cityscapes_maskrcnn": text})
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)
    # Of others it is none of this project's business.
    save_file({"a.b": torch.ones(2)}, path, {"other": text, "cityscapes_maskrcnn": "5"})
    assert {*read_checkpoint(path)} == {"model"}
