from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from cityscapes_maskrcnn.cli import build_config
from cityscapes_maskrcnn.deploy import tracking
from cityscapes_maskrcnn.synthetic.scene import render_scene

STAGE_1 = Path(__file__).parents[2] / "configs" / "stage_1_heads.yaml"


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    """A checkpoint of random weights beside its config."""
    folder = tmp_path_factory.mktemp("model")
    cfg = build_config(str(STAGE_1), tiny)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    """A generated street, shape (96, 288, 3), BGR."""
    scene = render_scene(np.random.default_rng(5), 96, 288)
    return np.ascontiguousarray(scene.image[:, :, ::-1])


def write_video(path: Path, street: np.ndarray, num_frames: int) -> Path:
    """Drive along the street, a pixel a frame."""
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25.0, (192, 96))
    for number in range(num_frames):
        left = number % (street.shape[1] - 192)
        writer.write(np.ascontiguousarray(street[:, left : left + 192]))
    writer.release()
    return path


@pytest.fixture
def predict(tool, model, tmp_path):
    return partial(tool, "tools/predict.py", "--model", model, "--score-thresh", 0.05, cwd=tmp_path)


def read_lines(path: Path) -> list[dict]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def count_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    return count


def test_video_to_video_and_json_lines(predict, street, tmp_path):
    write_video(tmp_path / "v.mp4", street, 12)
    done = predict("--input", "v.mp4", "--output", "a.mp4", "a.jsonl", "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 frames are in a.mp4 and a.jsonl (")
    assert done.stdout.endswith(" frames a second)\n")
    assert "12/12" in done.stderr
    assert "frame/s" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.mp4", "v.mp4"]
    assert count_frames(tmp_path / "a.mp4") == 12
    entries = read_lines(tmp_path / "a.jsonl")
    assert {entry["image_id"] for entry in entries} == set(range(12))
    assert {entry["image"] for entry in entries} == {"v.mp4"}
    assert entries[-1]["seconds"] == 11 / 25
    assert {tuple(entry["segmentation"]["size"]) for entry in entries} == {(96, 192)}

    done = predict(
        "--input", "v.mp4", "--output", "b.jsonl", "--every", 5, "--resize", "96", "--masks",
        "polygons", "--classes", "car", "person",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 frames are in b.jsonl (")
    entries = read_lines(tmp_path / "b.jsonl")
    assert {entry["image_id"] for entry in entries} <= {0, 5, 10}
    assert {entry["category"] for entry in entries} <= {"car", "person"}
    for entry in entries:
        for polygon in entry["segmentation"]:
            assert max(polygon[0::2]) <= 96
            assert max(polygon[1::2]) <= 48


@pytest.mark.parametrize(("source", "rate"), [("v.mp4", 25), ("street.png", 60)])
def test_tracks_go_by_the_rate_of_the_source(predict, street, tmp_path, monkeypatch, source, rate):
    """--fps repeats frames in the written video only; images have no rate but this one."""
    rates = []

    class Recorded(tracking.ObjectTracker):
        def __init__(self, rate: float, score_thresh: float) -> None:
            rates.append(rate)
            super().__init__(rate, score_thresh)

    monkeypatch.setattr(tracking, "ObjectTracker", Recorded)
    write_video(tmp_path / "v.mp4", street, 3)
    cv2.imwrite(str(tmp_path / "street.png"), street)
    done = predict("--input", source, "--output", "a.jsonl", "b.mp4", "--track", "--fps", 60)
    assert done.returncode == 0, done.stderr
    assert rates == [rate]


def test_one_unreadable_image_among_many(predict, street, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abcd":
        cv2.imwrite(f"{tmp_path}/in/{name}.png", street)
    cv2.imwrite(f"{tmp_path}/in/e.png", np.zeros((1, 9000, 3), np.uint8))
    data = (tmp_path / "in/b.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(data[:9000])
    (tmp_path / "in/c.png").write_bytes(b"")
    done = predict("--input", "in", "--output", "pictures", "a.jsonl")
    assert done.returncode == 1
    assert done.stdout.startswith("2 images are in pictures and a.jsonl (")
    lines = done.stderr.replace("\r", "\n").splitlines()
    for name in "bc":
        (line,) = (line for line in lines if f"in/{name}.png" in line)
        assert line.endswith(
            f"in/{name}.png: truncated, or not an image of a known format (PNG, JPEG, WebP); fetch"
            " or unpack it again, or convert it; left out"
        )
    (line,) = (line for line in lines if "in/e.png" in line)
    assert line.endswith(
        "in/e.png: 9000x1 pixels cannot be resized: height and width must be > 0; left out"
    )
    assert lines[-1] == "error: images that could not be read, see above: 3"
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["a_prediction.png", "d_prediction.png"]
    assert {entry["image_id"] for entry in read_lines(tmp_path / "a.jsonl")} == {0, 3}


def test_layouts(predict, street, tmp_path):
    cv2.imwrite(str(tmp_path / "street.png"), street)
    # 640 / 288 = 2.2: three times as large; a gap of 864 / 256 = 3, made even.
    for flag, shape in (
        ("--overlay", (288, 864, 4)),
        ("--side-by-side", (288, 2 * 864 + 2, 3)),
    ):
        done = predict("--input", "street.png", "--output", "out", flag)
        assert done.stdout.startswith("1 image is in out ("), done.stderr
        name = "street_overlay.png" if flag == "--overlay" else "street_prediction.png"
        picture = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
        assert picture.shape == shape
    left = picture[:, :864].astype(int)
    enlarged = cv2.resize(street, (864, 288), interpolation=cv2.INTER_CUBIC).astype(int)
    np.testing.assert_array_equal(left, enlarged)
    assert (left != picture[:, 866:]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input none.mp4", "error: --input none.mp4: no such file, and no image"),
        ("--input empty", "error: --input empty: no such file, and no image"),
        ("--input notes.txt", "error: --input notes.txt: neither an image of a known format nor"),
        ("--input 77", "error: --input 77: no camera answers there"),
        ("--model none.pth", "error: --model none.pth: no such file"),
        ("--model none.onnx", "error: --model none.onnx: no such file"),
        ("--model x.onnx", "error: x.json: missing; it belongs beside x.onnx"),
        ("--model x.onnx --resize 9 A.B 1", "error: A.B: an exported model has no config; export"),
        (
            "--model x.torchscript",
            "error: --model x.torchscript: TorchScript and torch.export files cannot be used here;"
            " give the checkpoint, or a model.onnx of tools/export_model.py --format onnx",
        ),
        ("--model x.pt2", "error: --model x.pt2: TorchScript and torch.export files cannot be"),
        ("--model notes.txt", "error: --model notes.txt: no config.yaml beside it"),
        ("--output a.txt", "error: --output a.txt: neither .jsonl nor a video's extension (.mp4"),
        ("--output a.mp4 --codec XXXX", "error: --codec XXXX: this OpenCV cannot write it into"),
        ("--output a.mp4 --overlay", "error: --output a.mp4: a video cannot be transparent"),
        ("--codec mp4v", "error: --codec mp4v: no --output is a video"),
        ("--overlay", "error: --overlay: nothing is drawn into JSON lines"),
        ("--output street.png", "error: --output street.png: neither .jsonl nor a video's"),
        ("--classes persn", "error: --classes persn: did you mean person?"),
        ("--classes TEST.BATCH_SIZE 2", "error: --classes TEST.BATCH_SIZE: the model's are perso"),
        ("--resize 0", "error: --resize 0: it must be WIDTHxHEIGHT or the longer side"),
        ("--score-thresh 1.5", "error: --score-thresh 1.5: it must lie between 0 and 1"),
        ("--fps 0", "error: --fps 0: it must lie between 0 and 1000"),
        ("--resize 64 TEST.BATCH_SIZ 2", "error: command line, TEST.BATCH_SIZ 2: there is no conf"),
    ],
)
def test_bad_input(predict, street, tmp_path, arguments, message):
    cv2.imwrite(str(tmp_path / "street.png"), street)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    for name in ("x.onnx", "x.torchscript", "x.pt2"):
        (tmp_path / name).touch()
    done = predict("--input", "street.png", "--output", "a.jsonl", *arguments.split())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert not list(tmp_path.glob("a*"))


def test_a_gpu_that_is_not_there(predict, street, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "street.png"), street)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = predict("--input", "street.png", "--output", "a.jsonl", "--device", "cuda")
    assert done.stderr.splitlines()[-1] == "error: --device cuda: PyTorch finds no GPU"


def test_own_input_is_not_overwritten(predict, street, tmp_path):
    path = write_video(tmp_path / "v.mp4", street, 3)
    data = path.read_bytes()
    done = predict("--input", "v.mp4", "--output", path)
    assert done.stderr.splitlines()[-1] == f"error: --output {path}: is the input"
    assert path.read_bytes() == data


def test_names_on_standard_input_in_a_process_of_its_own(model, street, tmp_path):
    cv2.imwrite(str(tmp_path / "a b.png"), street)
    (tmp_path / "names").write_text("a b.png\nnone.png\n\x1b[31mred.png\n")
    script = Path(__file__).parents[2] / "tools" / "predict.py"
    with (tmp_path / "names").open() as names:
        done = subprocess.run(
            [sys.executable, str(script), "--model", str(model), "--input", "-", "--output", "o"],
            stdin=names,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
    assert done.returncode == 1
    assert done.stdout.startswith("1 image is in o (")
    assert "warning: none.png: cannot be read: No such file or directory; left out" in done.stderr
    assert "warning: \\x1b[31mred.png: cannot be read" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: images that could not be read, see above: 2"
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["a b_prediction.png"]


def test_no_names_on_standard_input(predict, tmp_path):
    (tmp_path / "names").write_text("\n")
    before = os.dup(0)
    with (tmp_path / "names").open() as names:
        os.dup2(names.fileno(), 0)
    try:
        done = predict("--input", "-", "--output", "a.jsonl")
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: --input: there was no image to predict"


def test_camera_that_vanishes(predict, camera_on_the_network, tmp_path):
    with camera_on_the_network(30) as url:
        done = predict("--input", url, "--output", "a.jsonl")
    assert done.returncode == 1
    match = re.fullmatch(
        rf"error: --input {re.escape(url)}: the camera gave no more frames after (\d+);"
        r" (\d+) frames are in a\.jsonl",
        done.stderr.splitlines()[-1],
    )
    assert match, done.stderr
    num_given, num_written = map(int, match.groups())
    assert 25 <= num_given <= 30  # some are needed to learn what they are
    assert 0 < num_written <= num_given
    entries = read_lines(tmp_path / "a.jsonl")
    assert len({entry["image_id"] for entry in entries}) == num_written
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_interrupted_in_the_middle(start_tool, model, street, tmp_path):
    write_video(tmp_path / "v.mp4", street, 2000)
    partial_file = tmp_path / "a.partial.jsonl"
    arguments = ("--model", model, "--score-thresh", 0.05, "--input", "v.mp4", "--output")
    with start_tool("tools/predict.py", *arguments, "a.mp4", "a.jsonl", cwd=tmp_path) as process:
        last = time.monotonic() + 120
        while not (partial_file.exists() and partial_file.read_bytes().count(b"\n") > 30):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < last
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    num_frames = int(out.split()[2])
    assert out == f"stopped early: {num_frames} frames are in a.mp4 and a.jsonl\n"
    assert 0 < num_frames < 2000
    assert count_frames(tmp_path / "a.mp4") == num_frames
    entries = read_lines(tmp_path / "a.jsonl")
    assert {entry["image_id"] for entry in entries} == set(range(num_frames))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.mp4", "v.mp4"]
