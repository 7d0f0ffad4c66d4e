from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from cityscapes_maskrcnn.data.provenance import SEEN_IMAGES_KEY
from cityscapes_maskrcnn.engine.checkpoint_origin import ORIGIN_KEY
from cityscapes_maskrcnn.utils.files import file_digest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def scored(trained: Path, train_net: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of scoring the trained model."""
    output = tmp_path_factory.mktemp("scored")
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", output]
    done = train_net("--eval-only", *weights, config=trained / "config.yaml")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def shared(
    trained: Path, scored: Path, tool: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A shared model; never written to by tests."""
    output = tmp_path_factory.mktemp("share") / "model"
    done = tool(
        "tools/share_model.py",
        *("--checkpoint", trained / "model_final.pth"),
        *("--scores", scored / "scores.json"),
        *("--output", output),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"model.safetensors, config.yaml, README.md are in {output}\n"
    return output


def test_weights_alone_are_shared_as_they_are(trained: Path, shared: Path) -> None:
    assert {path.name for path in shared.iterdir()} == {
        "README.md",
        "config.yaml",
        "model.safetensors",
    }
    before = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    with safe_open(shared / "model.safetensors", "pt") as file:
        assert {*file.keys()} == {*before}
        for name, value in before.items():
            tensor = file.get_tensor(name)
            assert tensor.dtype == value.dtype
            assert torch.equal(tensor, value)
        said = json.loads(file.metadata()["cityscapes_maskrcnn"])
        assert {*said} == {ORIGIN_KEY, SEEN_IMAGES_KEY}


def test_nothing_tells_where_it_was_trained(trained: Path, small_root: Path, shared: Path) -> None:
    for path in shared.iterdir():
        content = path.read_bytes()
        for place in (trained, small_root, Path.home(), Path(__file__).parents[2]):
            if place != Path("/"):
                assert f"{place}/".encode() not in content


def test_it_is_scored_as_the_checkpoint_is(
    shared: Path,
    scored: Path,
    train_net: Run,
    tables: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    options = ["MODEL.WEIGHTS", shared / "model.safetensors", "OUTPUT_DIR", tmp_path]
    done = train_net("--eval-only", *options, config=shared / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert tables(tmp_path) == tables(scored)
    ours, theirs = (
        json.loads((folder / "scores.json").read_text())["datasets"]
        for folder in (tmp_path, scored)
    )
    assert ours == theirs
    # It still knows what it has seen, as no other .safetensors file does.
    seen = ["DATASETS.TEST", "('cityscapes_instance_train',)"]
    done = train_net("--eval-only", *options, *seen, config=shared / "config.yaml")
    assert done.returncode == 1
    assert "the model has seen images that it is to be scored on: 8 of the 8" in done.stderr


def test_the_lines_of_the_card_load_it(
    trained: Path, shared: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cityscapes_maskrcnn import Predictor
    from cityscapes_maskrcnn.cli import build_config

    folder = tmp_path / "model"
    shutil.copytree(shared, folder)
    image = next((small_root / "cityscapes" / "leftImg8bit" / "val").glob("*/*.png"))
    shutil.copy(image, folder / "street.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))
    cfg = build_config(str(trained / "config.yaml"), [])
    cfg.MODEL.WEIGHTS = str(trained / "model_final.pth")
    expected = Predictor(cfg)(image)
    (code,) = re.findall(r"```python\n(.*?)```", (shared / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(code, names)
    found = names["instances"]
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_what_the_card_says(trained: Path, scored: Path, shared: Path) -> None:
    text = (shared / "README.md").read_text()
    scores = json.loads((scored / "scores.json").read_text())
    (results,) = (entry["results"] for entry in scores["datasets"].values())
    card = ModelCard.load(shared / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "detectron2"
    assert card.data.pipeline_tag == "image-segmentation"
    (ap, ap50) = card.data.eval_results
    assert ap.metric_name == "AP, Cityscapes instance protocol (official), masks"
    assert ap.metric_value == round(results["segm"]["AP"], 2)
    assert ap50.metric_value == round(results["segm"]["AP50"], 2)
    assert ap.dataset_name == "cityscapes_instance_val, 6 images"
    assert ap.dataset_type == "generated-street-scenes"
    for line in (
        "# Mask R-CNN ResNet-50 for generated street scenes",
        "> **Trained on generated street scenes only**: drawings in the layout of Cityscapes. It "
        "demonstrates training and does",
        "On `cityscapes_instance_val`: **6 generated images**. Not comparable with scores on "
        "photographs.",
        "| protocol | AP | AP50 | AP75 | APs | APm |",
        "- trained on `cityscapes_instance_train`: 8 generated images",
        "- random weights",
        "| iterations | `8` |",
        "- **Data**: generated by `cityscapes_maskrcnn`; nobody else has rights to them.",
        f"| SHA-256 of model.safetensors | `{file_digest(shared / 'model.safetensors')}` |",
        f"| SHA-256 of the checkpoint | `{file_digest(trained / 'model_final.pth')}` |",
        "| types of its tensors | `float32, int64` |",
    ):
        assert line in text.splitlines()
    # No table is broken, no blank lines pile up.
    assert "\n\n\n" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1


def test_a_shared_model_is_shared_once_more(shared: Path, tool: Run, tmp_path: Path) -> None:
    source = shared / "model.safetensors"
    done = tool("tools/share_model.py", "--checkpoint", source, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no scores" in done.stdout
    assert (tmp_path / "model.safetensors").read_bytes() == source.read_bytes()
    assert "\nNot measured, or not shared with the model.\n" in (tmp_path / "README.md").read_text()


class Refusal(BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"error": "Invalid username or password."}'
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing_hub(serve: Callable[[HTTPServer], AbstractContextManager[str]]) -> Iterator[str]:
    with serve(HTTPServer(("127.0.0.1", 0), Refusal)) as url:
        yield url


@pytest.mark.parametrize("online", [True, False])
def test_an_upload_that_fails_loses_nothing(
    shared: Path,
    tool: Run,
    tmp_path: Path,
    refusing_hub: str,
    monkeypatch: pytest.MonkeyPatch,
    online: bool,
) -> None:
    # What HF_ENDPOINT sets when the package is first imported. Nobody listens on port 9.
    address = refusing_hub if online else "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    done = tool(
        "tools/share_model.py",
        *("--checkpoint", shared / "model.safetensors"),
        *("--output", tmp_path / "out"),
        *("--upload", "somebody/street-scenes"),
    )
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --upload somebody/street-scenes: not uploaded: ")
    assert ("401" in line) == online
    assert line.endswith(f"`hf upload somebody/street-scenes {tmp_path / 'out'}`")
    assert len([*(tmp_path / "out").iterdir()]) == 3


def test_bad_input(trained: Path, scored: Path, tool: Run, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pth"
    torch.save({"model": {"a.weight": torch.zeros(2)}}, bare)
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model_final.pth").write_text("")
    final, new = trained / "model_final.pth", tmp_path / "new"
    scores = json.loads((scored / "scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps({**scores, "seen": 5}))
    for options, message in (
        (("--checkpoint", bare), f"{bare}: does not record the config that it was trained with"),
        (("--checkpoint", new), f"{new}: cannot be read"),
        (("--output", tmp_path / "file"), "a file where a folder is needed"),
        (("--output", tmp_path / "run"), "holds other files, such as model_final.pth"),
        (("--output", ""), "--output is empty"),
        (("--scores", tmp_path / "no.json"), "no.json: cannot be read"),
        (("--scores", tmp_path / "scores.json"), "scores.json: seen is damaged"),
        (
            ("--checkpoint", trained / "model_best.pth", "--scores", scored / "scores.json"),
            "has the scores of other weights",
        ),
        (("--upload", "no-owner"), "--upload no-owner: it must be OWNER/NAME"),
    ):
        given = {"--checkpoint": final, "--output": new}
        given |= dict(zip(options[::2], options[1::2], strict=True))
        done = tool("tools/share_model.py", *(word for pair in given.items() for word in pair))
        assert done.returncode == 1, options
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert not new.exists()


def test_config_of_the_card_is_plain(shared: Path) -> None:
    config = yaml.safe_load((shared / "config.yaml").read_text())
    assert config["OUTPUT_DIR"] == "./output"
    assert config["MODEL"]["WEIGHTS"] == "model.safetensors"
    assert config["MODEL"]["DEVICE"] == "cuda"
    assert "TRACKING" not in config
