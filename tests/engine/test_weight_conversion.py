from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from cityscapes_maskrcnn.engine.weight_conversion import convert_checkpoint, take_as_named


def test_what_is_no_tensor_is_skipped() -> None:
    weight = torch.zeros(2)
    tensors, report = take_as_named({"net.fc.weight": weight, "epoch": 3}, "last.ckpt")
    assert tensors == {"net.fc.weight": weight}
    assert report.used == {"net.fc.weight": "net.fc.weight"}
    assert report.skipped == {"epoch": "not tensors"}
    assert report.missing == ()


def test_timms_names_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cache, where a download would have put them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "convnext_tiny.fb_in1k.safetensors"
    path.parent.mkdir(parents=True)
    state = timm.create_model("convnext_tiny", pretrained=False).state_dict()
    save_file(state, path)
    content, report = convert_checkpoint("timm://convnext_tiny.fb_in1k", keep_names=False)
    path.unlink()
    # What its images are like goes along, see check_conventions.
    assert content["__author__"] == "timm"
    assert report.summary().splitlines() == [
        "timm://convnext_tiny.fb_in1k:",
        "  used     178  of the backbone",
        "  skipped    2  of head.fc, which this model does not have",
        "  skipped    2  of head.norm, which this model does not have",
    ]
    converted = content["model"]["res4.8.block.3.weight"]
    assert torch.equal(converted, state["stages.2.blocks.8.mlp.fc1.weight"])
